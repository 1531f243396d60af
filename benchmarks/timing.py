"""Rates over all processes, measured in rounds, and the peak of memory."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fingerprint_accel.training.meters import peak_memory_mb

ROUNDS = 5
WARM = 2  # calls before the clock starts: they choose kernels, compile code and read pages
NO_GRAPH = (0, 0)  # the pool of CUDA's allocator that belongs to no graph
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of `peak_memory` to the present use, where the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")


def held_by_graphs_mb() -> float:
    """Return the MB that CUDA graphs reserve. Replays allocate nothing, so that no peak includes them."""
    segments = torch.cuda.memory_snapshot()
    held = (segment["total_size"] for segment in segments if segment["segment_pool_id"] != NO_GRAPH)
    return sum(held) / 1e6


def peak_memory(accelerator: Accelerator) -> float:
    """Return the MB of the process that used most: GPU memory, or resident memory (with pages of shards) on a CPU."""
    here = peak_memory_mb(accelerator.device)
    if accelerator.device.type == "cuda":
        here += held_by_graphs_mb()
    elif STATUS.exists():
        lines = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        here = int(lines[0].split()[1]) / 1e3 if lines else here
    return float(accelerator.gather(torch.tensor([here], device=accelerator.device)).max())


def total(accelerator: Accelerator, value: float) -> float:
    """Return the sum of a number over all processes."""
    if accelerator.num_processes == 1:
        return value
    return float(accelerator.reduce(torch.tensor(value, device=accelerator.device), "sum"))


def timed(
    accelerator: Accelerator,
    prints: int,
    work: Callable[[], object],
    seconds: float,
    waited: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Repeat `work` for about `seconds` in `ROUNDS` rounds.

    Args:
        accelerator: Accelerator of the participating processes.
        prints: Prints that a call of `work` processes in this process.
        work: The function to time.
        seconds: Total duration.
        waited: Returns the seconds spent waiting for data so far.

    Returns:
        `samples_per_second` (median of the rounds, over all processes), `slowest_round`, `fastest_round`, `rounds`,
        `peak_memory_mb` and, with `waited`, `data_wait_share`.
    """
    device = accelerator.device
    for _ in range(WARM):
        work()
    synchronize(device)
    reset_peak_memory(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    once = total(accelerator, time.perf_counter() - started) / accelerator.num_processes  # ranks must agree
    repeats = max(1, int(seconds / ROUNDS / max(1e-9, once)))
    rates, in_all, waited_before = [], 0.0, waited() if waited else 0.0
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(device)
        spent = time.perf_counter() - started
        in_all += spent
        rates.append(total(accelerator, prints * repeats / spent))
    result = {**spread(rates), "peak_memory_mb": peak_memory(accelerator)}
    if waited:
        result["data_wait_share"] = min(1.0, (waited() - waited_before) / in_all)
    return result


def spread(rates: list[float]) -> dict[str, Any]:
    """Return median, slowest and fastest of the rounds, and each of them."""
    return {
        "samples_per_second": statistics.median(rates),
        "slowest_round": min(rates),
        "fastest_round": max(rates),
        "rounds": rates,
    }
