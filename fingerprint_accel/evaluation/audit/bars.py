"""Similarity thresholds of an audit, and their basis.

A set of N prints has about N^2 / 2 non-mated comparisons, so an FMR of 1e-6 means eight false alarms among 4,000
prints. In larger sets the FMR is lowered until one false alarm is expected in the whole set.

A dataset has too few comparisons to measure a threshold at such a low FMR, so the threshold is extrapolated. Among the
highest few percent of the non-mated scores, the share of scores above a score falls by a constant factor per step of
its atanh. This exponential tail slightly overestimates thresholds (4,000 synthetic prints: 0.80 to 0.85 for FMR 1e-6,
where the measured threshold is 0.77), so fewer prints are reported as the same finger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fingerprint_accel.evaluation.calibration import sample_of_fingers
from fingerprint_accel.extraction.calibration import Calibration
from fingerprint_accel.similarity import similarity

SURE = 1e-6
"""Highest FMR at which two prints count as the same finger."""
AGREE, APART = 1e-3, 1e-2
"""Impressions of a finger agree above the threshold for the first FMR, and disagree below that for the second."""
SAMPLE = 4000
"""Number of prints that non-mated scores are computed for."""
FEWEST_FINGERS, FEWEST_SCORES = 10, 1000
"""Smallest numbers of fingers and of non-mated scores for a tail."""
ENOUGH_FINGERS = 20
"""Smallest number of fingers for which a tail is used without the thresholds of the model."""
TAIL = (1e-3, 1e-2)
"""Bounds of the share of scores that a tail starts from: 1 / F, because wrong keys may be in the tail."""
MATED_SHARES = (0.05, 0.01)
"""Shares of the best mated scores from which their low end is extrapolated."""


@dataclass(frozen=True)
class Bars:
    """Similarity thresholds of an audit.

    Attributes:
        same: lowest similarity at which two prints with different keys count as one finger.
        match: lowest similarity at which a print that does not fit its own finger counts as another finger, compared
            with all prints of that finger together.
        agree: lowest similarity at which two prints with the same key agree.
        unlike: below this similarity to its own finger, a print is wrong if it matches another finger.
        apart: below this similarity to its own finger, a print is wrong even if it matches no other finger.
        lines: basis of the thresholds, or the reason why finger keys are not judged.
    """

    same: float
    match: float
    agree: float
    unlike: float
    apart: float
    lines: list[str] = field(default_factory=list)


def find_bars(embeddings: np.ndarray, fingers: np.ndarray, best_mated: np.ndarray, cells: int, notes: dict) -> Bars:
    """Return the thresholds, from the scores of the dataset or, for a small dataset, from the notes of the model.

    Args:
        embeddings: (N, D) float32 embeddings of unit length.
        fingers: (N,) finger of each print.
        best_mated: (n,) highest mated similarity of each usable print that has mates.
        cells: number of cells of dense templates; 0 for other templates.
        notes: notes of the model.

    Returns:
        The thresholds. Without any basis they are infinite or -infinite, so that finger keys are not judged.
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
            reason = f"{few}, and the model has none: finger keys are not judged"
            return Bars(never, never, never, -never, -never, [reason])
        (same, match, agree, apart), line = noted
        lines = [f"{few}; those of the model are used, {line}", *_told(same, agree, apart, rate)]
        return Bars(same, match, agree, apart, apart, lines)
    low = min(TAIL[1], max(TAIL[0], 1 / count))
    same, match, agree, unlike, usual = (
        tail(scores, (10 * low, low), target) for target in (rate, APART / count, AGREE, APART, 10 * APART)
    )
    lines = [
        f"thresholds are extrapolated from {len(scores):,} non-mated scores of {len(np.unique(fingers[rows])):,} "
        f"fingers of this dataset, by an exponential tail through their highest {1000 * low:g} % and {100 * low:g} %"
    ]
    if count < ENOUGH_FINGERS and noted is not None and noted[0][0] > same:
        same, match = noted[0][0], max(match, noted[0][1])
        lines.append(f"{count} fingers are few, so the threshold of the model for two keys is used, {noted[1]}")
    # The best scores of wrong prints are mostly below `usual`, those of mated prints mostly above.
    gap = (best_mated < usual).sum() >= ((best_mated >= usual) & (best_mated < unlike)).sum()
    apart, mated = unlike, best_mated[best_mated >= (unlike if gap else usual)]
    if len(mated):
        apart = min(apart, -tail(-mated, MATED_SHARES, 1 / len(mated)))
    return Bars(same, match, agree, unlike, apart, [*lines, *_told(same, agree, apart, rate)])


def bar_of_fingers(references: np.ndarray, cells: int) -> tuple[float, list[str]]:
    """Return the threshold at which two keys count as one finger, compared by all their prints together.

    Args:
        references: (F, D) float32 templates of unit length, one for each finger.
        cells: number of cells of dense templates; 0 for other templates.

    Returns:
        The threshold and its basis. With too few fingers the threshold is infinite, so that single prints decide.
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
        f"two keys also count as one finger if the similarity of all their prints together is {bar:.3f} or more "
        f"(FMR {rate:.1g}, extrapolated from {len(scores):,} scores)"
    )
    return bar, [line]


def nonmated_scores(embeddings: np.ndarray, fingers: np.ndarray, cells: int) -> np.ndarray:
    """Return the (M,) similarities of all pairs of prints of different fingers."""
    parts = []
    for start in range(0, len(fingers), 256):
        here = slice(start, start + 256)
        scores = similarity(embeddings[here], embeddings[start:], cells)
        later = np.arange(start, len(fingers))[None] > np.arange(start, len(fingers))[:256, None]
        parts.append(scores[later & (fingers[here, None] != fingers[None, start:])])
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def tail(scores: np.ndarray, shares: tuple[float, float], rate: float) -> float:
    """Return the score that is exceeded with probability `rate`.

    The score lies on a straight line of atanh(score) over log(share) through two shares of the (n,) `scores`. If `rate`
    is not below the larger share, the quantile of the scores is returned.
    """
    if rate >= shares[1]:
        return float(np.quantile(scores, 1 - rate))
    high, low = np.arctanh(np.quantile(scores, [1 - shares[0], 1 - shares[1]]).clip(-0.9999, 0.9999))
    return math.tanh(low + (low - high) * math.log(shares[1] / rate) / math.log(shares[0] / shares[1]))


def _from_notes(notes: dict[str, Any], rate: float) -> tuple[tuple[float, float, float, float], str] | None:
    """Return `same`, `match`, `agree` and `apart` by the calibration of the model, and their basis, or None."""
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

    kind = "synthetic prints" if found.synthetic else "prints"
    line = (
        f"measured on {way.nonmated:,} non-mated scores of {kind} ({found.source}) and extrapolated below FMR "
        f"{min(known):g}"
    )
    return (at(rate), at(rate), at(AGREE), at(APART)), line


def _told(same: float, agree: float, apart: float, rate: float) -> list[str]:
    """Describe the thresholds."""
    return [
        f"prints with two keys count as one finger if their similarity is {same:.3f} or more (FMR {rate:.1g})",
        f"an impression counts as another finger if its similarity to all others of its key is below {apart:.3f} and "
        f"the others agree by {agree:.3f} or more (FMR {AGREE:g})",
    ]
