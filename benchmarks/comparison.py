"""Train in the plain way (`reference.py`) and in ours, in alternating rounds on the same machine."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import usable_cores
from PIL import Image
from reference import Clock, PrintFiles
from stages import open_loader, prepare_parts, stepper
from timing import ROUNDS, spread, synchronize
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from fingerprint_accel.config import Config
from fingerprint_accel.data.batch import Batch
from fingerprint_accel.data.loader import Subset
from fingerprint_accel.errors import UserError
from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.training.module import TrainingModule
from fingerprint_accel.training.setup import Run

BATCH = 16
MOST_FILES = 2000  # prints written as PNG; the reference sees far fewer in a round
BATCHES_PER_WORKER = 2  # in a round, at least
PREFETCH = 2  # batches per worker, as DataLoader does by default
EPOCHS_OF = (500_000, 1_000_000, 1_500_000)
DEVICES = (1, 4, 8)
ASSUMPTION = (
    "projected, not measured: the end-to-end rate of this one device times the number of devices (linear scaling), "
    "with as many cores beside each of them as here; no validation or saving"
)


@dataclass
class Reference:
    """The plain way, ready to train: float32, contiguous memory, not compiled, Adam."""

    files: PrintFiles
    module: TrainingModule
    optimizer: torch.optim.Adam
    device: torch.device
    workers: int


def write_files(run: Run, folder: Path) -> PrintFiles:
    """Write the prints of a dataset as PNG files, at most `MOST_FILES`, with the labels that the reference needs.

    Raises:
        UserError: The data is not a dataset folder.
    """
    train = run.train
    if not isinstance(train, Subset):
        raise UserError(f"--compare needs a dataset folder, not --data {run.config.data}")
    rows = train.rows[:MOST_FILES]
    minutiae, counts = train.shards.minutiae(rows)
    paths = []
    image = torch.empty(1, train.info.canvas, train.info.canvas, dtype=torch.uint8).numpy()
    for place, row in enumerate(tqdm(rows, desc="writing PNG files", unit="print", leave=False, disable=None)):
        train.shards.read(rows[place : place + 1], image)
        paths.append(folder / f"{row:08d}.png")
        Image.fromarray(image[0]).save(paths[-1])
    kept = [found[:count] for found, count in zip(minutiae, counts, strict=True)]
    return PrintFiles(paths, train.labels[: len(rows)], kept, run.config.preprocess)


def make_reference(run: Run, files: PrintFiles, workers: int) -> Reference:
    """Build the same network and losses as ours, in plain PyTorch."""
    config = run.config
    torch.manual_seed(config.training.seed)
    model = DeepPrint(config.model)
    loss = DeepPrintLoss(config.loss, model, run.train.classes)
    module = TrainingModule(model, loss).to(run.accelerator.device).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=config.training.learning_rate)
    return Reference(files, module, optimizer, run.accelerator.device, workers or usable_cores())


def reference_step(reference: Reference, batch: list[torch.Tensor]) -> float:
    """Run forward, backward and update. Return the loss, which waits for the device."""
    image, finger, maps, there = (values.to(reference.device) for values in batch)
    loss, _, embeddings = reference.module(image, finger, maps, there)
    reference.optimizer.zero_grad()
    loss.backward()
    reference.optimizer.step()
    if reference.module.loss.config.center_weight > 0:
        reference.module.loss.update_centers(embeddings, finger)
    return loss.item()


def reference_epoch(reference: Reference, batches: int) -> dict[str, float]:
    """Run a short epoch with new worker processes. The clock starts when the workers have started."""
    sampler = RandomSampler(reference.files, replacement=True, num_samples=BATCH * batches)
    loader = DataLoader(
        reference.files, BATCH, sampler=sampler, num_workers=reference.workers, prefetch_factor=PREFETCH
    )
    started = time.perf_counter()
    stream = iter(loader)
    begun = time.perf_counter()
    waited = 0.0
    for _ in range(batches):
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        reference_step(reference, batch)
    spent = time.perf_counter() - begun
    return {"rate": BATCH * batches / spent, "wait": waited / spent, "start": begun - started, "seconds": spent}


def our_round(run: Run, seconds: float) -> dict[str, float]:
    """Train as `--stages train` measures it."""
    device = run.accelerator.device
    with open_loader(run, run.config.training.batch_size) as loader:
        work = stepper(run, iter(loader))
        work()
        synchronize(device)
        before, started, steps = loader.waited, time.perf_counter(), 0
        while time.perf_counter() - started < seconds or steps < 2:
            work()
            steps += 1
            if steps % 8 == 0:  # a GPU works asynchronously: wait for it now and then
                synchronize(device)
        synchronize(device)
        spent = time.perf_counter() - started
        return {"rate": steps * run.samples_per_step / spent, "wait": (loader.waited - before) / spent}


def compare_training(run: Run, reference: Reference, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Alternate rounds of the reference and of ours, and return the rates of both."""
    fewest = BATCHES_PER_WORKER * reference.workers
    batches = max(fewest, int(seconds / ROUNDS * reference_epoch(reference, fewest)["rate"] / BATCH))
    our_round(run, 0.0)  # warm up
    plain, ours = [], []
    for _ in tqdm(range(ROUNDS), desc="in turns", unit="round", leave=False, disable=None):
        plain.append(reference_epoch(reference, batches))
        ours.append(our_round(run, seconds / ROUNDS))
    theirs = {
        **_of_rounds(plain), "worker_start_seconds": statistics.median(part["start"] for part in plain),
        "workers": reference.workers, "batch_size": BATCH, "precision": "no",
    }  # fmt: skip
    training = run.config.training
    settings = {"batch_size": training.batch_size, "precision": run.accelerator.mixed_precision}
    return theirs, {**_of_rounds(ours), **settings, "compile": training.compile}


