"""NIST's matcher on a set of prints: mindtct -b and Bozorth3 on every pair."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from machine import usable_cores
from PIL import Image
from real_sets import Prints
from tqdm import tqdm

from fingerprint_accel.data.nbis import PPI, Nbis
from fingerprint_accel.evaluation.calibration import PROTOCOL
from fingerprint_accel.metrics.protocols import Scores, comparisons


class _Worker:
    """State that a process keeps between tasks."""

    judge: Nbis
    templates: list[bytes]


def _start(templates: list[bytes]) -> None:
    """Load NBIS and the templates in a worker process."""
    _Worker.judge, _Worker.templates = Nbis(), templates


def _template(grey: np.ndarray) -> bytes:
    """Return the template of an image."""
    return _Worker.judge.template(grey)


def _compare(pair: list[int]) -> int:
    """Return the score of a pair of templates."""
    return _Worker.judge.compare(_Worker.templates[pair[0]], _Worker.templates[pair[1]])


def _spread(work: Callable[[Any], Any], tasks: list[Any], templates: list[bytes], what: str) -> list[Any]:
    """Run `work` on each task on all cores, and return the results in order."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), context, _start, (templates,)) as pool:
        found = pool.map(work, tasks, chunksize=8)
        return list(tqdm(found, total=len(tasks), desc=f"NBIS {what}", leave=False, disable=None))


def nbis_scores(images: list[np.ndarray], ppi: int, prints: Prints) -> Scores:
    """Return Bozorth3's score of every pair of prints. It takes about 0.1 s a print and 30 ms a pair on one core.

    Args:
        images: (H, W) uint8 each. They are resampled to 500 ppi, for which NBIS is made.
        ppi: Resolution of the images.
        prints: Fingers and impressions of the images.
    """
    templates = _spread(_template, [at_500_ppi(image, ppi) for image in images], [], "minutiae")
    pairs = comparisons(PROTOCOL, prints.fingers, prints.impressions)
    tasks = np.concatenate([pairs.mated, pairs.nonmated]).tolist()
    found = np.array(_spread(_compare, tasks, templates, "comparisons"), np.float32)
    return Scores(found[: len(pairs.mated)], found[len(pairs.mated) :], pairs, prints.fingers)


def at_500_ppi(image: np.ndarray, ppi: int) -> np.ndarray:
    """Resample an image to 500 ppi, for which NBIS is made."""
    if ppi == PPI:
        return image
    height, width = (round(side * PPI / ppi) for side in image.shape)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
