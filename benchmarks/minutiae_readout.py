"""Measure precision and recall of the minutiae that a model predicts.

python benchmarks/minutiae_readout.py runs/minutiae datasets/unseen --out minutiae.json

DATASET must hold exact minutiae, as synthetic datasets do. A minutia counts as found within --mm and --degrees of a
true one. Each true one counts once. True minutiae outside the network's window are left out. The last line reads the
true minutia maps in place of predicted ones. It is an upper bound, because minutiae closer than two ridges become one
peak.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from machine import machine, versions
from minutia_matching import angle_difference, match_minutiae
from results_file import check_results, write_results

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.extraction.minutiae_readout import THRESHOLD, read_map, read_minutiae
from fingerprint_accel.preprocess.minutia_map import MAP_SIZE, minutia_maps

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def true_minutiae(shards: Shards, crop: int) -> list[np.ndarray]:
    """Return the minutiae of each print, (n, 4) in canvas pixels, in the middle `crop` pixels of the canvas.

    Raises:
        UserError: The dataset holds no minutiae.
    """
    table, counts = shards.minutiae(np.arange(len(shards)))
    if not counts.any():
        raise UserError(
            f"{shards.folder}: holds no minutiae; `fingerprint-accel synth` makes prints with exact minutiae"
        )
    prints = [rows[:count] for rows, count in zip(table, counts, strict=True)]
    reach = np.float32(crop / 2)
    return [each[(np.abs(each[:, :2] - shards.info.canvas / 2) < reach).all(axis=1)] for each in prints]


def read_true_maps(truth: list[np.ndarray], extractor: FingerprintExtractor) -> list[np.ndarray]:
    """Read minutiae from maps that are drawn from the truth, in canvas pixels."""
    config, found = extractor.preprocess_config, []
    start = (extractor.canvas - config.crop) / 2
    for minutiae in truth:
        moved = torch.from_numpy(minutiae - np.array([start, start, 0, 0], np.float32))[None]
        maps = minutia_maps(moved, torch.tensor([len(minutiae)]), config.crop)
        read = read_map(maps[0], THRESHOLD)
        read[:, :2] = read[:, :2] * config.crop / MAP_SIZE + start
        found.append(read)
    return found


def rates(found: list[np.ndarray], truth: list[np.ndarray], pixels: float, radians: float) -> dict[str, float]:
    """Return precision, recall and F1 over all prints, and the errors of the pairs.

    The errors are the mean distance (unit of x and y) and the mean difference of directions (degrees).
    """
    paired, apart, turned = 0, [], []
    for here, there in zip(found, truth, strict=True):
        pairs = match_minutiae(here, there, pixels, radians)
        here, there = here[pairs[:, 0]], there[pairs[:, 1]]
        paired += len(pairs)
        apart.append(np.hypot(*(here[:, :2] - there[:, :2]).T))
        turned.append(np.abs(angle_difference(here[:, 2], there[:, 2])))
    precision = paired / max(1, sum(map(len, found)))
    recall = paired / max(1, sum(map(len, truth)))
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(1e-9, precision + recall),
        "per_print": sum(map(len, found)) / len(found),
        "apart": float(np.concatenate(apart).mean()) if paired else math.nan,
        "degrees": math.degrees(float(np.concatenate(turned).mean())) if paired else math.nan,
    }


def main(
    model: Annotated[str, tyro.conf.Positional],
    dataset: Annotated[Path, tyro.conf.Positional],
    mm: float = 0.8,
    degrees: float = 30.0,
    out: Path | None = None,
) -> None:
    """Print a table over thresholds of the score, and write JSON.

    Args:
        model: Run folder, checkpoint folder, or exported model folder.
        dataset: Dataset folder.
        mm: Largest distance of a found minutia from the true one.
        degrees: Largest difference of its direction.
        out: JSON file to write.
    """
    check_results(out)
    extractor = FingerprintExtractor.from_pretrained(model)
    shards = open_dataset(dataset)
    truth = true_minutiae(shards, extractor.preprocess_config.crop)
    per_mm = shards.info.ppi / 25.4
    everything = read_minutiae(extractor, shards, threshold=min(THRESHOLDS))
    rows = {}
    for threshold in THRESHOLDS:
        found = [each[each[:, 3] >= threshold] for each in everything]
        rows[f"{threshold:.1f}"] = rates(found, truth, mm * per_mm, math.radians(degrees))
    rows["true maps"] = rates(read_true_maps(truth, extractor), truth, mm * per_mm, math.radians(degrees))
    mean = sum(map(len, truth)) / len(truth)
    print(f"{len(shards):,} prints, {mean:.1f} minutiae each; {mm} mm, {degrees:g} degrees")
    print("threshold  precision  recall     F1  found/print  apart mm  degrees")
    for name, row in rows.items():
        row["apart_mm"] = row.pop("apart") / per_mm
        print(
            f"{name:>9}  {row['precision']:>8.1%}  {row['recall']:>6.1%}  {row['f1']:>5.1%}  {row['per_print']:>11.1f}"
            f"  {row['apart_mm']:>8.2f}  {row['degrees']:>7.1f}"
        )
    if out is not None:
        facts = {"mm": mm, "degrees": degrees, "command": sys.argv, "machine": machine(torch.device("cpu"))}
        write_results(out, {"results": rows, **facts, "versions": versions()})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