def _of_rounds(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Summarise the rounds of one side."""
    return {
        **spread([part["rate"] for part in rounds]),
        "data_wait_share": min(1.0, statistics.median(part["wait"] for part in rounds)),
    }


def compare_preprocessing(run: Run, files: PrintFiles, seconds: float) -> dict[str, dict[str, Any]]:
    """Measure preparation on one core: reference, ours, and ours with our filter bank.

    Returns:
        Prints per second, and milliseconds per print by part, of each of the three.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sides = {"reference": _plain_rounds(files, seconds)}
        batch = _cpu_batch(run)
        for name, bank in (("ours", run.config.preprocess.enhance), ("ours_with_filter_bank", True)):
            sides[name] = _our_rounds(run.config, batch, run.train.info.ppi, bank, seconds)
        # alternate, so that changes of the machine affect all sides alike
        measured = [{name: next(rounds) for name, rounds in sides.items()} for _ in range(ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    found: dict[str, dict[str, Any]] = {}
    for name in sides:
        parts = [turn[name] for turn in measured]
        middle = {key: statistics.median(part[key] for part in parts) for key in parts[0]}
        found[name] = {**spread([1000 / sum(part.values()) for part in parts]), "ms_per_print": middle}
    return found


def _cpu_batch(run: Run) -> Batch:
    """Read one batch to the CPU."""
    assert isinstance(run.train, Subset)
    samples, epochs = run.order.take(0, min(BATCH, run.config.training.batch_size))
    return run.train.read(samples, epochs)


def _plain_rounds(files: PrintFiles, seconds: float) -> Iterator[dict[str, float]]:
    """Yield milliseconds per print by part, round after round."""
    place = 0
    files.prepare(0, Clock())  # warm up
    while True:
        clock, started, prints = Clock(), time.perf_counter(), 0
        while prints < 2 or time.perf_counter() - started < seconds / ROUNDS:
            files.prepare(place % len(files), clock)
            place, prints = place + 1, prints + 1
        yield {part: 1000 * spent / prints for part, spent in clock.seconds.items()}


def _our_rounds(config: Config, batch: Batch, ppi: int, bank: bool, seconds: float) -> Iterator[dict[str, float]]:
    """Yield the same for our preparation of whole batches, minutia maps included, as in the reference."""
    knobs = dataclasses.replace(config.preprocess, enhance=bank)
    preprocessor = Preprocessor(knobs, batch.image.shape[-1], config.training.seed, ppi)
    while True:
        parts = prepare_parts(preprocessor, batch, True, seconds / ROUNDS)
        yield {part: row["ms_per_batch"] / len(batch) for part, row in parts.items()}


def projected(reference_rate: float, our_rate: float) -> dict[str, Any]:
    """Project the hours per epoch of large data on several devices, from the rates (prints/s) of one device."""
    return {
        "assumption": ASSUMPTION,
        "hours_per_epoch": [
            {
                "prints": prints, "devices": devices,
                "reference_hours": prints / (reference_rate * devices) / 3600,
                "our_hours": prints / (our_rate * devices) / 3600,
            }
            for prints in EPOCHS_OF
            for devices in DEVICES
        ],
    }  # fmt: skip


def compare(run: Run, workers: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Measure everything that `--compare reference` reports.

    Raises:
        UserError: Several processes, or data that is not a folder.
    """
    if run.accelerator.num_processes > 1:
        raise UserError("--compare runs on one process: start it with `python`, or with --num_processes 1")
    files = write_files(run, folder)
    preprocessing = compare_preprocessing(run, files, seconds)
    theirs, ours = compare_training(run, make_reference(run, files, workers), seconds)
    rates = theirs["samples_per_second"], ours["samples_per_second"]
    per_core = {name: side["samples_per_second"] for name, side in preprocessing.items()}
    return {
        "preprocess_per_core": preprocessing,
        "training": {"reference": theirs, "ours": ours},
        "ratio": {
            "preprocess_per_core": per_core["ours"] / per_core["reference"],
            "preprocess_per_core_with_filter_bank": per_core["ours_with_filter_bank"] / per_core["reference"],
            "training": rates[1] / rates[0],
        },
        "projected": projected(*rates),
    }
