"""Measure exact search: comparisons per second of many probes, and the latency of one probe.

python benchmarks/search.py --references 1000000 --probes 256 --dim 512 --out search.json
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import machine, versions
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.extraction.gallery import Gallery

ENROLLED_AT_ONCE = 100_000
ROUNDS = 5


def unit(count: int, dim: int, seed: int) -> np.ndarray:
    """Return random unit vectors (count, dim) float32."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(folder: Path, references: int, dim: int) -> Gallery:
    """Return a gallery of random unit vectors."""
    gallery = Gallery.create(folder, dim, "random directions")
    for first in tqdm(range(0, references, ENROLLED_AT_ONCE), desc="enrolling", unit="file"):
        count = min(ENROLLED_AT_ONCE, references - first)
        gallery.append(unit(count, dim, seed=first), [str(first + i) for i in range(count)])
    return gallery


def seconds(gallery: Gallery, probes: np.ndarray, device: str) -> float:
    """Return the median time of a search for the top 10, after one that is not counted."""
    gallery.search(probes, 10, device)
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        gallery.search(probes, 10, device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main(references: int = 1_000_000, probes: int = 256, dim: int = 512, out: Path | None = None) -> None:
    """Measure exact search for the 10 most similar references, in a memory-mapped gallery.

    Args:
        references: Prints in the gallery.
        probes: Probes that are searched together.
        dim: Length of an embedding.
        out: JSON file to write.
    """
    check_results(out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        gallery = filled(Path(folder) / "gallery", references, dim)
        together, alone = (seconds(gallery, unit(count, dim, seed=1), device) for count in (probes, 1))
    rate = references * probes / together
    print(f"{probes} probes x {references:,} references of {dim} numbers: {rate / 1e6:,.0f} million comparisons/s")
    print(f"one probe, top 10: {1000 * alone:.0f} ms ({references / alone / 1e6:,.1f} million comparisons/s)")
    if out:
        found = {
            "references": references,
            "probes": probes,
            "dim": dim,
            "comparisons_per_second": rate,
            "seconds_one_probe_top_10": alone,
            "command": sys.argv,
            "machine": machine(torch.device(device)),
            "versions": versions(),
        }
        write_results(out, found)


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
