"""Compute similarity scores of pairs of prints with NBIS, the fingerprint software of NIST.

The NBIS program mindtct finds the minutiae of each print. Bozorth3 compares the minutiae of two prints. Both programs
are part of the optional Python package `nbis-py`.
"""

from __future__ import annotations

import time

import numpy as np
from tqdm import tqdm

from fingerprint_accel.data.nbis import Nbis, NistError, find_template
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.metrics.protocols import Pairs, Scores

TIMED_PRINTS, TIMED_PAIRS = 8, 20  # numbers of prints and pairs from which the total time is estimated


def nbis_scores(shards: Shards, pairs: Pairs, most_seconds: float, progress: bool = True) -> Scores:
    """Find the minutiae of prints with mindtct, and return the Bozorth3 scores of mated and non-mated comparisons.

    Args:
        shards: Dataset of the prints.
        pairs: Mated and non-mated comparisons, as rows of the dataset.
        most_seconds: Longest accepted computing time. The time is estimated from the first few prints and comparisons.
        progress: Show a progress bar.

    Raises:
        UserError: If `nbis-py` is not installed or fails on a print, or the estimated time is longer than
            `most_seconds`.
    """
    matcher = Nbis()
    both = np.concatenate([pairs.mated, pairs.nonmated])
    rows = np.unique(both)
    place = np.full(len(shards), -1)
    place[rows] = np.arange(len(rows))
    work = place[both].tolist()
    templates, scores = [], []
    started = time.perf_counter()
    templates += [_template(shards, row) for row in rows[:TIMED_PRINTS].tolist()]
    per_print = (time.perf_counter() - started) / len(templates)
    started = time.perf_counter()
    timed = [matcher.compare(templates[0], templates[n % len(templates)]) for n in range(TIMED_PAIRS)]
    expected = per_print * len(rows) + (time.perf_counter() - started) / len(timed) * len(work)
    require(expected <= most_seconds, f"{len(work):,} comparisons would take about {expected:.0f} s on this machine")
    with tqdm(
        total=len(rows) + len(work), initial=len(templates), desc="NBIS", unit="print or pair", disable=not progress
    ) as bar:
        for row in rows[TIMED_PRINTS:].tolist():
            templates.append(_template(shards, row))
            bar.update()
        for first, second in work:
            scores.append(matcher.compare(templates[first], templates[second]))
            bar.update()
    found = np.array(scores, np.float32)
    return Scores(found[: len(pairs.mated)], found[len(pairs.mated) :], pairs, shards.fingers)


def _template(shards: Shards, row: int) -> bytes:
    try:
        return find_template(shards.image(row), shards.info.ppi)
    except NistError as error:
        source = shards.table["source"][row].as_py()
        raise UserError(f"{shards.folder}: print {source}: {error}; leave this print out") from error
