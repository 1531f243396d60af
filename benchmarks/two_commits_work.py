"""A measurement of `two_commits.py`, in a process that uses one version of the package.

Uses only functions that both versions have. Prints the seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

DATA, RESULT = "data", "seconds: "
REPEATS = 5
FINGERS, IMPRESSIONS = 120, 8
BIG, PRINTS, IMAGES = "big", "prints", "images"


def make_data(folder: Path, rows: int) -> None:
    """Write the inputs of all measurements: a dataset of many tiny prints, one of real size, and image files."""
    from shard_writer import ShardWriter

    from fingerprint_accel.data.shard_writing import Record
    from fingerprint_accel.data.shards import open_dataset
    from fingerprint_accel.synthesis.writing import write_synthetic_dataset

    image, minutiae = np.zeros((8, 8), np.uint8), np.ones((10, 4), np.float32)
    with ShardWriter(folder / BIG, 300, 8) as writer:
        for row in range(rows):
            writer.add(Record(image, f"{row // 10}", row % 10, "", minutiae, finger=row // 10))
    write_synthetic_dataset(folder / PRINTS, FINGERS, IMPRESSIONS, workers=1, progress=False)
    dataset = open_dataset(folder / PRINTS)
    (folder / IMAGES).mkdir()
    for row in range(len(dataset) // 2):
        name = f"{dataset.fingers[row]}_{dataset.impressions[row]}.png"
        Image.fromarray(dataset.image(row)).save(folder / IMAGES / name)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield a new folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Path(name)


def clocked(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_of(work: Callable[[], object]) -> float:
    """Return the median seconds of several calls."""
    return statistics.median(clocked(work) for _ in range(REPEATS))


def importing(folder: Path) -> float:
    """Import image files in one process, after an import that is not counted."""
    from fingerprint_accel.data.importing import import_dataset

    def once() -> float:
        with scratch(folder) as out:
            arguments = (folder / IMAGES, out / "dataset", "fvc", 300)
            return clocked(lambda: import_dataset(*arguments, workers=1, progress=False))

    once()
    return once()


def merging(folder: Path) -> float:
    """Merge a dataset into a new one, in one process, after a merge that is not counted."""
    from fingerprint_accel.data.merging import merge

    def once() -> float:
        with scratch(folder) as out:
            return clocked(lambda: merge([folder / PRINTS], out / "dataset", workers=1, progress=False))

    once()
    return once()


def opening(folder: Path) -> float:
    """Open the dataset of many rows once, as a command does, after a small dataset that is not counted."""
    from fingerprint_accel.data.shards import open_dataset

    open_dataset(folder / PRINTS)
    return clocked(lambda: open_dataset(folder / BIG))


def first_batch(folder: Path) -> float:
    """Open the dataset of many rows and read a batch of 256."""
    from fingerprint_accel.data.shards import open_dataset
    from fingerprint_accel.data.training_loader import training_loader

    def once() -> None:
        with training_loader(open_dataset(folder / BIG), 256) as loader:
            next(iter(loader))

    return median_of(once)


def saving(folder: Path) -> float:
    """Save a checkpoint of 151 MB."""
    from fingerprint_accel.training.checkpoint import Checkpoint, save_checkpoint

    def tensors(*names: str) -> dict[str, torch.Tensor]:
        return {name: torch.randn(1024, 1024) for name in names}

    layers = [f"w{number}" for number in range(12)]
    moments = [f"optimizer.{layer}.{moment}" for layer in layers for moment in ("exp_avg", "exp_avg_sq")]
    checkpoint = Checkpoint(tensors(*layers), tensors(*moments), {"step": 1, "best_eer": None})

    def once() -> float:
        with scratch(folder) as run:
            return clocked(lambda: save_checkpoint(run, checkpoint))

    return statistics.median(once() for _ in range(REPEATS))


def training(folder: Path) -> float:
    """Train a tiny network, and return the seconds per print of the median window."""
    import fingerprint_accel
    from fingerprint_accel.config import parse
    from fingerprint_accel.recipe import run_training

    recipe = str(Path(fingerprint_accel.__file__).parents[1] / "recipes" / "train_10k.py")
    with scratch(folder) as out:
        sys.argv = [recipe]
        options = f"""--data {folder / PRINTS} --out {out / "run"} --training.steps 60 --training.log-every 10
            --training.batch-size 32 --training.validate-every 0 --training.save-every 1000 --training.precision no
            --model.trunk compact --model.width 8 --preprocess.size 96"""
        with contextlib.redirect_stdout(io.StringIO()):
            run_training(parse(runpy.run_path(recipe)["CONFIG"], "", options.split()))
        records = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [record["samples_per_second"] for record in records if record.get("kind") == "train"]
    return 1 / statistics.median(rates)


MEASURES: dict[str, tuple[Callable[[Path], float], str]] = {
    "import": (importing, f"import {FINGERS * IMPRESSIONS // 2} images"),
    "merge": (merging, f"merge {FINGERS * IMPRESSIONS} prints"),
    "open": (opening, "open the large dataset"),
    "first-batch": (first_batch, "first batch of the large dataset"),
    "save": (saving, "save a checkpoint of 151 MB"),
    "train": (training, "train on one print"),
}


def main() -> None:
    """Make the data, or print the seconds of a measurement."""
    name, folder, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    spent = clocked(lambda: make_data(folder, rows)) if name == DATA else MEASURES[name][0](folder)
    print(f"{RESULT}{spent}")


if __name__ == "__main__":
    main()
