"""Compare the model of communication behind `fingerprint-accel plan` with counted collectives and measured steps.

python benchmarks/scaling.py --out scaling.json        # as root, for network namespaces; needs no GPU
python benchmarks/scaling.py --stages target

- counts: collectives of a step and their bytes, by the model and in two processes
- overlap: share of the backward pass after which each bucket of gradients of DeepPrint is ready, by the model and on a
  CPU
- steps: duration of a step, by the model and of several processes in a network of limited bandwidth
- target: projected speed of A100 GPUs beside the target of the project; this stage measures nothing
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores
os.environ["ACCELERATE_USE_CPU"] = "true"

import scaling_run
import torch
import tyro
from machine import machine, versions
from network_namespaces import GOODPUT, on_network
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.plan import MFU, MODEL, RECIPES, SIZE
from fingerprint_accel.plan_devices import DEVICES, Cluster, Link, ethernet
from fingerprint_accel.plan_network import Counted, count
from fingerprint_accel.plan_scaling import Collective, collectives, step
from fingerprint_accel.synthesis.writing import write_synthetic_dataset
from fingerprint_accel.text import aligned

Stage = Literal["counts", "overlap", "steps", "target"]
FINGERS = 24
FAST = 10_000  # Mbit/s, where the network does not matter
TARGET = {1: 1_000, 4: 3_500, 8: 6_500}  # prints/s of A100
EPOCH = 1_000_000  # prints
COMPILED = 3_597  # prints/s of Tex on an H200, compiled, at a batch size of 512: benchmarks/results/h200/tex.json
MEMORY_BANDWIDTH = {"A100-80": 2_039e9, "H200": 4_800e9}  # bytes per second in the data sheets


def counts(folder: Path) -> list[dict[str, Any]]:
    """Compare the collectives of a step with those of two processes."""
    rows = []
    for name, change in scaling_run.VARIATIONS.items():
        config = change(scaling_run.configuration(folder / "prints", folder / name, True, steps=4))
        found = on_network(2, FAST, functools.partial(recorded, config, 0.0, True))
        modelled = collectives(count(config.model, scaling_run.SIZE), config, FINGERS, 2)
        rows.append(
            {
                "heads": name,
                "modelled": [(each.kind, each.size) for each in modelled],
                "counted": [tuple(each) for each in found["collectives"]],
            }
        )
    return rows


def recorded(config: Any, paused: float, counted: bool) -> dict[str, Any]:
    """Train in this process, and return what the steps did."""
    return asdict(scaling_run.train(config, paused, counted))


def counts_table(rows: list[dict[str, Any]]) -> str:
    """Format the result of `counts`."""
    cells: list[tuple[str, ...]] = [("heads", "collectives modelled", "counted", "bytes modelled", "counted", "equal")]
    for row in rows:
        both = row["modelled"], row["counted"]
        numbers = tuple(f"{len(each)}" for each in both)
        sizes = tuple(f"{sum(size for _, size in each):,}" for each in both)
        cells.append((row["heads"], *numbers, *sizes, "yes" if both[0] == both[1] else "NO"))
    return aligned(cells, words=1)


def overlap() -> list[dict[str, Any]]:
    """Compare when buckets of gradients of DeepPrint are ready, in shares of the backward pass."""
    config = RECIPES[0].config(MODEL)
    found = on_network(1, FAST, functools.partial(scaling_run.ready_buckets, config, SIZE))
    operations = collectives(count(MODEL, SIZE), config, scaling_run.TWO, 2)
    modelled = [operation for operation in operations if operation.purpose == "gradients"]
    return [
        {"bytes": size, "modelled": bucket.ready, "measured": share, "modelled bytes": bucket.size}
        for bucket, (size, share) in zip(modelled, found["buckets"], strict=True)
    ] + [{"bytes": 0, "modelled": scaling_run.FORWARD, "measured": found["forward"], "modelled bytes": 0}]


def overlap_table(rows: list[dict[str, Any]]) -> str:
    """Format the result of `overlap`."""
    cells: list[tuple[str, ...]] = [("bucket", "MB modelled", "MB counted", "ready at, modelled", "measured")]
    for number, row in enumerate(rows[:-1], 1):
        sizes = row["modelled bytes"] / 1e6, row["bytes"] / 1e6
        cells.append((str(number), *(f"{size:.1f}" for size in sizes), *_shares(row)))
    return aligned([*cells, ("forward pass", "-", "-", *_shares(rows[-1]))], words=1)


def _shares(row: dict[str, Any]) -> tuple[str, str]:
    return f"{100 * row['modelled']:.0f} %", f"{100 * row['measured']:.0f} %"


def steps(
    folder: Path, processes: tuple[int, ...], megabits: tuple[float, ...], paused: float, number: int
) -> list[dict[str, Any]]:
    """Compare the duration of steps with the model, in networks of limited bandwidth."""
    cases = [(sharded, rate, size) for sharded in (False, True) for rate in megabits for size in processes]
    rows: list[dict[str, Any]] = []
    for sharded, rate, size in tqdm(cases, unit="case"):
        with tempfile.TemporaryDirectory(dir=folder) as out:
            config = scaling_run.configuration(folder / "prints", Path(out) / "run", sharded, number)
            found = on_network(size, rate, functools.partial(recorded, config, paused, False))
        heads = "sharded" if sharded else "full"
        row = {"heads": heads, "mbit": rate, "processes": size, "measured": statistics.median(found["seconds"])}
        rows.append({**row, "rounds": found["seconds"], "latency": found["latency"]})
    known: dict[bool, Counted] = {}
    for row in rows:
        same = [other for other in rows if (other["heads"], other["mbit"]) == (row["heads"], row["mbit"])]
        config = scaling_run.configuration(folder / "prints", folder / "run", row["heads"] == "sharded", number)
        counted = known.setdefault(True, count(config.model, scaling_run.SIZE))
        compute = next(other["measured"] for other in same if other["processes"] == 1)
        latency = next((other["latency"] for other in same if other["processes"] == 2), 0.0)
        link = Link("tc", row["mbit"] * 1e6 / 8 * GOODPUT, latency)
        operations = collectives(counted, config, FINGERS, row["processes"])
        found = step(compute, operations, Cluster(row["processes"], 1, link, link, launch=0.0))
        row |= {"modelled": found.seconds, "communication": found.communication, "waiting": found.waiting}
    return rows


def steps_table(rows: list[dict[str, Any]]) -> str:
    """Format the result of `steps`."""
    cells = [
        ("heads", "Mbit/s", "processes", "communication, s", "waiting, s", "step modelled, s", "measured, s", "error")
    ]
    for row in rows:
        seconds = (f"{row[name]:.3f}" for name in ("communication", "waiting", "modelled", "measured"))
        error = f"{100 * (row['modelled'] / row['measured'] - 1):+.1f} %"
        cells.append((row["heads"], f"{row['mbit']:g}", str(row["processes"]), *seconds, error))
    return aligned(cells, words=1)


def target() -> list[dict[str, Any]]:
    """Project the speed of 1, 4 and 8 A100 with 80 GB."""
    device = DEVICES["A100-80"]
    tex, both = count(replace(MODEL, variant="Tex"), SIZE), count(MODEL, SIZE)
    compiled = {
        "by bf16 peak": COMPILED * device.tflops / DEVICES["H200"].tflops,
        "by memory bandwidth": COMPILED * MEMORY_BANDWIDTH["A100-80"] / MEMORY_BANDWIDTH["H200"],
    }
    speeds = [
        ("TexMinu, not compiled, by bf16 peak", both, device.tflops * 1e12 * MFU / both.flops),
        ("Tex, not compiled, by bf16 peak", tex, device.tflops * 1e12 * MFU / tex.flops),
        *((f"Tex, compiled, {how}", tex, speed) for how, speed in compiled.items()),
    ]
    recipe, rows = next(recipe for recipe in RECIPES if recipe.name == "train_1m.py"), []
    for name, counted, speed in speeds:
        for devices in TARGET:
            cluster = Cluster(1, devices, device.link, ethernet(100))
            operations: list[Collective] = collectives(counted, recipe.config(MODEL), EPOCH // 10, devices)
            found = step(recipe.batch_size / speed, operations, cluster)
            rate = devices * recipe.batch_size / found.seconds
            row = {"network": name, "gpus": devices, "rate": rate, "efficiency": found.efficiency}
            rows.append({**row, "minutes": EPOCH / rate / 60, "target": TARGET[devices]})
    return rows


def target_table(rows: list[dict[str, Any]]) -> str:
    """Format the result of `target`."""
    cells = [("network and assumption", "A100", "prints/s", "minutes/epoch", "efficiency", "target, prints/s")]
    for row in rows:
        numbers = f"{row['rate']:,.0f}", f"{row['minutes']:.1f}", f"{100 * row['efficiency']:.1f} %"
        cells.append((row["network"], str(row["gpus"]), *numbers, f"{row['target']:,}"))
    return aligned(cells, words=1)


def main(
    stages: tuple[Stage, ...] = ("counts", "overlap", "steps", "target"),
    processes: tuple[int, ...] = (1, 2, 4, 8),
    megabits: tuple[float, ...] = (50, 200),
    pause: float = 1.5,
    number: int = 9,
    out: Path | None = None,
) -> None:
    """Compare the model of communication with counts and measurements.

    Args:
        stages: Stages to run.
        processes: Numbers of processes of the stage `steps`; the first must be 1.
        megabits: What each process can send, in Mbit/s.
        pause: Seconds for which the layers of the network pause in each step, as if they computed.
        number: Steps of each run; the first four are not timed.
        out: JSON file to write.
    """
    check_results(out)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"counts", "steps"}.intersection(stages):
            on_network(1, FAST, functools.partial(_prints, folder / "prints"))
        work: dict[Stage, tuple[Callable[[], list[dict[str, Any]]], Callable[[list[dict[str, Any]]], str]]] = {
            "steps": (lambda: steps(folder, processes, megabits, pause, number), steps_table),
            "counts": (lambda: counts(folder), counts_table),
            "overlap": (overlap, overlap_table),
            "target": (target, target_table),
        }
        for stage, (measure, table) in work.items():
            if stage in stages:
                results[stage] = measure()
                print(f"\n{stage}\n{table(results[stage])}", flush=True)
    if out:
        setting = {**machine(torch.device("cpu")), **versions(), "command": " ".join(["python", *sys.argv])}
        write_results(out, {"results": results, "setting": setting})
        print(f"written to {out}")


def _prints(folder: Path) -> None:
    write_synthetic_dataset(folder, FINGERS, 4, seed=3, workers=1, progress=False)


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
