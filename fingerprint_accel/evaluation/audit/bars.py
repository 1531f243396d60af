"""Similarity thresholds that an audit uses to find wrong finger keys, and how they are derived.

A finger key is the name of a finger in the dataset. A set of N prints has about N^2 / 2 non-mated comparisons, so an
FMR of 1e-6 means eight false alarms among 4,000 prints. In larger sets the FMR is lowered until one false alarm is
expected in the whole set.

A dataset has too few comparisons to measure a threshold at such a low FMR, so the threshold is extrapolated from the
tail of the non-mated similarities s. Among the highest few percent, the share of similarities above s falls
exponentially with atanh(s). This model slightly overestimates thresholds, so fewer pairs of prints are reported as the
same finger. (For 4,000 synthetic prints and FMR 1e-6 it gives 0.80 to 0.85, where the measured threshold is 0.77.)
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
"""FMR of the threshold at which two prints count as the same finger; lower in large datasets."""
AGREE, APART = 1e-3, 1e-2
"""FMRs of two thresholds. Impressions of a finger agree above the threshold for the FMR `AGREE`, and disagree below the
threshold for the FMR `APART`."""
SAMPLE = 4000
"""Approximate number of prints whose non-mated similarities are computed."""
FEWEST_FINGERS, FEWEST_SCORES = 10, 1000
"""Smallest numbers of fingers and of non-mated similarities from which thresholds are extrapolated."""
ENOUGH_FINGERS = 20
"""Smallest number of fingers for which the thresholds of the model are not needed in addition."""
TAIL = (1e-3, 1e-2)
"""Bounds of the smaller share of highest similarities from which `tail` extrapolates. It is 1 / F for F fingers."""
MATED_SHARES = (0.05, 0.01)
"""Larger and smaller share of the lowest mated similarities, from which their lower bound is extrapolated."""


@dataclass(frozen=True)
class Bars:
    """Similarity thresholds of an audit.

    Attributes:
        same: lowest similarity at which two prints with different finger keys are considered the same finger.
        match: lowest similarity at which a print that does not match its own finger is assigned to another finger. The
            other finger is represented by one template, which is fused from all its prints.
        agree: lowest similarity at which two prints with the same key agree.
        unlike: a print that matches another finger has a wrong key if its similarity to its own finger is lower than
            this value.
        apart: a print has a wrong key if its similarity to its own finger is lower than this value, even if the print
            matches no other finger.
        lines: sentences that state how the thresholds were derived, or why finger keys are not judged.
    """

    same: float
    match: float
    agree: float
    unlike: float
    apart: float
    lines: list[str] = field(default_factory=list)


def find_bars(embeddings: np.ndarray, fingers: np.ndarray, best_mated: np.ndarray, cells: int, notes: dict) -> Bars:
    """Derive the thresholds of an audit from the similarities in the dataset, or from the calibration of the model.

    The calibration is used if the dataset has few fingers.

    Args:
        embeddings: (N, D) float32 embeddings with unit norm.
        fingers: (N,) finger of each print.
        best_mated: (n,) highest mated similarity of each print whose finger has several prints.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
        notes: notes of the model.

    Returns:
        The thresholds. If the thresholds cannot be derived, each is infinite or -infinite, so that finger keys are not
        judged.
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
    # The highest similarities of prints with wrong keys are mostly below `usual`, those of other prints mostly above.
    gap = (best_mated < usual).sum() >= ((best_mated >= usual) & (best_mated < unlike)).sum()
    apart, mated = unlike, best_mated[best_mated >= (unlike if gap else usual)]
    if len(mated):
        apart = min(apart, -tail(-mated, MATED_SHARES, 1 / len(mated)))
    return Bars(same, match, agree, unlike, apart, [*lines, *_told(same, agree, apart, rate)])


def bar_of_fingers(references: np.ndarray, cells: int) -> tuple[float, list[str]]:
    """Derive the threshold for comparing finger keys by one template per key, fused from all prints of the key.

    Args:
        references: (F, D) float32 templates with unit norm, one for each finger key.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Returns:
        The lowest similarity at which two keys are considered the same finger, and a list with a sentence about its
        derivation. If there are too few fingers, the threshold is infinite and the list is empty. With an infinite
        threshold, no keys are joined.
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
    """Compute the similarities of all pairs of prints of different fingers.

    Args:
        embeddings: (N, D) float32 embeddings with unit norm.
        fingers: (N,) finger of each print.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Returns:
        (M,) float32 similarities of the M pairs.
    """
    parts = []
    for start in range(0, len(fingers), 256):
        here = slice(start, start + 256)
        scores = similarity(embeddings[here], embeddings[start:], cells)
        later = np.arange(start, len(fingers))[None] > np.arange(start, len(fingers))[:256, None]
        parts.append(scores[later & (fingers[here, None] != fingers[None, start:])])
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def tail(scores: np.ndarray, shares: tuple[float, float], rate: float) -> float:
    """Return the value that a similarity exceeds with probability `rate`, extrapolated from the highest `scores`.

    In a plot of atanh(score) over log(share of higher scores), the value lies on the straight line through the points
    at the two `shares`. If `rate` is not below the larger share, the quantile of `scores` is returned.

    Args:
        scores: (n,) similarities.
        shares: larger and smaller share of the highest scores.
        rate: probability, which may be lower than 1 / n.
    """
    if rate >= shares[1]:
        return float(np.quantile(scores, 1 - rate))
    high, low = np.arctanh(np.quantile(scores, [1 - shares[0], 1 - shares[1]]).clip(-0.9999, 0.9999))
    return math.tanh(low + (low - high) * math.log(shares[1] / rate) / math.log(shares[0] / shares[1]))


def _from_notes(notes: dict[str, Any], rate: float) -> tuple[tuple[float, float, float, float], str] | None:
    """Derive thresholds from the calibration in the notes of the model, extrapolated to lower FMRs.

    Args:
        notes: notes of the model.
        rate: FMR of the thresholds `same` and `match`.

    Returns:
        Thresholds (`same`, `match`, `agree`, `apart`) and words that state their source; None if the model has no
        suitable calibration.
    """
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
    """Describe the thresholds in sentences for the user.

    Args:
        same: threshold `Bars.same`.
        agree: threshold `Bars.agree`.
        apart: threshold `Bars.apart`.
        rate: FMR of `same`.
    """
    return [
        f"prints with two keys count as one finger if their similarity is {same:.3f} or more (FMR {rate:.1g})",
        f"an impression counts as another finger if its similarity to all others of its key is below {apart:.3f} and "
        f"the others agree by {agree:.3f} or more (FMR {AGREE:g})",
    ]
