"""Similarities by which an audit decides, and what they rest on.

A set of N prints has about N^2 / 2 non-mated comparisons, so that an FMR of 1e-6 still means eight false alarms among
4,000 prints. Hence the rate is lowered until one false alarm is expected in the whole set.

Scores of so low a rate are not there to be counted. They are extrapolated: among the most similar few percent, the
share of non-mated scores above a score falls by a constant factor per step of its atanh. This exponential tail
overestimates similarities a little (4,000 synthetic prints: 0.80 to 0.85 for FMR 1e-6, where 0.77 was counted), so that
fewer prints are called the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fingerprint_accel.evaluation.calibration import sample_of_fingers
from fingerprint_accel.extraction.calibration import Calibration
from fingerprint_accel.similarity import similarity

SURE = 1e-6  # FMR of "surely the same", and less in large sets
AGREE, APART = 1e-3, 1e-2  # FMR of "these agree", and the least of what does not
SAMPLE = 4000  # prints whose non-mated scores are looked at
FEWEST_FINGERS, FEWEST_SCORES = 10, 1000  # for a tail
ENOUGH_FINGERS = 20  # for trusting it alone
TAIL = (1e-3, 1e-2)  # share of scores from which a tail is extrapolated: 1 / F, as wrong keys may stand in the tail
MATED_SHARES = (0.05, 0.01)  # of best mated scores, from which their low end is extrapolated


@dataclass(frozen=True)
class Bars:
    """What decides.

    Attributes:
        same: lowest similarity at which prints are surely of one finger.
        match: likewise, for a print that is not of its own finger anyway, with all prints of another one together.
        agree: likewise, for prints that have one key.
        unlike: below, impressions of a finger are of another one where they are surely the same as that.
        apart: below, they are of another one, whatever that is.
        lines: what these rest on, or why nothing is decided.
    """

    same: float
    match: float
    agree: float
    unlike: float
    apart: float
    lines: list[str] = field(default_factory=list)


def find_bars(embeddings: np.ndarray, fingers: np.ndarray, best_mated: np.ndarray, cells: int, notes: dict) -> Bars:
    """Similarities to decide by, from the dataset's own scores or, where it is small, from the model's notes.

    Args:
        embeddings: (N, D) float32 of unit length.
        fingers: (N,) of each print.
        best_mated: (n,) of every usable print that has mates: its similarity with the best of them.
        cells: of dense templates, else 0.
        notes: of the model.

    Returns:
        The bars; infinite and -infinite, so that nothing is decided, where there is no basis.
    """
    rows = sample_of_fingers(fingers, SAMPLE)
    scores = nonmated_scores(embeddings[rows], fingers[rows], cells)
    sizes = np.bincount(fingers)
    pairs = (int(sizes.sum()) ** 2 - int((sizes.astype(np.int64) ** 2).sum())) // 2
    rate, count = min(SURE, 1 / max(1, pairs)), int((sizes > 0).sum())
    noted = _from_notes(notes, rate)
    if count < FEWEST_FINGERS or len(scores) < FEWEST_SCORES:
        few = f"{count} fingers and {len(scores):,} non-mated scores are too few for thresholds of this dataset"
        if noted is None:
            never = math.inf
            return Bars(never, never, never, -never, -never, [f"{few}, and the model keeps none: keys are not judged"])
        (same, match, agree, apart), line = noted
        return Bars(same, match, agree, apart, apart, [f"{few}; {line}", *_told(same, agree, apart, rate)])
    low = min(TAIL[1], max(TAIL[0], 1 / count))
    same, match, agree, unlike, usual = (
        tail(scores, (10 * low, low), target) for target in (rate, APART / count, AGREE, APART, 10 * APART)
    )
    lines = [
        f"thresholds from {len(scores):,} non-mated scores of {len(np.unique(fingers[rows])):,} fingers of this "
        f"dataset: an exponential tail through their most similar {1000 * low:g} % and {100 * low:g} %"
    ]
    if count < ENOUGH_FINGERS and noted is not None and noted[0][0] > same:
        same, match = noted[0][0], max(match, noted[0][1])
        lines.append(f"but {count} fingers are few: the higher one for fingers of two keys is taken; {noted[1]}")
    # Best scores of wrong prints are mostly below `usual`, and few of them above; those of mated prints the other way.
    gap = (best_mated < usual).sum() >= ((best_mated >= usual) & (best_mated < unlike)).sum()
    apart, mated = unlike, best_mated[best_mated >= (unlike if gap else usual)]
    if len(mated):
        apart = min(apart, -tail(-mated, MATED_SHARES, 1 / len(mated)))
    return Bars(same, match, agree, unlike, apart, [*lines, *_told(same, agree, apart, rate)])


def bar_of_fingers(references: np.ndarray, cells: int) -> tuple[float, list[str]]:
    """Lowest similarity at which two fingers are surely one, of all their prints together, and what it rests on.

    Args:
        references: (F, D) float32 of unit length, one template for each finger.
        cells: of dense templates, else 0.

    Returns:
        Infinite for too few fingers: then single prints decide alone.
    """
    count = len(references)
    rows = sample_of_fingers(np.arange(count), SAMPLE)
    scores = nonmated_scores(references[rows], rows, cells)
    if len(scores) < FEWEST_SCORES:
        return math.inf, []
    rate = min(SURE, 2 / (count * (count - 1)))
    low = min(TAIL[1], max(TAIL[0], 1 / count))
    bar = tail(scores, (10 * low, low), rate)
    line = (
        f"two keys are one finger as well where all their prints together have similarity {bar:.3f} or more "
        f"(FMR {rate:.1g} by a tail of {len(scores):,} scores)"
    )
    return bar, [line]


def nonmated_scores(embeddings: np.ndarray, fingers: np.ndarray, cells: int) -> np.ndarray:
    """(M,) similarity of every pair of prints of different fingers, once."""
    parts = []
    for start in range(0, len(fingers), 256):
        here = slice(start, start + 256)
        scores = similarity(embeddings[here], embeddings[start:], cells)
        later = np.arange(start, len(fingers))[None] > np.arange(start, len(fingers))[:256, None]
        parts.append(scores[later & (fingers[here, None] != fingers[None, start:])])
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def tail(scores: np.ndarray, shares: tuple[float, float], rate: float) -> float:
    """The score that a share `rate` is above: on a straight line of atanh(score) over log(share) through two shares of
    the (n,) `scores`; where `rate` is between or above them, the one that was counted."""
    if rate >= shares[1]:
        return float(np.quantile(scores, 1 - rate))
    high, low = np.arctanh(np.quantile(scores, [1 - shares[0], 1 - shares[1]]).clip(-0.9999, 0.9999))
    return math.tanh(low + (low - high) * math.log(shares[1] / rate) / math.log(shares[0] / shares[1]))


def _from_notes(notes: dict[str, Any], rate: float) -> tuple[tuple[float, float, float, float], str] | None:
    """`same`, `match`, `agree`, `apart` by the model's calibration, and a line about it; None where it has no use."""
    found = Calibration.from_notes(notes)
    way = found.way(1) if found else None
    if found is None or way is None or len(way.thresholds) < 2:
        return None
    known = {float(share): np.arctanh(min(value, 0.9999)) for share, value in way.thresholds.items()}

    def at(wanted: float) -> float:
        shares = sorted(known, reverse=True)
        upper = next((share for share in shares[1:] if share <= wanted), shares[-1])
        lower = shares[shares.index(upper) - 1]
        slope = (known[upper] - known[lower]) / math.log(lower / upper)
        return math.tanh(known[upper] + slope * math.log(upper / wanted))

    kind = "synthetic prints, which are not like yours" if found.synthetic else "prints"
    line = (
        f"the model's thresholds are taken, measured on {way.nonmated:,} non-mated scores of {kind} ({found.source}), "
        f"extrapolated below FMR {min(known):g}"
    )
    return (at(rate), at(rate), at(AGREE), at(APART)), line


def _told(same: float, agree: float, apart: float, rate: float) -> list[str]:
    return [
        f"prints of two keys are one finger from similarity {same:.3f} on (FMR {rate:.1g}); impressions are of another "
        f"finger below {apart:.3f} with all others, where others agree by {agree:.3f} (FMR {AGREE:g})"
    ]
