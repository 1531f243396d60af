"""Mixed precision where it is fast, and float32 where it would be emulated."""

import pytest
import torch

from fingerprint_accel.config import Config, TrainingConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.training import setup


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512f", "no"),
        ("fpu avx512_bf16", "bf16"),
        ("fpu amx_bf16 amx_tile", "bf16"),
        ("fpu my_amx_bf16_like", "no"),
        (None, "no"),
    ],
)
def test_processors(monkeypatch, tmp_path, flags, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"model name : any\nflags\t\t: {flags}\n")
    monkeypatch.setattr(setup, "CPU_INFO", info)
    assert setup.fast_precision() == expected


@pytest.mark.parametrize(("in_hardware", "expected"), [(True, "bf16"), (False, "fp16")])
def test_gpus(monkeypatch, tmp_path, in_hardware, expected):
    """torch says that every GPU supports bf16, because it emulates it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or in_hardware
    )
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert setup.fast_precision() == expected
    monkeypatch.setattr(setup, "CPU_INFO", tmp_path / "none")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert setup.fast_precision() == "no", "training then runs on the processor"


def test_an_accelerate_config_that_asks_for_fp16_on_a_cpu(monkeypatch, tmp_path):
    """The network's answer was a traceback in the first step."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = Config(data="nowhere", out=str(tmp_path), training=TrainingConfig(tracker="none"))
    with pytest.raises(UserError, match=r"fp16 needs a GPU; use --training.precision bf16 or no"):
        setup.make_accelerator(config)
