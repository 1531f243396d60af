"""Calibration of a model: similarity thresholds for given false match rates, measured on a dataset.

A mated comparison compares two prints of the same finger, a non-mated comparison compares prints of two fingers. Prints
are compared either unchanged ("as they are") or in several poses (rotations and shifts). The similarity of two prints
in several poses is the highest similarity over these poses.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from fingerprint_accel.data.loader import Subset, subset_of_fingers
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError, write_errors
from fingerprint_accel.extraction.calibration import LOOSE_NOTES, NOTE, Calibration, Way
from fingerprint_accel.extraction.centring import as_text, centred, mean_template
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.model_card import METRICS, compared
from fingerprint_accel.extraction.poses import UPRIGHT, Poses
from fingerprint_accel.metrics.curve import resolvable, sorted_curve
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.models.saved_model import MODEL, SavedModel, find_model
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.text import aligned
from fingerprint_accel.training.data import PrintSource

PROTOCOL = "all-pairs"
RATES = (1e-2, 1e-3, 1e-4, 1e-5)
DIGITS = 10_000  # thresholds are rounded up to four digits; rounding down could raise the FMR
BATCH = 64
MOST_PRINTS = 10_000
"""Approximate largest number of prints that are compared in a single pose."""
FEWEST_FINGERS = 20
"""Smallest number of fingers for centring. The mean template of fewer fingers depends mainly on these fingers."""


def has_synthetic(prints: PrintSource) -> bool:
    """Return whether any of the prints is synthetic.

    A print is synthetic if it is rendered on demand, or if its `source` in the dataset starts with "synthetic".
    """
    if not isinstance(prints, Subset):
        return True
    return bool(pc.any(pc.starts_with(prints.shards.table["source"].take(prints.rows), "synthetic")).as_py())


def calibrate(
    extractor: FingerprintExtractor,
    prints: PrintSource,
    source: str,
    most: int = MOST_PRINTS,
    most_posed: int | None = None,
    progress: bool = True,
    center: bool = False,
) -> Calibration:
    """Measure thresholds and error rates on prints, and store them in the notes of the model.

    Args:
        extractor: model to calibrate. The result is stored in its `notes`, where it replaces an earlier calibration.
        prints: prints of fingers that the model was not trained on, in the format that the model needs.
        source: name of the prints, to store in the calibration.
        most: approximate largest number of prints to compare in a single pose.
        most_posed: approximate largest number of prints to compare in several poses; 0 skips this. None means 500 on a
            CPU and 2000 on a GPU, because embedding time grows with the number of poses.
        progress: show progress bars.
        center: also store the mean template of the prints. The model then subtracts this mean from every template. The
            mean over few fingers depends more on the fingers than on the sensor, see `FEWEST_FINGERS`.

    Returns:
        The calibration.

    Raises:
        UserError: if there is no mated or no non-mated pair, or an embedding is not finite.
    """
    for name in (NOTE, *LOOSE_NOTES):
        extractor.notes.pop(name, None)  # an earlier centre must not affect the measurement
    if center:
        extractor.notes.pop(METRICS, None)  # these error rates were measured without this centre
    cells, branches = extractor.cells, len(extractor.model.branch_dims) if center else 0
    embeddings, fingers = embedded(extractor, prints, UPRIGHT, most, progress)
    ways = [measure(embeddings, fingers, cells, branches)]
    text = as_text(mean_template(embeddings[:, 0], cells)) if center else ""
    if most_posed is None:
        most_posed = 500 if extractor.device.type == "cpu" else 2000
    if most_posed:
        posed = embedded(extractor, prints, extractor.usual_poses, most_posed, progress)
        ways.append(measure(*posed, cells, branches))
    found = Calibration(source, has_synthetic(prints), PROTOCOL, ways, text)
    extractor.notes[NOTE] = found.values()
    return found


def sample_of_fingers(fingers: np.ndarray, most: int) -> np.ndarray:
    """Choose the prints of a seeded random sample of fingers, so that there are about `most` prints.

    Args:
        fingers: (N,) int finger index of each print.
        most: approximate largest number of prints. At least two fingers are chosen.

    Returns:
        Rows of the chosen prints in ascending order; all rows if there are at most `most` prints.
    """
    if len(fingers) <= most:
        return np.arange(len(fingers))
    sizes = np.bincount(fingers)
    order = np.random.default_rng(0).permutation(np.flatnonzero(sizes))
    chosen = order[: max(2, int(np.searchsorted(np.cumsum(sizes[order]), most, side="right")))]
    return np.flatnonzero(np.isin(fingers, chosen))


def embedded(
    extractor: FingerprintExtractor, prints: PrintSource, poses: Poses, most: int, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Embed prints for a calibration.

    Args:
        extractor: model, which computes in float32 unless its `bf16` is set.
        prints: prints to embed.
        poses: poses in which each print is embedded.
        most: approximate largest number of prints. If there are more, the prints of a fixed sample of fingers are
            embedded.
        progress: show a progress bar.

    Returns:
        Two arrays: (N, P, D) float32 embeddings of N prints in P poses, and the (N,) finger of each print.
    """
    rows = sample_of_fingers(prints.labels, most)
    parts = []
    title = "as they are" if len(poses) == 1 else f"in {len(poses)} poses"
    with tqdm(total=len(rows), desc=f"calibrating {title}", unit="print", disable=not progress) as bar:
        for start in range(0, len(rows), BATCH):
            chosen = rows[start : start + BATCH]
            images = prints.read(chosen, np.zeros_like(chosen)).image
            found = extractor(images.to(extractor.device), poses).cpu().numpy()
            parts.append(found.reshape(len(chosen), len(poses), -1))
            bar.update(len(chosen))
    return np.concatenate(parts), prints.labels[rows]


