"""Compare real and synthetic datasets by the same measures, with detector, matcher and quality score of NIST.

python benchmarks/realism.py DATASET [DATASET ...] --out FILE.json

python benchmarks/realism.py datasets/synthetic datasets/fvc2002_db1_b --prints 400 --pairs 3000

The benchmark needs `pip install nbis-py`. It takes about 0.4 s a print and 10 ms a comparison on one core.
"""

import multiprocessing
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from machine import device_name
from minutia_matching import MAX_DISTANCE_MM, angle_difference, match_minutiae
from PIL import Image
from realism_measures import image_measures
from realism_table import table
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel.data.nbis import ENDING, PPI, Nbis
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.metrics.bootstrap import bootstrap_eer
from fingerprint_accel.metrics.protocols import Pairs, Scores, comparisons
from fingerprint_accel.metrics.verification import compute_metrics

CONFIDENT = 0.5  # least reliability of a confident minutia of mindtct
SEED = 0


@dataclass(frozen=True)
class Print:
    """Measurements of a print by name, and its template for Bozorth3."""

    measures: dict[str, float]
    template: bytes


class _Worker:
    """State that a process keeps between tasks."""

    judge: Nbis
    shards: Shards
    templates: list[bytes]


def _start(folder: Path | None, templates: list[bytes] | None) -> None:
    """Open NBIS and the dataset in a worker process."""
    _Worker.judge = Nbis()
    if folder is not None:
        _Worker.shards = open_dataset(folder)
    if templates is not None:
        _Worker.templates = templates


def _measure(row: int) -> Print:
    """Measure the print in a row of the dataset."""
    shards = _Worker.shards
    grey, ppi = np.array(shards.image(row)), shards.info.ppi
    side = round(len(grey) * PPI / ppi)
    found = _Worker.judge.extract(np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.LANCZOS)))
    measures = image_measures(grey, ppi)
    confident = found.minutiae[:, 3] >= CONFIDENT
    measures |= {
        "nfiq2": found.quality,
        "found": float(len(found.minutiae)),
        "confident": float(confident.sum()),
        "endings": float((found.kinds == ENDING).sum()),
        "confident_endings": float((found.kinds[confident] == ENDING).sum()),
    }
    truth, counts = shards.minutiae(np.array([row]))
    if counts[0]:
        at = found.minutiae.copy()
        at[:, :2] = (at[:, :2] + 0.5) * (len(grey) / side) - 0.5  # centres of pixels
        measures |= agreement(at, confident, truth[0, : counts[0]], MAX_DISTANCE_MM / 25.4 * ppi)
    return Print(measures, found.template)


def agreement(found: np.ndarray, confident: np.ndarray, truth: np.ndarray, distance: float) -> dict[str, float]:
    """Count the minutiae that detector and dataset share, and return their distances."""
    pairs = match_minutiae(found, truth, distance)
    apart = found[pairs[:, 0], :2] - truth[pairs[:, 1], :2]
    turned = np.degrees(np.abs(angle_difference(found[pairs[:, 0], 2], truth[pairs[:, 1], 2])))
    return {
        "truth": float(len(truth)),
        "truth_found": float(len(pairs)),
        "confident_true": float(len(match_minutiae(found[confident], truth, distance))),
        "apart_px": float(np.median(np.hypot(*apart.T))) if len(pairs) else float("nan"),
        "turned_degrees": float(np.median(turned)) if len(pairs) else float("nan"),
    }


def _compare(pair: tuple[int, int]) -> int:
    """Return the score of a pair of templates."""
    return _Worker.judge.compare(_Worker.templates[pair[0]], _Worker.templates[pair[1]])


def _spread(work: Callable[[Any], Any], tasks: list[Any], start: tuple[Any, Any], processes: int, what: str) -> list:
    """Run `work` on each task in worker processes, and return the results in order."""
    bar = {"total": len(tasks), "desc": what, "leave": False, "disable": None}
    if processes == 1:
        _start(*start)
        return [work(task) for task in tqdm(tasks, **bar)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start, start) as pool:
        return list(tqdm(pool.map(work, tasks, chunksize=8), **bar))


def choose_rows(fingers: np.ndarray, prints: int) -> np.ndarray:
    """Choose rows of whole fingers at random with a fixed seed: as many fingers as fit in `prints`, at least two."""
    order = np.random.default_rng(SEED).permutation(int(fingers.max()) + 1)
    total = np.cumsum(np.bincount(fingers)[order])
    kept = order[: max(2, int(np.searchsorted(total, prints, side="right")))]
    return np.flatnonzero(np.isin(fingers, kept))


def choose_pairs(fingers: np.ndarray, impressions: np.ndarray, most: int) -> Pairs:
    """Choose at most `most` mated and `most` non-mated comparisons.

    Non-mated comparisons cover every two fingers once before they repeat any.

    Raises:
        UserError: There are no mated or no non-mated comparisons.
    """
    every = comparisons("all-pairs", fingers, impressions, max_nonmated=len(fingers) ** 2)
    generator = np.random.default_rng(SEED)
    mated = every.mated[np.sort(generator.permutation(len(every.mated))[:most])]
    shuffled = generator.permutation(every.nonmated)
    two = np.sort(fingers[shuffled].astype(np.int64), axis=1)
    key = two[:, 0] * (int(fingers.max()) + 1) + two[:, 1]
    by_key = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[by_key], prepend=-1))
    turn = np.empty(len(key), np.int64)
    turn[by_key] = np.arange(len(key)) - np.repeat(starts, np.diff(starts, append=len(key)))
    nonmated = shuffled[np.argsort(turn, kind="stable")[:most]]
    return Pairs(mated, nonmated, every.nonmated_possible)


