"""Calibration of a model: similarity thresholds for given false match rates, measured on a dataset."""

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
from fingerprint_accel.errors import UserError
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
DIGITS = 10_000  # thresholds are rounded up to four digits, so that the stored threshold keeps its FMR
BATCH = 64
MOST_PRINTS = 10_000
"""Largest number of prints that are compared as they are."""
FEWEST_FINGERS = 20
"""Smallest number of fingers for centring: the mean of fewer depends more on the fingers than on the sensor."""


def has_synthetic(prints: PrintSource) -> bool:
    """Return whether any print is synthetic: from a generator, or with a `source` that starts with "synthetic"."""
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
    """Measure thresholds, and store them in the notes of the model.

    Args:
        extractor: the model. The calibration is stored in its `notes` and replaces the notes of older exports.
        prints: prints of fingers that the model was not trained on, on canvases that fit the model.
        source: name of the prints in the calibration.
        most: approximate number of prints to compare as they are.
        most_posed: approximate number of prints to compare in several poses; 0 skips this. The default is 500 on a CPU
            and 2000 on a GPU, because embedding time grows with the number of poses.
        progress: show progress bars.
        center: also store the mean template of the prints, which the model then subtracts from every template. The mean
            of few fingers depends more on the fingers than on the sensor, see `FEWEST_FINGERS`.

    Returns:
        The calibration.

    Raises:
        UserError: as in `measure`.
    """
    for name in (NOTE, *LOOSE_NOTES):
        extractor.notes.pop(name, None)  # an earlier centre must not affect the measurement
    if center:
        extractor.notes.pop(METRICS, None)  # they were measured without this centre
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
    """Return the rows of all prints, or of a seeded random choice of at least two fingers with about `most` prints."""
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
        extractor: the model, which computes in float32 unless its `bf16` is set.
        prints: prints to embed.
        poses: poses in which each print is embedded.
        most: approximate number of prints; of larger sets, a fixed choice of fingers is taken.
        progress: show a progress bar.

    Returns:
        Embeddings, (N, P, D) float32, and the finger of each print, (N,).
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
    """Measure error rates and thresholds over all pairs of prints, for one way of comparing.

    Args:
        embeddings: (N, P, D) float32 embeddings of unit length, with the unchanged print as the first pose.
        fingers: (N,) finger of each print.
        cells: number of cells of dense templates; 0 for other templates.
        branches: number of branches of the network if its templates are centred, else 0. Each half of the fingers is
            then centred by the mean of the other half. If the fingers contributed to their own mean, the similarity of
            two of F fingers would be lower by about 1 / F, and the threshold would accept too many comparisons.

    Raises:
        UserError: there is no mated or no non-mated pair, or an embedding is not finite.
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
    """Split the prints by finger into two (N,) bool masks, with equally many large and small fingers in each."""
    values, codes, sizes = np.unique(fingers, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(values))
    odd = rank[codes] % 2 == 1
    return [odd, ~odd]


def rates(mated: np.ndarray, nonmated: np.ndarray, fingers: np.ndarray, poses: int) -> Way:
    """Compute error rates and thresholds of scores, without FMRs that the comparisons cannot resolve.

    Args:
        mated: similarities of the mated comparisons.
        nonmated: similarities of the non-mated comparisons.
        fingers: (N,) finger of each print.
        poses: number of poses in which prints were compared.
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
    """Calibrate a model on the validation fingers of its run, in a small fraction of the training time.

    Prints are also compared in several poses if that is cheap: on a GPU, or with few prints if the model aligns prints.
    Synthetic prints are compared as they are only, because they give no decisions. If the prints do not suffice for a
    calibration, a message is printed and the model stays uncalibrated.

    Args:
        extractor: the model; the calibration is stored in its `notes`.
        validation: validation prints.
        source: name of the prints in the calibration.
    """
    gpu = extractor.device.type != "cpu"
    posed = 0 if has_synthetic(validation) else 2000 if gpu else 100 if extractor.alignment_network is not None else 0
    try:
        calibrate(extractor, validation, source, 2000 if gpu else 500, posed, progress=sys.stderr.isatty())
    except UserError as error:
        print(f"the model is not calibrated: {error}")


def calibrate_command(model: str, dataset: Path, out: Path | None, center: bool = True) -> None:
    """Calibrate a model, write it, and print the measured rates.

    Args:
        model: run folder, exported model folder, checkpoint folder or bundled model.
        dataset: dataset folder.
        out: model folder to write; None updates `model`.
        center: also store the mean template, if the dataset has at least `FEWEST_FINGERS` fingers.

    Raises:
        UserError: the model or the dataset cannot be used, there is no mated or no non-mated pair, or the model cannot
            be updated in place.
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
    """Return the model to open and the folder to write."""
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
    """Return a table with one column for each way of comparing."""
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
    """Return the reasons why `compare`, `search` and `demo` do not decide by these thresholds."""
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
