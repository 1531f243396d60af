"""Measure each stage of preparation on the device: milliseconds per print, and prints/s with and without enhancement.

OMP_NUM_THREADS=1 python benchmarks/preparation.py --out FILE.json
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from machine import machine, versions
from results_file import check_results, write_results

from fingerprint_accel.config import PreprocessConfig
from fingerprint_accel.data.batch import Batch
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.preprocess.coarse import chunks
from fingerprint_accel.preprocess.geometric import move_minutiae, random_pose, resample
from fingerprint_accel.preprocess.minutia_map import minutia_maps
from fingerprint_accel.preprocess.photometric import degrade, random_quality
from fingerprint_accel.preprocess.pipeline import WINDOW, Preprocessor, local_normalize
from fingerprint_accel.random import sample_keys
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters

MINUTIAE = 64  # slots for each print in the batch, of which 50 to 64 are filled
PPI = 300


def make_batch(count: int, canvas: int, device: torch.device) -> Batch:
    """Make a batch of synthetic prints with minutiae at random places."""
    fingers = torch.arange(min(count, 16), device=device)
    masters = make_masters(0, fingers)
    index = torch.arange(count, device=device)
    which = index % len(fingers)
    image = render(masters, which, impression_keys(0, which, index // len(fingers)), Style(canvas=canvas)).image
    generator = torch.Generator().manual_seed(0)
    minutiae = torch.rand(count, MINUTIAE, 4, generator=generator) * torch.tensor([0.75, 0.75, 6.283, 1.0])
    minutiae[..., :2] = (minutiae[..., :2] + 0.125) * canvas
    filled = torch.randint(50, MINUTIAE + 1, (count,), generator=generator)
    return Batch(image, index, minutiae.to(device), filled.to(device), index, torch.zeros_like(index))


def make_stages(batch: Batch, config: PreprocessConfig, canvas: int) -> dict[str, Callable[[], object]]:
    """Return the functions to time by name: first single stages, then all of preparation."""
    size, ppi = config.size, PPI * config.size / config.crop
    prepare = Preprocessor(config, canvas, ppi=PPI).to(batch.image.device)
    enhancing = Preprocessor(PreprocessConfig(config.crop, size, enhance=True), canvas, ppi=PPI).to(batch.image.device)
    enhancer = enhancing.enhancer
    assert enhancer is not None
    keys = sample_keys(0, batch.epoch, batch.index)
    pose, quality = random_pose(keys, config.augment, config.crop), random_quality(keys, config.augment, size)
    ink = batch.image.bitwise_not()[:, None].float() / 255
    posed = resample(ink, pose, size)
    moved = move_minutiae(batch.minutiae, pose, canvas, size)

    def in_runs(stage: Callable[[slice], object]) -> Callable[[], object]:
        return lambda: [stage(rows) for rows in chunks(len(batch), size**2, batch.image.device)]

    return {
        "draw pose and quality": lambda: (
            random_pose(sample_keys(0, batch.epoch, batch.index), config.augment, config.crop),
            random_quality(keys, config.augment, size),
        ),
        "uint8 to ink": in_runs(lambda rows: batch.image[rows].bitwise_not()[:, None].float().mul_(1 / 255)),
        "resample": in_runs(lambda rows: resample(ink[rows], pose[rows], size)),
        "degrade": in_runs(lambda rows: degrade(posed[rows], quality[rows], prepare.tile)),
        "local_normalize": in_runs(lambda rows: local_normalize(posed[rows], round(WINDOW * ppi))),
        "move_minutiae": lambda: move_minutiae(batch.minutiae, pose, canvas, size),
        "minutia_maps": lambda: minutia_maps(moved, batch.minutia_count, size),
        "enhancer": in_runs(lambda rows: enhancer(posed[rows])),
        "all, with maps": lambda: prepare(batch, augment=True, maps=True),
        "all, without maps": lambda: prepare(batch, augment=True),
        "all, with maps and enhancement": lambda: enhancing(batch, augment=True, maps=True),
        "all, without augmentation": lambda: prepare(batch, augment=False),
    }


def milliseconds(work: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    """Return the milliseconds of each round.

    On one CPU thread this is processor time, which other programs affect less.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(rounds + 1):  # the first warms up
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (clock() - started))
    return times[1:]


@torch.no_grad()
def main(
    crop: int = 299, size: int = 299, canvas: int = 320, batch_size: int = 32, rounds: int = 7, device: str = "auto",
    out: Path | None = None,
) -> None:  # fmt: skip
    """Measure preparation, print a table and write JSON.

    Args:
        crop: Central part of the canvas that is used, canvas pixels.
        size: Side of the network's input, pixels.
        canvas: Side of the canvases, pixels.
        batch_size: Prints in a batch.
        rounds: Rounds; the median counts.
        device: auto, cpu or cuda.
        out: JSON file to write.
    """
    check_results(out)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    batch = make_batch(batch_size, canvas, where)
    results = {}
    for name, work in make_stages(batch, PreprocessConfig(crop, size), canvas).items():
        times = [value / batch_size for value in milliseconds(work, rounds, where)]
        middle = statistics.median(times)
        results[name] = {"ms_per_print": middle, "fastest_ms": min(times), "prints_per_second": 1000 / middle}
        print(f"{name:<32} {middle:8.3f} ms per print {1000 / middle:10,.0f} prints/s")
    if out is not None:
        setting = {
            **machine(where), **versions(), "threads": torch.get_num_threads(), "command": " ".join(sys.argv)
        }  # fmt: skip
        write_results(out, {"stages": results, "setting": setting})
        print(f"written to {out}")


if __name__ == "__main__":
    with one_line_errors("interrupted"):
        tyro.cli(main, description=__doc__)