def matching(prints: list[Print], fingers: np.ndarray, impressions: np.ndarray, most: int, processes: int) -> dict:
    """Return the error rates of Bozorth3; empty if the dataset has no mated comparisons."""
    try:
        pairs = choose_pairs(fingers, impressions, most)
    except UserError:
        return {}
    tasks = [tuple(pair) for pair in np.concatenate([pairs.mated, pairs.nonmated]).tolist()]
    templates = [found.template for found in prints]
    made = np.array(_spread(_compare, tasks, (None, templates), processes, "comparisons"), np.float32)
    scores = Scores(made[: len(pairs.mated)], made[len(pairs.mated) :], pairs, fingers)
    metrics = compute_metrics(scores.mated, scores.nonmated)
    low, high = bootstrap_eer(scores)
    return {
        "eer": metrics.eer,
        "eer_low": low,
        "eer_high": high,
        "fmr100": metrics.fmr100,
        "mated_mean": metrics.mated_mean,
        "nonmated_mean": metrics.nonmated_mean,
        "mated": metrics.mated,
        "nonmated": metrics.nonmated,
    }


def summarize(prints: list[Print]) -> dict[str, float]:
    """Summarise the prints of a dataset: percentiles, medians, and ratios of sums."""
    names = sorted({name for found in prints for name in found.measures})
    column = {name: np.array([found.measures.get(name, np.nan) for found in prints]) for name in names}
    area, period = column["area_cm2"].sum(), column["period_mm"]
    period = period[np.isfinite(period)]
    if not len(period):
        raise UserError("no print with clear ridges; is the resolution right?")
    result = {
        "prints": float(len(prints)),
        "period_mean_mm": float(period.mean()),
        **{f"period_p{percent}_mm": float(np.percentile(period, percent)) for percent in (5, 50, 95)},
        **{f"{name}_median": float(np.nanmedian(column[name])) for name in ("period_sd_mm", "area_cm2", "nfiq2")},
        **{f"{name}_mean": float(np.nanmean(column[name])) for name in ("clear_blocks", "grey_mean", "grey_sd")},
        **{f"{name}_per_print": float(column[name].mean()) for name in ("found", "confident")},
        **{f"{name}_per_cm2": float(column[name].sum() / area) for name in ("found", "confident")},
        "endings_share": float(column["endings"].sum() / max(1, column["found"].sum())),
        "confident_endings_share": float(column["confident_endings"].sum() / max(1, column["confident"].sum())),
    }
    if "truth" in column:
        known = np.isfinite(column["truth"])
        true = column["truth"][known].sum()
        result |= {
            "truth_per_print": float(true / known.sum()),
            "truth_per_cm2": float(true / column["area_cm2"][known].sum()),
            "precision": float(column["confident_true"][known].sum() / max(1, column["confident"][known].sum())),
            "recall": float(column["truth_found"][known].sum() / true),
            "apart_px": float(np.nanmedian(column["apart_px"])),
            "turned_degrees": float(np.nanmedian(column["turned_degrees"])),
        }
    return result


def measure_dataset(folder: Path, prints: int, pairs: int, processes: int) -> dict[str, Any]:
    """Measure a column of the table.

    Raises:
        UserError: The folder is no dataset, or its prints show no ridges.
    """
    shards = open_dataset(folder)
    rows = choose_rows(shards.fingers, prints)
    measured = _spread(_measure, rows.tolist(), (folder, None), processes, folder.name)
    _, fingers = np.unique(shards.fingers[rows], return_inverse=True)
    matched = matching(measured, fingers, shards.impressions[rows], pairs, processes)
    return {"fingers": int(fingers.max()) + 1, **summarize(measured), **matched}


def main(
    datasets: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    out: Path | None = None,
    prints: int = 400,
    pairs: int = 3000,
    processes: int = 2,
) -> None:
    """Measure datasets, and print one table.

    Args:
        datasets: Dataset folders, real or synthetic.
        out: JSON file to write.
        prints: Largest number of prints in each dataset; whole fingers, drawn with a fixed seed.
        pairs: Largest number of mated and of non-mated comparisons.
        processes: Number of worker processes.
    """
    check_results(out)
    if not datasets:
        raise UserError("name at least one dataset folder")
    if min(prints, pairs, processes) < 1:
        raise UserError("--prints, --pairs and --processes must be at least 1")
    Nbis()  # raises an error if NBIS is missing
    for folder in datasets:
        open_dataset(folder)
    alone = len({folder.name for folder in datasets}) == len(datasets)
    names = [folder.name if alone else str(folder) for folder in datasets]
    results = {
        name: measure_dataset(folder, prints, pairs, processes) for name, folder in zip(names, datasets, strict=True)
    }
    print(table(results))
    if out is not None:
        setting = {
            "device": device_name(torch.device("cpu")),
            "python": platform.python_version(),
            **{name: version(name) for name in ("nbis-py", "numpy", "pillow")},
            "confident": CONFIDENT,
            "distance_mm": MAX_DISTANCE_MM,
            "command": " ".join(sys.argv),
        }
        write_results(out, {"datasets": results, "setting": setting})
        print(f"written to {out}")


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
