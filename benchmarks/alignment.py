"""Measure the error of an alignment network on synthetic prints, and show its poses on real and synthetic prints.

python benchmarks/alignment.py --model base --data FOLDER --out alignment.json

The error is that of the relative pose of two prints of a finger: the distance between the places at which the two
aligned prints show the middle of their common area. It is grouped by overlap, the common area as a share of the smaller
contact. FOLDER holds the real sets of benchmarks/real_sets.py. Their true poses are unknown, so only the distribution
of the predicted poses is shown. A downward shift is positive: the middle of the finger lies below the middle of the
canvas, as when the finger touches with its tip. With --judge, relative poses of mated real prints are compared with the
poses of highest similarity (benchmarks/alignment_judge.py).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from alignment_judge import disagreement
from alignment_measures import (
    CLASSES,
    PERCENTILES,
    degrees,
    on_finger,
    overlaps,
    pair_errors,
    print_errors,
    summary,
    true_pose,
)
from machine import machine, versions
from real_sets import read_set, sets_in
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.poses import MM_PER_INCH
from fingerprint_accel.metrics.protocols import comparisons
from fingerprint_accel.preprocess.geometric import Pose
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.source import open_source
from fingerprint_accel.text import aligned

BATCH = 32
ERRORS = (50, 95, 99)  # percentiles
SYNTHETIC = "synth:fingers=150,impressions=4,seed=20261201,quality=mixed"
JUDGED = 3  # impressions of each finger; each is embedded in 125 poses
AXES = ("right, mm", "down, mm", "clockwise, degrees")


@dataclass(frozen=True)
class Synthetic:
    """Synthetic prints with known poses.

    Attributes:
        truth: True poses of N prints, on the CPU.
        predicted: Poses that the alignment network predicts, on the CPU.
        contacts: (N, S, S) bool contact areas on the finger, from `alignment_measures.on_finger`.
        fingers: (N,) int64 finger of each print.
    """

    truth: Pose
    predicted: Pose
    contacts: torch.Tensor
    fingers: np.ndarray


@torch.inference_mode()
def predicted_pose(extractor: FingerprintExtractor, images: torch.Tensor) -> Pose:
    """Predict the poses of fingers on images (B, canvas, canvas) uint8. The result is on the CPU.

    Raises:
        UserError: The model has no alignment network.
    """
    pose = extractor.alignment(images.to(extractor.device))
    if pose is None:
        raise UserError(f"{extractor.origin}: has no alignment network; give a model of a Loc variant")
    return Pose(pose.matrix.float().cpu(), pose.shift.float().cpu(), None, pose.crop)


def synthetic_prints(extractor: FingerprintExtractor, data: str) -> Synthetic:
    """Render prints and predict their poses.

    Args:
        extractor: The model.
        data: Source of prints, such as `synth:fingers=150`.

    Raises:
        UserError: The prints have another resolution or canvas than the model.
    """
    source, _ = open_source(data, 0.0, extractor.device)
    style, spec = source.spec.style, source.spec
    source.info.check_suits(PrintInfo(extractor.ppi, extractor.canvas, extractor.enhanced), data, synthetic=True)
    index = torch.arange(len(source), device=extractor.device)
    fingers, impressions = index // spec.impressions, index % spec.impressions
    crop, mm = float(extractor.preprocess_config.crop), MM_PER_INCH / extractor.ppi
    truths, found, contacts = [], [], []
    for rows in tqdm(index.split(BATCH), desc="aligning", unit="batch", disable=None, leave=False):
        numbers = source.numbers[fingers[rows]]
        keys = impression_keys(spec.seed, numbers, impressions[rows])
        prints = render(source.masters, fingers[rows], keys, style)
        truth = true_pose(prints.pose.cpu(), crop)
        truths.append(truth)
        found.append(predicted_pose(extractor, prints.image))
        contacts.append(on_finger(prints.skin.cpu(), truth, mm))
    return Synthetic(joined(truths), joined(found), torch.cat(contacts), fingers.cpu().numpy())


def joined(poses: list[Pose]) -> Pose:
    """Concatenate the poses of several batches."""
    return Pose(torch.cat([p.matrix for p in poses]), torch.cat([p.shift for p in poses]), None, poses[0].crop)


def error_rows(prints: Synthetic, mm: float) -> dict[str, dict[str, Any]]:
    """Return number and percentiles of the errors, first of single prints, then of pairs by overlap."""
    pairs = torch.from_numpy(comparisons("all-pairs", prints.fingers, np.arange(len(prints.fingers))).mated)
    shares, middles = overlaps(prints.contacts, pairs)
    apart, turned = pair_errors(prints.truth, prints.predicted, pairs, middles, mm)
    rows = {"one print": _errors(*print_errors(prints.truth, prints.predicted, mm))}
    shared = shares > 0
    for name, (low, high) in CLASSES.items():
        chosen = shared & (shares >= low) & (shares < high)
        rows[f"two, overlap {name}"] = _errors(apart[chosen], turned[chosen])
    return rows | {"two, all with overlap": _errors(apart[shared], turned[shared])}


def _errors(mm: torch.Tensor, turned: torch.Tensor) -> dict[str, Any]:
    """Return number and percentiles of distances (mm) and turns (degrees)."""
    return {"count": len(mm), "mm": summary(mm, ERRORS), "degrees": summary(turned, ERRORS)}


def distribution(pose: Pose, mm: float) -> dict[str, list[float]]:
    """Return `PERCENTILES` of shifts and rotation."""
    columns = (pose.shift[:, 0] * mm, pose.shift[:, 1] * mm, degrees(pose))
    return {name: summary(values, PERCENTILES) for name, values in zip(AXES, columns, strict=True)}


def real_pose(extractor: FingerprintExtractor, folder: Path, ppi: int) -> Pose:
    """Predict the poses of all prints of a real set."""
    batches = extractor.batches(read_set(folder).paths, ppi, BATCH, progress=sys.stderr.isatty())
    return joined([predicted_pose(extractor, images) for images in batches])


def judged(extractor: FingerprintExtractor, folder: Path, ppi: int) -> dict[str, Any]:
    """Compare the poses of mated pairs of a real set with those of the judge."""
    prints = read_set(folder)
    chosen = np.flatnonzero(np.asarray(prints.impressions) < np.sort(np.unique(prints.impressions))[JUDGED])
    paths = [prints.paths[row] for row in chosen]
    images = torch.cat(list(extractor.batches(paths, ppi, BATCH)))
    pairs = comparisons("all-pairs", prints.fingers[chosen], np.arange(len(chosen))).mated
    found = disagreement(extractor, images, pairs)
    return _errors(found.mm, found.degrees) | {"at_edge": found.at_edge}


def judged_table(rows: dict[str, dict[str, Any]]) -> str:
    """Format the disagreements with the judge as text."""
    header, *lines = error_table(rows).splitlines()
    shares = ["at the edge", *(f"{row['at_edge']:.0%}" for row in rows.values())]
    return "\n".join(f"{line}  {share:>11}" for line, share in zip([header, *lines], shares, strict=True))


def error_table(rows: dict[str, dict[str, Any]]) -> str:
    """Format the errors as text."""
    header = ["error", "count", *(f"{unit} {percent} %" for unit in ("mm", "degrees") for percent in ERRORS)]
    cells = [
        [name, str(row["count"]), *(f"{v:.2f}" for v in row["mm"]), *(f"{v:.1f}" for v in row["degrees"])]
        for name, row in rows.items()
    ]
    return aligned([header, *cells], words=1)


def distribution_tables(found: dict[str, dict[str, list[float]]]) -> str:
    """Format one table for each of `AXES`, with prints as rows and percentiles as columns."""
    tables = []
    for axis in AXES:
        rows = [[axis, *(f"{percent} %" for percent in PERCENTILES)]]
        rows += [[name, *(f"{value:.1f}" for value in columns[axis])] for name, columns in found.items()]
        tables.append(aligned(rows, words=1))
    return "\n\n".join(tables)


def main(
    model: str = "small",
    synthetic: tuple[str, ...] = (SYNTHETIC,),
    data: Path | None = None,
    judge: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    out: Path | None = None,
) -> None:
    """Measure the error of an alignment network on synthetic prints, and show poses of synthetic and real prints.

    Args:
        model: Bundled model, run, checkpoint or exported folder.
        synthetic: Sources of synthetic prints, as for recipes.
        data: Folder with real sets.
        judge: Also compare relative poses of mated real prints with the poses of highest similarity (dense models).
        out: JSON file to write.
    """
    check_results(out)
    extractor = open_extractor(model)
    if extractor.alignment_network is None:
        raise UserError(f"{model}: has no alignment network; give a model of a Loc variant")
    if judge and not extractor.cells:
        raise UserError(f"{model}: --judge needs a dense model, such as small or base")
    mm = MM_PER_INCH / extractor.ppi
    errors, found, judgements = {}, {}, {}
    for source in synthetic:
        prints = synthetic_prints(extractor, source)
        errors[source] = error_rows(prints, mm)
        found[f"{source}, truth"] = distribution(prints.truth, mm)
        found[f"{source}, found"] = distribution(prints.predicted, mm)
        print(f"{source}\n{error_table(errors[source])}\n")
    folders = {data / name: known for name, known in sets_in(data).items()} if data is not None else {}
    for folder, known in folders.items():
        found[known.title] = distribution(real_pose(extractor, folder, known.ppi), mm)
        if judge:
            judgements[known.title] = judged(extractor, folder, known.ppi)
    print(distribution_tables(found))
    if judgements:
        print(f"\ndifference between predicted relative pose and best match\n{judged_table(judgements)}")
    if out:
        results = {
            "errors": errors,
            "judged": judgements,
            "error_percentiles": ERRORS,
            "poses": found,
            "pose_percentiles": PERCENTILES,
        }
        facts = {"model": extractor.origin, "command": sys.argv, "machine": machine(extractor.device)}
        write_results(out, {"results": results, **facts, "versions": versions()})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
