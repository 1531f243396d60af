"""The stages of training, each measured alone and then together."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import torch
from timing import synchronize, timed

from fingerprint_accel.data.batch import Batch
from fingerprint_accel.data.loader import Subset, TrainingLoader
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.preprocess import pipeline
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.synthesis.source import RenderLoader
from fingerprint_accel.training.heads import draw_classes, put_classes_back
from fingerprint_accel.training.meters import GpuMonitor, Meters
from fingerprint_accel.training.module import StatisticsGuard
from fingerprint_accel.training.saving import Progress
from fingerprint_accel.training.schedule import Schedule
from fingerprint_accel.training.setup import Run
from fingerprint_accel.training.step import optimizer_step

READ_BATCH = 256
WARM_PRINTS = 32_768  # prints that are read at random: 3 GB of 320 x 320 canvases, which stay in memory
PART_ROUNDS = 5
PARTS = {  # function of the pipeline -> name in the table
    "_ink": "to ink",
    "sample_keys": "pose",
    "random_pose": "pose",
    "upright": "pose",
    "resample": "resample",
    "random_quality": "augment",
    "degrade": "augment",
    "move_minutiae": "minutia maps",
    "minutia_maps": "minutia maps",
    "local_normalize": "normalize",
}


def open_loader(run: Run, batch_size: int, position: int = 0) -> TrainingLoader | RenderLoader:
    """Open the micro-batches of this process as training reads them."""
    accelerator = run.accelerator
    return run.train.loader(
        run.order,
        batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        position,
    )


def resident_batch(run: Run) -> Batch:
    """Return a batch that stays on the device."""
    with open_loader(run, run.config.training.batch_size) as loader:
        batch = next(iter(loader))
        return dataclasses.replace(batch, image=batch.image.clone())


def _repeat(batch: Batch) -> Iterator[Batch]:
    """Yield the same batch for ever."""
    while True:
        yield batch


def not_here(stage: str, run: Run) -> str | None:
    """Return the reason why a stage does not apply to these prints, or None."""
    if stage not in ("raw", "decode"):
        return None
    if not isinstance(run.train, Subset):
        return "prints are rendered, not read"
    encoding = run.train.shards.info.encoding
    if (encoding == "lz4") != (stage == "decode"):
        return f"the dataset is stored {encoding}, see {'decode' if stage == 'raw' else 'raw'}"
    return None


def measure_read(run: Run, seconds: float) -> dict[str, Any]:
    """Measure random batches of 256 from warm shards to the loop, with minutiae and without further work."""
    accelerator, train, order = run.accelerator, run.train, run.order
    warm = 0
    if isinstance(train, Subset):
        train = Subset(train.shards, train.rows[:WARM_PRINTS], train.labels[:WARM_PRINTS])
        order = SampleOrder(len(train), run.config.training.seed)
        warm = -(-len(train) // (READ_BATCH * accelerator.num_processes))
    with open_loader(dataclasses.replace(run, train=train, order=order), READ_BATCH) as loader:
        batches = iter(loader)
        for _ in range(warm):
            next(batches)  # one epoch loads the files into memory
        return timed(accelerator, READ_BATCH, lambda: (next(batches), None)[1], seconds)


def measure_raw(run: Run, seconds: float) -> dict[str, Any]:
    """Measure `Shards.read` of 256 random rows into one buffer, in the calling thread."""
    assert isinstance(run.train, Subset)
    shards, accelerator = run.train.shards, run.accelerator
    rows = run.train.rows[:WARM_PRINTS]
    order = SampleOrder(len(rows), run.config.training.seed)
    step = READ_BATCH * accelerator.num_processes
    starts = np.arange(-(-len(rows) // step)) * step + READ_BATCH * accelerator.process_index
    batches = [np.sort(rows[order.take(int(start), READ_BATCH)[0]]) for start in starts]
    buffer = np.empty((READ_BATCH, shards.info.canvas, shards.info.canvas), np.uint8)
    for batch in batches:
        shards.read(batch, buffer)  # so that the files are in memory
    turn = 0

    def work() -> None:
        nonlocal turn
        shards.read(batches[turn % len(batches)], buffer)
        turn += 1

    return timed(accelerator, READ_BATCH, work, seconds)


def measure_prepare(run: Run, seconds: float) -> dict[str, Any]:
    """Measure augmentation, normalisation and minutia maps of a batch on the device.

    If preparation is not compiled, its parts are measured too.
    """
    batch, maps = resident_batch(run), run.bare.model.config.needs_minutia_maps
    result = timed(run.accelerator, len(batch), lambda: run.preprocessor(batch, augment=True, maps=maps), seconds * 0.7)
    if run.preprocessor.compiled:
        return result
    return {**result, "parts": prepare_parts(run.preprocessor, batch, maps, seconds * 0.3)}


def prepare_parts(preprocessor: Preprocessor, batch: Batch, maps: bool, seconds: float) -> dict[str, dict[str, float]]:
    """Measure the parts of preparing a batch.

    The pipeline is unchanged. A clock around each part waits for the device. `rest` is the time between the parts.

    Returns:
        `ms_per_batch` and `share` by part. The shares add up to 1.
    """
    device = batch.image.device
    spent = dict.fromkeys(PARTS.values(), 0.0)

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            synchronize(device)
            started = time.perf_counter()
            result = function(*arguments, **named)
            synchronize(device)
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - started
            return result

        return call

    with ExitStack() as stack:
        for name, part in PARTS.items():
            stack.enter_context(mock.patch.object(pipeline, name, clocked(part, getattr(pipeline, name))))
        if preprocessor.enhancer is not None:
            enhancer = preprocessor.enhancer
            stack.enter_context(mock.patch.object(enhancer, "forward", clocked("enhance", enhancer.forward)))
        preprocessor(batch, augment=True, maps=maps)  # warm up
        spent.update(dict.fromkeys(spent, 0.0))
        calls, started = 0, time.perf_counter()
        while calls < PART_ROUNDS or time.perf_counter() - started < seconds:
            preprocessor(batch, augment=True, maps=maps)
            synchronize(device)
            calls += 1
        whole = time.perf_counter() - started
    found = {part: value for part, value in spent.items() if value > 0}
    found["rest"] = max(0.0, whole - sum(found.values()))
    return {
        part: {"ms_per_batch": 1000 * value / calls, "share": value / sum(found.values())}
        for part, value in found.items()
    }


def stepper(run: Run, batches: Iterator[Batch], moves: bool = False) -> Callable[[], None]:
    """Return a function that runs an optimizer step at full augmentation and margin.

    With `moves`, each step gets the next prints.
    """
    meters, progress, guard = Meters(run.accelerator.device), Progress(), StatisticsGuard(run.bare)
    full = Schedule(run.config.training.learning_rate, 1.0, run.config.loss.margin)
    run.module.train()

    def work() -> None:
        guard.step(optimizer_step(run, batches, full, meters, progress))
        progress.step += 1
        progress.position += run.samples_per_step if moves else 0

    return work


def _prints_here(run: Run) -> int:
    """Return the prints of this process in a step."""
    return run.samples_per_step // run.accelerator.num_processes


def measure_step(run: Run, seconds: float) -> dict[str, Any]:
    """Measure preparation, network, losses, backward pass and optimizer on one resident batch."""
    return timed(run.accelerator, _prints_here(run), stepper(run, _repeat(resident_batch(run))), seconds)


def measure_train(run: Run, seconds: float) -> dict[str, Any]:
    """Measure training steps that are fed by the reading thread.

    The results include the share of time spent waiting for data, and how busy the GPU is (NVML).
    """
    with open_loader(run, run.config.training.batch_size) as loader, GpuMonitor(run.accelerator.device) as monitor:
        work = stepper(run, iter(loader), moves=True)
        work()  # may compile, which the monitor must not count
        synchronize(run.accelerator.device)
        monitor.window()
        found = timed(run.accelerator, _prints_here(run), work, seconds, lambda: loader.waited)
        return {**found, **monitor.window()}


MEASURES: dict[str, Callable[[Run, float], dict[str, Any]]] = {
    "read": measure_read,
    "raw": measure_raw,
    "decode": measure_raw,  # on compressed shards, raw reading decodes
    "prepare": measure_prepare,
    "step": measure_step,
    "train": measure_train,
}


def try_one_step(run: Run) -> None:
    """Run a forward and backward pass on this process alone, with memory reserved for the optimizer state.

    A process that runs out of memory inside a step would leave the others waiting. Here no process waits.
    """
    batch = resident_batch(run)
    room = [torch.empty_like(parameter) for parameter in run.bare.parameters() for _ in range(2)]
    image, maps = run.preprocessor(batch, augment=True, maps=run.bare.model.config.needs_minutia_maps)
    truth = run.preprocessor.truth(batch, augment=True)
    draw_classes(run, position=0)
    with run.accelerator.autocast():
        loss = run.bare(image, batch.finger, maps, batch.minutia_count > 0, 0.0, *truth)[0]
    loss.backward()
    run.bare.zero_grad()
    put_classes_back(run)
    del room
