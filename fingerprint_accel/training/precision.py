"""Which precision this machine multiplies fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import parse_flag_from_env

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}  # of processors; others emulate bf16, which is slower than float32


def fast_precision() -> Literal["bf16", "fp16", "no"]:
    """A `training.precision`: bf16 where the GPU or processor has it in hardware, fp16 on other GPUs, else no autocast.

    `ACCELERATE_USE_CPU` counts: training then runs on the processor although there is a GPU.
    """
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    flags = CPU_INFO.read_text().split() if CPU_INFO.exists() else []
    return "bf16" if BF16_FLAGS.intersection(flags) else "no"
