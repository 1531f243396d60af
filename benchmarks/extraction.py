"""Measure embeddings per second of the bundled model and of DeepPrint's network, from files and from a dataset.

python benchmarks/extraction.py --out extraction.json
python benchmarks/extraction.py --device cuda --batch-size 64

Without --data the benchmark renders its own prints. The files are the same prints as PNGs of 500 ppi. Each is decoded,
segmented and placed on a canvas, as in an import. DeepPrint's network (Tex on Inception v4, 299 x 299 pixels) has
random weights, which take the same time. Each round runs every combination once, so that other work of the machine
affects all of them. The median of the rounds counts. `at most` is the rate at which the convolutions and products of
the network would run at the speed of the fastest measured matrix product, with nothing else taking time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from benchmark_data import default_dataset
from ceilings import flops_of, matmul_tflops
from machine import machine, usable_cores, versions
from PIL import Image
from results_file import check_results, write_results
from timing import spread, synchronize
from tqdm import tqdm

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.loader import Subset
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.text import aligned

FLX = (2.3, 2.9)  # images/s on one core: flx's DeepPrint_Tex with its preparation
FILE_PPI = 500
Prints = Shards | list[Path]


def deepprint_tex(shards: Shards) -> FingerprintExtractor:
    """Build DeepPrint's network, untrained, for the prints of a dataset."""
    preparation = PreprocessConfig(crop=min(299, shards.info.canvas), size=299)
    return FingerprintExtractor(ModelConfig(variant="Tex"), preparation, shards.info.ppi, shards.info.canvas)


def write_files(shards: Shards, folder: Path, count: int) -> list[Path]:
    """Write the first prints of a dataset as PNG files at `FILE_PPI`."""
    paths = []
    for row in range(count):
        side = round(shards.info.canvas * FILE_PPI / shards.info.ppi)
        image = Image.fromarray(np.array(shards.image(row))).resize((side, side), Image.Resampling.BICUBIC)
        paths.append(folder / f"{row:05}.png")
        image.save(paths[-1])
    return paths


class Combination:
    """A model, its precision, and a source of prints.

    Args:
        extractor: The model.
        bf16: Whether it runs in bf16.
        prints: A dataset or files, at least `batch_size` prints.
        batch_size: Prints in a batch.
    """

    def __init__(self, extractor: FingerprintExtractor, bf16: bool, prints: Prints, batch_size: int) -> None:
        self.extractor, self.bf16, self.prints, self.batch_size = extractor, bf16, prints, batch_size
        self.count = batch_size
        self.rates: list[float] = []

    def run(self) -> float:
        """Embed `count` prints and return prints per second."""
        self.extractor.bf16 = self.bf16
        rows = np.arange(self.count)
        some = Subset(self.prints, rows, rows) if isinstance(self.prints, Shards) else self.prints[: self.count]
        synchronize(self.extractor.device)
        started = time.perf_counter()
        self.extractor.extract(some, FILE_PPI, batch_size=self.batch_size, progress=False)
        return self.count / (time.perf_counter() - started)  # the embeddings are on the CPU already

    def most(self, tflops: dict[bool, float]) -> float:
        """Return the prints per second of a machine with the given TFLOP/s, by whether they are bf16."""
        canvas = self.extractor.canvas
        images = torch.zeros(self.batch_size, canvas, canvas, dtype=torch.uint8, device=self.extractor.device)
        self.extractor.bf16 = self.bf16
        return tflops[self.bf16] * 1e12 * self.batch_size / flops_of(lambda: self.extractor(images))

    def prepare(self, seconds: float) -> None:
        """Run once to warm up, and once to find the number of batches that take about `seconds`."""
        self.run()
        most = len(self.prints) // self.batch_size
        self.count = self.batch_size * max(1, min(most, round(seconds * self.run() / self.batch_size)))


def combinations(
    shards: Shards, files: list[Path], batch_size: int, device: str
) -> dict[tuple[str, str, str], Combination]:
    """Return all combinations by model, precision and source."""
    found = {}
    small = FingerprintExtractor.from_pretrained("small").to(device)
    small.check_dataset(shards)
    sources: dict[str, Prints] = {"files": files, "dataset": shards}
    for name, extractor in (("small", small), ("DeepPrint_Tex", deepprint_tex(shards).to(device))):
        for precision in ("float32", "bf16"):
            for source, prints in sources.items():
                found[name, precision, source] = Combination(extractor, precision == "bf16", prints, batch_size)
    return found


def main(
    data: Path | None = None,
    rounds: int = 5,
    seconds: float = 4,
    batch_size: int = 16,
    device: Literal["cpu", "cuda"] = "cpu",
    out: Path | None = None,
) -> None:
    """Print a table and write JSON.

    Args:
        data: Dataset folder that fits the bundled model.
        rounds: Rounds, each of which runs every combination once.
        seconds: Approximate duration of one combination in a round.
        batch_size: Prints in a batch.
        device: Device of the networks. Files are read by the CPU.
        out: JSON file to write.
    """
    check_results(out)
    if rounds < 1 or seconds <= 0:
        raise UserError("--rounds must be at least 1, --seconds above 0")
    cores, place = usable_cores(), torch.device(device)
    shards = open_dataset(data or Path(default_dataset(Accelerator(cpu=True))))
    if len(shards) < batch_size:
        raise UserError(f"{shards.folder}: {len(shards)} prints; give at least {batch_size}")
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(shards, Path(folder), min(384, len(shards)))
        found = combinations(shards, files, batch_size, device)
        for each in tqdm(found.values(), desc="warming up", leave=False):
            each.prepare(seconds)
        tflops = {False: matmul_tflops(place, "fp32", seconds)}
        tflops[True] = max(tflops[False], matmul_tflops(place, "bf16", seconds))
        for _ in tqdm(range(rounds), desc="measuring", unit="round", leave=False):
            for each in found.values():
                each.rates.append(each.run())
    titles = ("network", "precision", "from", "prints/s", "slowest", "fastest", "at most", "per core", "times flx")
    rows: list[tuple[str, ...]] = [titles]
    results = []
    for (name, precision, source), each in found.items():
        rate = spread(each.rates)
        per_core = rate["samples_per_second"] / cores
        speed = {"prints_per_turn": each.count, **rate, "at_most": each.most(tflops)}
        results.append({"network": name, "precision": precision, "from": source, **speed})
        times = f"{per_core / FLX[1]:.1f} to {per_core / FLX[0]:.1f}"
        numbers = [f"{speed[key]:.1f}" for key in ("samples_per_second", "slowest_round", "fastest_round", "at_most")]
        rows.append((name, precision, source, *numbers, f"{per_core:.1f}", times))
    print(aligned(rows, words=3))
    print(f"{cores} cores; flx: {FLX[0]} to {FLX[1]} images/s on one")
    if out is not None:
        facts = {
            "batch_size": batch_size,
            "matmul_tflops": {"float32": tflops[False], "bf16": tflops[True]},
            "flx_per_core": FLX,
            "data": str(shards.folder),
            "command": sys.argv,
        }
        setting = {"machine": machine(place), "versions": versions(), "threads": torch.get_num_threads()}
        write_results(out, {"results": results, **facts, **setting})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
