"""Measure exact search in float32 and int8 galleries: comparisons per second of many probes, and the time of one probe.

python benchmarks/search.py --references 1000000 --probes 256 --dim 512 --out search.json
python benchmarks/search.py --references 1000000 --probes 256 --dim 512 --cells 64

The galleries hold the same random templates. Their searches take turns, so that a change of the speed of the machine
affects both.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import machine, versions
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.text import aligned

ENROLLED_AT_ONCE = 100_000
ROUNDS = 5
TOP = 10
SHOWN_CELLS = 0.6  # share of the cells that a dense template shows
TEMPLATES = ("float32", "int8")


def unit(count: int, dim: int, cells: int, seed: int) -> np.ndarray:
    """Return random unit vectors (count, dim) float32, with random cells of zeros if `cells` is above 0."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((count, dim), dtype=np.float32)
    if cells:
        shown = generator.random((count, cells), dtype=np.float32) < SHOWN_CELLS
        vectors *= shown.repeat(dim // cells, axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(folder: Path, references: int, dim: int, cells: int) -> dict[str, Gallery]:
    """Return a gallery of random unit vectors for each of `TEMPLATES`."""
    galleries = {each: Gallery.create(folder / each, dim, "random directions", cells, each) for each in TEMPLATES}
    for first in tqdm(range(0, references, ENROLLED_AT_ONCE), desc="enrolling", unit="file"):
        count = min(ENROLLED_AT_ONCE, references - first)
        vectors, names = unit(count, dim, cells, seed=first), [str(first + i) for i in range(count)]
        for gallery in galleries.values():
            gallery.append(vectors, names)
    return galleries


def seconds(galleries: Mapping[str, Gallery], probes: np.ndarray, device: str) -> dict[str, float]:
    """Return the median time of a search in each gallery, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in galleries}
    for turn in range(ROUNDS + 1):
        for name, gallery in galleries.items():
            started = time.perf_counter()
            gallery.search(probes, TOP, device)
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()}


def agreement(galleries: Mapping[str, Gallery], probes: np.ndarray, device: str) -> tuple[float, float]:
    """Return the share of the top hits that both galleries find, and the largest difference of their similarities."""
    exact, other = (galleries[each].search(probes, TOP, device) for each in TEMPLATES)
    same = np.mean([len({*a} & {*b}) / len(a) for a, b in zip(exact.row.tolist(), other.row.tolist(), strict=True)])
    return float(same), float(np.abs(exact.similarity - other.similarity).max())


def main(
    references: int = 1_000_000, probes: int = 256, dim: int = 512, cells: int = 0, out: Path | None = None
) -> None:
    """Measure exact search for the 10 most similar references, in memory-mapped galleries.

    Args:
        references: Prints in a gallery.
        probes: Probes that are searched together.
        dim: Length of an embedding.
        cells: Cells of a dense template; 0 for other templates.
        out: JSON file to write.
    """
    check_results(out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        galleries = filled(Path(folder), references, dim, cells)
        sizes = {name: sum(path.stat().st_size for path in each.folder.iterdir()) for name, each in galleries.items()}
        together, alone = (seconds(galleries, unit(count, dim, cells, seed=1), device) for count in (probes, 1))
        same, largest = agreement(galleries, unit(probes, dim, cells, seed=1), device)
    found: dict[str, dict[str, Any]] = {}
    rows: list[tuple[str, ...]] = [("gallery", "MB", "million comparisons/s", "one probe, ms")]
    for name in galleries:
        rate = references * probes / together[name]
        found[name] = {"megabytes": sizes[name] / 1e6, "comparisons_per_second": rate, "seconds_one_probe": alone[name]}
        rows.append((name, f"{sizes[name] / 1e6:,.0f}", f"{rate / 1e6:,.0f}", f"{1000 * alone[name]:,.0f}"))
    print(f"{probes} probes x {references:,} references of {dim} numbers, top {TOP}")
    print(aligned(rows, words=1))
    print(f"{same:.1%} of the top {TOP} are the same; similarities differ by at most {largest:.4f}")
    if out:
        setting = {"references": references, "probes": probes, "dim": dim, "cells": cells, "top": TOP}
        agreed = {"same_top": same, "largest_difference": largest}
        about = {"command": sys.argv, "machine": machine(torch.device(device)), "versions": versions()}
        write_results(out, {**setting, "galleries": found, **agreed, **about})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
