"""How real prints look: the same measures on real and synthetic datasets, side by side, by judges made by NIST.

python benchmarks/realism.py DATASET [DATASET ...] --out FILE.json

python benchmarks/realism.py datasets/synthetic datasets/fvc2002_db1_b --prints 400 --pairs 3000

Needs `pip install nbis-py`. Takes about 0.4 s per print and 10 ms per comparison on one core.
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

CONFIDENT = 0.5  # reliability from which a minutia of mindtct is counted as confident
SEED = 0


@dataclass(frozen=True)
class Print:
    """What was measured on one print: numbers by name, and its template for Bozorth3."""

    measures: dict[str, float]
    template: bytes


class _Worker:
    """What a process keeps between tasks."""

    judge: Nbis
    shards: Shards
    templates: list[bytes]


def _start(folder: Path | None, templates: list[bytes] | None) -> None:
    _Worker.judge = Nbis()
    if folder is not None:
        _Worker.shards = open_dataset(folder)
    if templates is not None:
        _Worker.templates = templates


def _measure(row: int) -> Print:
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
    """Numbers of minutiae that the detector and the dataset's own list share, and how far apart these lie."""
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
    return _Worker.judge.compare(_Worker.templates[pair[0]], _Worker.templates[pair[1]])


def _spread(work: Callable[[Any], Any], tasks: list[Any], start: tuple[Any, Any], processes: int, what: str) -> list:
    """`work` on each task, in order, with a progress bar."""
    bar = {"total": len(tasks), "desc": what, "leave": False, "disable": None}
    if processes == 1:
        _start(*start)
        return [work(task) for task in tqdm(tasks, **bar)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start, start) as pool:
        return list(tqdm(pool.map(work, tasks, chunksize=8), **bar))


def choose_rows(fingers: np.ndarray, prints: int) -> np.ndarray:
    """Rows of whole fingers, drawn at random but always the same, as many as stay within `prints`, at least two."""
    order = np.random.default_rng(SEED).permutation(int(fingers.max()) + 1)
    total = np.cumsum(np.bincount(fingers)[order])
    kept = order[: max(2, int(np.searchsorted(total, prints, side="right")))]
    return np.flatnonzero(np.isin(fingers, kept))


def choose_pairs(fingers: np.ndarray, impressions: np.ndarray, most: int) -> Pairs:
    """At most `most` mated and non-mated comparisons each; of the latter, one of every two fingers comes first.

    Raises:
        UserError: there are no mated or no non-mated comparisons.
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
    """Error rates of Bozorth3; nothing where the dataset has no mated comparisons."""
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
    """Over the prints of a dataset: percentiles, medians, and ratios of sums."""
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
    """One column of the table.

    Raises:
        UserError: not a dataset, or without ridges.
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
    """Measures datasets and prints one table.

    Args:
        datasets: dataset folders, real or synthetic.
        out: JSON file to write.
        prints: measured per dataset at most; whole fingers, drawn at random but always the same.
        pairs: mated and non-mated comparisons each at most.
        processes: at work at a time.
    """
    check_results(out)
    if not datasets:
        raise UserError("name at least one dataset folder")
    if min(prints, pairs, processes) < 1:
        raise UserError("--prints, --pairs and --processes must be at least 1")
    Nbis()  # missing? say so before anything else
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
