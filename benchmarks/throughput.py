"""Prints per second of reading, of preparation on the device, of the training step, and of training end to end.

accelerate launch benchmarks/throughput.py --data DATASET --out FILE.json
accelerate launch benchmarks/throughput.py --data DATASET --model.variant LocTexMinu --stages step,train --out FILE.json
"""

import dataclasses
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import device_name

from fingerprint_accel.config import Config, ReadingConfig, TrainingConfig, parse
from fingerprint_accel.data.batch import Batch
from fingerprint_accel.data.loader import TrainingLoader
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.synthesis.source import RenderLoader
from fingerprint_accel.training.meters import Meters, peak_memory_mb
from fingerprint_accel.training.resume import Progress
from fingerprint_accel.training.schedule import Pace
from fingerprint_accel.training.setup import Run, set_up
from fingerprint_accel.training.step import optimizer_step

STAGES = ("read", "prepare", "step", "train")
READ_BATCH = 256
ROUNDS = 5


def _take(words: list[str], option: str, default: str) -> str:
    """Removes `--option VALUE` from the command line and returns VALUE."""
    if option not in words:
        return default
    position = words.index(option)
    if position + 1 >= len(words):
        raise UserError(f"{option}: needs a value")
    value = words[position + 1]
    del words[position : position + 2]
    return value


def _synchronize(run: Run) -> None:
    if run.accelerator.device.type == "cuda":
        torch.cuda.synchronize()


def timed(run: Run, prints: int, work: Callable[[], None], seconds: float) -> dict[str, float]:
    """Repeats `work` (`prints` over all processes) for about `seconds`; prints/s is the median of ROUNDS rounds."""
    work()  # warm: kernels chosen, pages read
    _synchronize(run)
    started = time.perf_counter()
    work()
    _synchronize(run)
    repeats = max(1, int(seconds / ROUNDS / max(1e-9, time.perf_counter() - started)))
    if run.accelerator.num_processes > 1:  # ranks must agree, or gradient averaging waits for ever
        repeats = int(run.accelerator.reduce(torch.tensor(repeats, device=run.accelerator.device), "sum").item())
        repeats = max(1, repeats // run.accelerator.num_processes)
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        _synchronize(run)
        rates.append(prints * repeats / (time.perf_counter() - started))
    return {
        "samples_per_second": statistics.median(rates),
        "slowest_round": min(rates),
        "fastest_round": max(rates),
        "peak_memory_mb": peak_memory_mb(run.accelerator.device),
    }


def _loader(run: Run, batch_size: int) -> TrainingLoader | RenderLoader:
    accelerator = run.accelerator
    return run.train.loader(
        run.order,
        batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        prefetch=run.config.reading.prefetch,
    )


def _resident_batch(run: Run) -> Batch:
    with _loader(run, run.config.training.batch_size) as loader:
        batch = next(iter(loader))
        return dataclasses.replace(batch, image=batch.image.clone())


def _repeat(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


def measure_read(run: Run, seconds: float) -> dict[str, float]:
    """Random batches of 256 from warm shards to the loop, nothing done with them."""
    with _loader(run, READ_BATCH) as loader:
        batches = iter(loader)
        for _ in range(-(-len(run.train) // (READ_BATCH * run.accelerator.num_processes))):
            next(batches)  # one epoch, so that the files are in memory
        return timed(run, READ_BATCH * run.accelerator.num_processes, lambda: (next(batches), None)[1], seconds)


def measure_prepare(run: Run, seconds: float) -> dict[str, float]:
    """Augmentation, normalisation and minutia maps of a batch on the device."""
    batch = _resident_batch(run)
    maps = run.bare.model.needs_minutia_maps

    def work() -> None:
        run.preprocessor(batch, augment=True, maps=maps)

    return timed(run, len(batch) * run.accelerator.num_processes, work, seconds)


def _measure_steps(run: Run, batches: Iterator[Batch], seconds: float) -> dict[str, float]:
    meters, progress = Meters(run.accelerator.device), Progress()
    full = Pace(run.config.training.learning_rate, 1.0, run.config.loss.margin)
    run.module.train()

    def work() -> None:
        optimizer_step(run, batches, full, meters, progress)
        progress.step += 1

    return timed(run, run.samples_per_step, work, seconds)


def measure_step(run: Run, seconds: float) -> dict[str, float]:
    """Preparation, network, losses, backward and optimizer on one resident batch."""
    return _measure_steps(run, _repeat(_resident_batch(run)), seconds)


def measure_train(run: Run, seconds: float) -> dict[str, float]:
    """The same fed by the reading thread; the share of time spent waiting for it."""
    with _loader(run, run.config.training.batch_size) as loader:
        started = time.perf_counter()
        result = _measure_steps(run, iter(loader), seconds)
        result["data_wait_share"] = loader.waited / (time.perf_counter() - started)
    return result


MEASURES = {"read": measure_read, "prepare": measure_prepare, "step": measure_step, "train": measure_train}


def describe(run: Run) -> dict[str, Any]:
    """Machine, versions and what was run."""
    accelerator, config = run.accelerator, run.config
    return {
        "device": device_name(accelerator.device),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "model": f"{config.model.variant} {config.model.trunk}",
        "input": config.preprocess.size,
        "batch_size": config.training.batch_size,
        "prints": len(run.train),
        "canvas": run.train.info.canvas,
        "command": " ".join(sys.argv),
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as aligned text."""
    lines = [f"\n{'stage':<10}{'prints/s':>12}{'slowest':>12}{'fastest':>12}{'data wait':>12}{'peak MB':>10}"]
    for stage, row in results.items():
        rates = [row[name] for name in ("samples_per_second", "slowest_round", "fastest_round")]
        wait = f"{row['data_wait_share']:.1%}" if "data_wait_share" in row else "-"
        cells = "".join(f"{rate:>12,.0f}" if rate >= 100 else f"{rate:>12.1f}" for rate in rates)
        lines.append(f"{stage:<10}{cells}{wait:>12}{row['peak_memory_mb']:>10,.0f}")
    return "\n".join(lines)


def main() -> None:
    """Measures the chosen stages, prints a table, writes JSON."""
    words = sys.argv[1:]
    stages = _take(words, "--stages", ",".join(STAGES)).split(",")
    out = _take(words, "--out", "")
    seconds = float(_take(words, "--seconds", "20"))
    unknown = [stage for stage in stages if stage not in MEASURES]
    if unknown:
        raise UserError(f"--stages {unknown[0]}: there are {', '.join(STAGES)}")
    defaults = Config(
        reading=ReadingConfig(validation_fraction=0.0), training=TrainingConfig(batch_size=32, tracker="none")
    )
    help_text = (__doc__ or "") + "\n--stages read,prepare,step,train  --seconds 20 (per stage)  --out FILE.json"
    config = parse(defaults, help_text, words)
    with tempfile.TemporaryDirectory() as scratch:
        run = set_up(dataclasses.replace(config, out=scratch))
    results: dict[str, Any] = {stage: MEASURES[stage](run, seconds) for stage in stages}
    if not run.accelerator.is_main_process:
        return
    print(table(results))
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps({**results, "setting": describe(run)}, indent=2) + "\n")
        print(f"written to {out}")


if __name__ == "__main__":
    with one_line_errors():
        main()
