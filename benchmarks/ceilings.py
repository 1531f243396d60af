"""Measure the ceilings of the machine (matrix products, copies), and count the operations of a network."""

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
from fingerprint_accel.plan_network import flop_counter
from fingerprint_accel.preprocess.minutia_map import MAP_SIZE
from fingerprint_accel.preprocess.pipeline import CELLS
from fingerprint_accel.training.module import TrainingModule

LARGEST = {"cuda": 8192, "cpu": 2048}  # side of the matrices
COPIED, COPIED_ON_GPU = 2**28, 2**30  # bytes, far more than a cache holds
ENOUGH = 0.02  # seconds: a product of this duration is long enough to time, and no larger one is tried
COUNTED = 4  # prints in the batch whose operations are counted


def measure_ceilings(accelerator: Accelerator, seconds: float) -> dict[str, float]:
    """Measure each ceiling for about `seconds`, on all processes at once, and sum over processes.

    Returns:
        `matmul_TYPE_tflops` (a multiplication and an addition count as two operations), `device_copy_gb_per_second` and
        `host_copy_gb_per_second` (bytes read plus bytes written; the host copy uses one thread for each process, as
        reading does).
    """
    device = accelerator.device
    found: dict[str, float] = {}
    for name in _types(device):
        accelerator.wait_for_everyone()
        found[f"matmul_{name}_tflops"] = total(accelerator, matmul_tflops(device, name, seconds))
    source, target = (np.ones(COPIED, np.uint8) for _ in range(2))  # unwritten pages share one page of memory
    copies = {
        "device": functools.partial(_device_copy, device, source, target),
        "host": functools.partial(_copy, device, lambda: np.copyto(target, source), COPIED),
    }
    for what, measure in copies.items():
        accelerator.wait_for_everyone()
        found[f"{what}_copy_gb_per_second"] = total(accelerator, measure(seconds))
    return found


def peak_name(device: torch.device, precision: str) -> str:
    """Return the product that is the ceiling of a training step. cuDNN convolves float32 as TF32 by default."""
    if precision in ("bf16", "fp16"):
        return precision
    return "tf32" if device.type == "cuda" and "tf32" in _types(device) and torch.backends.cudnn.allow_tf32 else "fp32"


def _types(device: torch.device) -> tuple[str, ...]:
    if device.type != "cuda":
        return ("fp32", "bf16")
    ampere = torch.cuda.get_device_capability(device) >= (8, 0)
    return ("fp32", "tf32", "bf16", "fp16") if ampere else ("fp32", "fp16")


def matmul_tflops(device: torch.device, name: str, seconds: float) -> float:
    """Measure products of square matrices, in 10^12 operations per second. Sizes grow while a product is short.

    On a CPU, a convolution of 3 x 3 pixels is measured too. PyTorch computes it with oneDNN, and the product of two
    matrices with MKL, which does not use AVX-512 on processors of AMD.
    """
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    best, side = 0.0, 256
    try:
        while side <= LARGEST.get(device.type, 2048):
            a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
            result = torch.empty_like(a)
            spent = _shortest(device, functools.partial(torch.mm, a, b, out=result), seconds / 4)
            best = max(best, 2 * side**3 / spent / 1e12)
            if spent > ENOUGH:
                break
            side *= 2
        if device.type == "cpu":
            best = max(best, _convolution_tflops(kind, seconds / 4))
    finally:
        torch.set_float32_matmul_precision(before)
    return best


def _convolution_tflops(kind: torch.dtype, seconds: float) -> float:
    """Measure a convolution of 3 x 3 pixels on the CPU, in 10^12 operations per second."""
    device, channels, side, prints = torch.device("cpu"), 256, 32, 16
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, dtype=kind)
    layer = layer.to(memory_format=torch.channels_last)
    images = torch.randn(prints, channels, side, side).to(kind, memory_format=torch.channels_last)
    with torch.inference_mode():
        spent = _shortest(device, functools.partial(layer, images), seconds)
    return 2 * 9 * channels**2 * side**2 * prints / spent / 1e12


def _device_copy(device: torch.device, source: np.ndarray, target: np.ndarray, seconds: float) -> float:
    """Measure copies within the memory of the device. On a CPU, `source` and `target` are copied."""
    here, there = torch.from_numpy(source), torch.from_numpy(target)
    if device.type != "cpu":
        here, there = (torch.ones(COPIED_ON_GPU, dtype=torch.uint8, device=device) for _ in range(2))
    return _copy(device, lambda: there.copy_(here), here.numel(), seconds)


def _copy(device: torch.device, work: Callable[[], object], size: int, seconds: float) -> float:
    """Return GB/s of reading and writing `size` bytes."""
    return 2 * size / _shortest(device, work, seconds) / 1e9


def _shortest(device: torch.device, work: Callable[[], object], seconds: float) -> float:
    """Return the shortest duration of a call in seconds. Calls are repeated for `seconds`, at least twice."""
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
    """Count the operations of the convolutions and matrix products in `work`, including a backward pass."""
    with flop_counter() as counter:
        work()
    return counter.get_total_flops()


@functools.cache
def training_flops(config: Config, classes: int) -> float:
    """Count the operations per print of a forward and backward pass through network and losses.

    Tensors have shapes but no memory, so that counting takes equally long for any size. Preparation is not counted.
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