def measure(embeddings: np.ndarray, fingers: np.ndarray, cells: int, branches: int = 0) -> Way:
    """Measure error rates and thresholds over all pairs of prints.

    Args:
        embeddings: (N, P, D) float32 embeddings with unit norm in P poses, with the unchanged print as the first pose.
        fingers: (N,) finger of each print.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
        branches: number of branches of the network if its templates are to be centred, else 0. Each half of the fingers
            is then centred by the mean of the other half. If F fingers were centred by their own mean, non-mated
            similarities would be lower by about 1 / F, and the threshold would accept too many comparisons.

    Raises:
        UserError: if there is no mated or no non-mated pair, or an embedding is not finite.
    """

    def scored(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = score_protocol(PROTOCOL, vectors, labels, np.zeros_like(labels), cells=cells)
        return scores.mated, scores.nonmated

    poses = embeddings.shape[1]
    if not branches:
        return rates(*scored(embeddings, fingers), fingers, poses)
    before, after = [], []
    for half in halves(fingers):
        center = torch.from_numpy(mean_template(embeddings[~half, 0], cells))
        vectors = torch.from_numpy(embeddings[half])
        moved = centred(vectors.flatten(0, 1), center, branches, cells).numpy().reshape(vectors.shape)
        before.append(scored(embeddings[half], fingers[half]))
        after.append(scored(moved, fingers[half]))
    mated, nonmated = (np.concatenate(kind) for kind in zip(*before, strict=True))
    eer = rates(mated, nonmated, fingers, poses).eer
    mated, nonmated = (np.concatenate(kind) for kind in zip(*after, strict=True))
    return dataclasses.replace(rates(mated, nonmated, fingers, poses), eer_before=eer)


def halves(fingers: np.ndarray) -> list[np.ndarray]:
    """Split the fingers into two halves, such that fingers with many prints are distributed equally to both halves.

    Args:
        fingers: (N,) finger of each print.

    Returns:
        Two (N,) bool masks, one for each half, which are True for the prints in this half.
    """
    values, codes, sizes = np.unique(fingers, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(values))
    odd = rank[codes] % 2 == 1
    return [odd, ~odd]


def rates(mated: np.ndarray, nonmated: np.ndarray, fingers: np.ndarray, poses: int) -> Way:
    """Compute error rates and thresholds from similarities.

    An FMR of the list `RATES` is left out if there are too few non-mated comparisons to measure its threshold.

    Args:
        mated: similarities of the mated comparisons.
        nonmated: similarities of the non-mated comparisons.
        fingers: (N,) finger of each print, from which the numbers of prints and fingers are determined.
        poses: number of poses in which each print was compared.
    """
    curve = sorted_curve(mated, nonmated)
    lowest = {f"{rate:g}": curve.threshold_at_fmr(rate) for rate in RATES if resolvable(rate, len(nonmated))}
    thresholds = {rate: math.ceil(value * DIGITS) / DIGITS for rate, value in lowest.items()}
    exact = mated.astype(np.float64)  # the precision in which `decisions` compares
    return Way(
        poses=poses,
        prints=len(fingers),
        fingers=len(np.unique(fingers)),
        mated=len(mated),
        nonmated=len(nonmated),
        eer=round(curve.eer()[0], 5),
        thresholds=thresholds,
        fnmr={rate: round(float((exact < value).mean()), 5) for rate, value in thresholds.items()},
    )


def calibrate_export(extractor: FingerprintExtractor, validation: PrintSource, source: str) -> None:
    """Calibrate a model on some of the validation fingers of its training run.

    The number of prints is limited, so that this takes a small fraction of the training time. On a GPU, the prints are
    also compared in several poses. On a CPU, at most about 100 prints are also compared in several poses, and only if
    the model aligns prints. Synthetic prints are compared in a single pose only, because their thresholds are not used
    for decisions. If there are too few prints, a message is printed and the model is not calibrated.

    Args:
        extractor: model to calibrate; the calibration is stored in its `notes`.
        validation: validation prints.
        source: name of the prints, to store in the calibration.
    """
    gpu = extractor.device.type != "cpu"
    posed = 0 if has_synthetic(validation) else 2000 if gpu else 100 if extractor.alignment_network is not None else 0
    try:
        calibrate(extractor, validation, source, 2000 if gpu else 500, posed, progress=sys.stderr.isatty())
    except UserError as error:
        print(f"the model is not calibrated: {error}")


def calibrate_command(model: str, dataset: Path, out: Path | None, center: bool = True) -> None:
    """Calibrate a model on a dataset, write the model, and print the measured rates.

    Args:
        model: run folder, exported model folder, checkpoint folder or bundled model.
        dataset: dataset folder.
        out: model folder to write; None updates `model` in place.
        center: also store the mean template, if the dataset has at least `FEWEST_FINGERS` fingers.

    Raises:
        UserError: if the model or the dataset cannot be used, if there is no mated or no non-mated pair, if `out` is
            None and the model cannot be updated in place, or if a file cannot be written.
    """
    saved, folder = _place(model, dataset, out)
    shards = open_dataset(dataset)
    extractor = open_extractor(saved.folder)
    extractor.check_dataset(shards)
    extractor.notes = dict(saved.notes)
    source = dataset.resolve().name
    everything = subset_of_fingers(shards, np.ones(len(shards.key_of_finger), bool))
    enough = shards.info.fingers >= FEWEST_FINGERS
    found = calibrate(extractor, everything, source, center=center and enough)
    with write_errors():
        if folder == saved.folder:
            extractor.save_notes(folder)
        else:
            extractor.save_pretrained(folder, half=saved.half)
    print(f"\n{summary(found)}\n\ncalibrated: {folder}")
    if center and not enough:
        print(f"templates are not centred: the dataset has {shards.info.fingers} fingers, {FEWEST_FINGERS} are needed")
    for warning in _warnings(found, shards):
        print(f"warning: {warning}", file=sys.stderr)


def _place(model: str, dataset: Path, out: Path | None) -> tuple[SavedModel, Path]:
    """Choose the model to open and the folder to write for `calibrate_command`.

    Raises:
        UserError: if there is no such model, `out` must not be written, or the model cannot be updated in place.
    """
    saved = find_model(model)
    if out is not None:
        check_folder(out, MODEL, inputs=[dataset])
        return saved, out
    if not Path(model).exists():
        raise UserError(f"{model}: a bundled model is not changed; give --out FOLDER for a calibrated copy")
    if (saved.folder / "config.json").is_file():
        return saved, saved.folder
    if Path(model).resolve() == saved.folder.resolve():
        raise UserError(f"{model}: a checkpoint is not changed; give its run folder, or --out FOLDER")
    export = Path(model) / "model"
    exported = find_model(export) if (export / "config.json").is_file() else None
    if exported is not None and exported.notes.get("checkpoint") == saved.folder.name:
        return exported, export
    kept = {} if exported is None else exported.notes
    return dataclasses.replace(saved, notes={**kept, "checkpoint": saved.folder.name}), export


def summary(found: Calibration) -> str:
    """Return the measured rates as a text table, with one column for each number of poses."""
    names = ["prints", "fingers", "mated comparisons", "non-mated comparisons", "EER"]
    before = ["EER before centring"] if found.center else []
    columns = [["", *names, *before, *(f"FMR {100 * rate:g} %" for rate in RATES)]]
    for way in found.ways:
        counts = [f"{count:,}" for count in (way.prints, way.fingers, way.mated, way.nonmated)]
        rates = []
        for rate in RATES:
            threshold = way.thresholds.get(f"{rate:g}")
            missing = f"- (needs {round(1 / rate):,} non-mated)"
            rates.append(
                missing if threshold is None else f"threshold {threshold:.4f}, FNMR {way.fnmr[f'{rate:g}']:.2%}"
            )
        uncentred = ["-" if way.eer_before is None else f"{way.eer_before:.2%}"] if found.center else []
        columns.append([compared(way.poses), *counts, f"{way.eer:.2%}", *uncentred, *rates])
    return aligned(list(zip(*columns, strict=True)))


def _warnings(found: Calibration, shards: Shards) -> list[str]:
    """Return the reasons, if any, why `compare`, `search` and `demo` make no decisions with these thresholds.

    Args:
        found: the calibration.
        shards: dataset that it was measured on.
    """
    warnings = []
    if found.synthetic:
        warnings.append(
            f"{shards.folder}: these prints are synthetic; their thresholds do not hold on real fingers, so compare, "
            "search and demo show no decision"
        )
    fewest = min(way.nonmated for way in found.ways)
    if not resolvable(RATES[0], fewest):
        needed = round(1 / RATES[0])
        warnings.append(
            f"{shards.folder}: {fewest} non-mated comparisons are too few for a threshold; {needed} are needed"
        )
    return warnings
