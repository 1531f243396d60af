"""What the machine can do at most: multiplications, copies; and how much of them a network asks for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from timing import synchronize, total
from torch._subclasses.fake_tensor import FakeTensorMode

from fingerprint_accel.config import Config
from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.plan import flop_counter
from fingerprint_accel.preprocess.minutia_map import MAP_SIZE
from fingerprint_accel.preprocess.pipeline import CELLS
from fingerprint_accel.training.module import TrainingModule

LARGEST = {"cuda": 8192, "cpu": 2048}  # side of the matrices
COPIED, COPIED_ON_GPU = 2**28, 2**30  # bytes, far more than any cache holds
ENOUGH = 0.02  # seconds from which a product is long enough to time; larger ones are not tried
COUNTED = 4  # prints in the batch whose operations are counted


def measure_ceilings(accelerator: Accelerator, seconds: float) -> dict[str, float]:
    """The best of several tries in about `seconds` each, all processes at once, summed over them.

    Returns:
        matmul_TYPE_tflops (a multiplication and an addition are two operations), device_copy_gb_per_second and
        host_copy_gb_per_second (bytes read plus bytes written; the latter one thread per process, as reading uses it).
    """
    device = accelerator.device
    found: dict[str, float] = {}
    for name in _types(device):
        accelerator.wait_for_everyone()
        found[f"matmul_{name}_tflops"] = total(accelerator, matmul_tflops(device, name, seconds))
    source, target = (np.ones(COPIED, np.uint8) for _ in range(2))  # written: untouched pages are all the same one
    copies = {
        "device": functools.partial(_device_copy, device, source, target),
        "host": functools.partial(_copy, device, lambda: np.copyto(target, source), COPIED),
    }
    for what, measure in copies.items():
        accelerator.wait_for_everyone()
        found[f"{what}_copy_gb_per_second"] = total(accelerator, measure(seconds))
    return found


def peak_name(device: torch.device, precision: str) -> str:
    """Which measured product is the ceiling of a training step: cuDNN convolves float32 as TF32 unless told not to."""
    if precision in ("bf16", "fp16"):
        return precision
    return "tf32" if device.type == "cuda" and "tf32" in _types(device) and torch.backends.cudnn.allow_tf32 else "fp32"


def _types(device: torch.device) -> tuple[str, ...]:
    if device.type != "cuda":
        return ("fp32", "bf16")
    ampere = torch.cuda.get_device_capability(device) >= (8, 0)
    return ("fp32", "tf32", "bf16", "fp16") if ampere else ("fp32", "fp16")


def matmul_tflops(device: torch.device, name: str, seconds: float) -> float:
    """Products of square matrices, 10^12 operations per second; larger ones as long as they are short."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    best, side = 0.0, 256
    try:
        while side <= LARGEST.get(device.type, 2048):
            a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
            result = torch.empty_like(a)
            spent = _shortest(device, lambda a=a, b=b, result=result: torch.mm(a, b, out=result), seconds / 4)
            best = max(best, 2 * side**3 / spent / 1e12)
            if spent > ENOUGH:
                break
            side *= 2
    finally:
        torch.set_float32_matmul_precision(before)
    return best


def _device_copy(device: torch.device, source: np.ndarray, target: np.ndarray, seconds: float) -> float:
    """From and to the device's own memory, which on a CPU is where `source` and `target` lie."""
    here, there = torch.from_numpy(source), torch.from_numpy(target)
    if device.type != "cpu":
        here, there = (torch.ones(COPIED_ON_GPU, dtype=torch.uint8, device=device) for _ in range(2))
    return _copy(device, lambda: there.copy_(here), here.numel(), seconds)


def _copy(device: torch.device, work: Callable[[], object], size: int, seconds: float) -> float:
    """GB/s of reading and writing `size` bytes."""
    return 2 * size / _shortest(device, work, seconds) / 1e9


def _shortest(device: torch.device, work: Callable[[], object], seconds: float) -> float:
    """Seconds of one call, the shortest of those that fit into `seconds`, at least two after a first one."""
    work()
    synchronize(device)
    shortest, calls, end = float("inf"), 0, time.perf_counter() + seconds
    while calls < 2 or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        synchronize(device)
        shortest, calls = min(shortest, time.perf_counter() - started), calls + 1
    return shortest


def flops_of(work: Callable[[], object]) -> int:
    """Operations of the convolutions and matrix products in `work`, backward included if it calls it."""
    with flop_counter() as counter:
        work()
    return counter.get_total_flops()


@functools.cache
def training_flops(config: Config, classes: int) -> float:
    """Operations per print of forward and backward through network and losses, float32, not compiled.

    Counted on tensors that have shapes but no memory, so it takes as long for any size. Preparation is not counted.
    """
    size, side = config.preprocess.size, MAP_SIZE
    with FakeTensorMode():
        model = DeepPrint(config.model, side)
        module = TrainingModule(model, DeepPrintLoss(config.loss, model, classes)).train()
        image, finger = torch.zeros(COUNTED, 1, size, size), torch.zeros(COUNTED, dtype=torch.int64)
        maps = torch.zeros(COUNTED, 6, side, side) if model.config.needs_minutia_maps else None
        there = torch.ones(COUNTED, dtype=torch.bool)
        truth = torch.zeros(COUNTED, 3), torch.zeros(COUNTED, CELLS, CELLS)
        return flops_of(lambda: module(image, finger, maps, there, 0.0, *truth)[0].backward()) / COUNTED
