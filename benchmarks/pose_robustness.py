"""Measure the false non-match rate against rotation.

python benchmarks/pose_robustness.py --out pose.json

The prints are clean synthetic impressions of fingers that no released model was trained on. References are unchanged.
Probes are turned by a random angle up to the stated one, in addition to the small rotation of a clean touch.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from machine import machine, versions
from PIL import Image
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.extraction.poses import MM_PER_INCH, UPRIGHT, Poses
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.similarity import similarity
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.writing import write_synthetic_dataset

ANGLES = (0.0, 15.0, 30.0, 45.0, 60.0)
FLX_ON_MCYT = (1.5, 1.9, 5.1, 25.4, 50.6)  # FNMR at FMR 0.1 %, published by the authors of flx
IMPRESSIONS = 4  # the first half are references
STEP = 15  # degrees between tried turns
BATCH = 20
WHITE = 255


def moved(images: np.ndarray, degrees: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Turn each canvas (N, S, S) uint8 about its middle, then shift it. Missing parts become white.

    Args:
        images: Canvases.
        degrees: (N,) counter-clockwise.
        shift: (N, 2) pixels to the right and down.
    """
    results = []
    for image, angle, (x, y) in zip(images, degrees.tolist(), shift.tolist(), strict=True):
        picture = Image.fromarray(image)
        if angle or x or y:
            picture = picture.rotate(angle, Image.Resampling.BICUBIC, translate=(x, y), fillcolor=WHITE)
        results.append(np.asarray(picture))
    return np.stack(results)


def embed_moved(
    extractor: FingerprintExtractor,
    shards: Shards,
    rows: np.ndarray,
    degrees: np.ndarray,
    shift_mm: np.ndarray,
    batch_size: int = 64,
    poses: Poses = UPRIGHT,
    bar: tqdm | None = None,
) -> np.ndarray:
    """Embed prints that are turned and shifted on their canvas first.

    Args:
        extractor: The model.
        shards: The dataset.
        rows: (N,) rows of the dataset.
        degrees: (N,) counter-clockwise.
        shift_mm: (N, 2) to the right and down.
        batch_size: Prints in a batch.
        poses: Poses that the extractor tries.
        bar: Progress bar, updated for every print.

    Returns:
        (N, D) float32 of unit length; (N, P, D) for P > 1 poses.
    """
    pixels = shift_mm * shards.info.ppi / MM_PER_INCH
    parts = []
    for start in range(0, len(rows), batch_size):
        here = slice(start, start + batch_size)
        images = np.stack([shards.image(row) for row in rows[here].tolist()])
        canvases = moved(images, degrees[here], pixels[here])
        parts.append(extractor(torch.from_numpy(canvases).to(extractor.device), poses).cpu().numpy())
        if bar is not None:
            bar.update(len(images))
    return np.concatenate(parts)


def fnmr(extractor: FingerprintExtractor, shards: Shards, angle: float, poses: Poses) -> tuple[float, float]:
    """Return FNMR at FMR 0.1 %, and EER, for probes turned by up to `angle` degrees."""
    fingers, first = shards.fingers, shards.impressions < IMPRESSIONS // 2
    references, probes = np.flatnonzero(first), np.flatnonzero(~first)
    degrees = np.random.default_rng(0).uniform(-angle, angle, len(probes))
    with tqdm(total=len(shards), desc="extracting", leave=False) as bar:
        still = np.zeros(len(references)), np.zeros((len(references), 2))
        reference = embed_moved(extractor, shards, references, *still, BATCH, UPRIGHT, bar)
        probe = embed_moved(extractor, shards, probes, degrees, np.zeros((len(probes), 2)), BATCH, poses, bar)
    scores = similarity(reference, probe, extractor.cells)
    mated = fingers[first][:, None] == fingers[~first][None]
    metrics = compute_metrics(scores[mated], scores[~mated])
    assert metrics.fmr1000 is not None, "enough fingers"
    return metrics.fmr1000, metrics.eer


def main(
    model: str = "small",
    fingers: int = 100,
    seed: int = 987_654,
    bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    out: Path | None = None,
) -> None:
    """Measure the false non-match rate at FMR 0.1 % for probes turned by up to 0, 15, 30, 45 and 60 degrees.

    Args:
        model: Bundled model, run, checkpoint or exported folder.
        fingers: Number of fingers, each with four clean impressions.
        seed: Seed of the fingers.
        bf16: Run the network in bf16.
        out: JSON file to write.
    """
    check_results(out)
    extractor = FingerprintExtractor.from_pretrained(model)
    extractor.bf16 = bf16
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prints = Path(folder) / "prints"
        write_synthetic_dataset(prints, fingers, IMPRESSIONS, seed, Style(quality="clean"))
        shards = open_dataset(prints)
        print("up to  poses  FNMR at FMR 0.1 %  EER      flx on MCYT")
        for angle, flx in zip(ANGLES, FLX_ON_MCYT, strict=True):
            reach = [float(turn) for turn in range(-int(angle), int(angle) + 1, STEP) if turn]
            for poses in (UPRIGHT, Poses(tuple(reach), 2.0)):
                rate, eer = fnmr(extractor, shards, angle, poses)
                rows.append({"angle": angle, "poses": len(poses), "fnmr_at_fmr_0.001": rate, "eer": eer})
                print(f"{angle:>5.0f}  {len(poses):>5}  {rate:>17.2%}  {eer:>7.2%}  {flx:.1f} %", flush=True)
    if out:
        facts = {"model": extractor.origin, "fingers": fingers, "seed": seed, "command": sys.argv}
        write_results(out, {"results": rows, **facts, "machine": machine(torch.device("cpu")), "versions": versions()})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
