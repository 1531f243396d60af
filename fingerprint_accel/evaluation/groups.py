"""Error rates of groups of prints, by the `source` of the prints or by their NFIQ 2 scores.

The source of a print is the path or description of the original image. NFIQ 2 scores rate the quality of a print from 0
to 100. A grouping assigns a group to each print.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.metrics.bootstrap import Interval, bootstrap_scores
from fingerprint_accel.metrics.curve import sorted_curve
from fingerprint_accel.metrics.protocols import Pairs, Scores
from fingerprint_accel.metrics.verification import sensible_fmr
from fingerprint_accel.metrics.weighted_curves import WeightedCurves

FEWEST, MOST = 2, 12  # smallest and largest number of groups in a default grouping by a folder level of the source
SYNTHETIC_PARTS = {1: "quality", 2: "pattern class"}
ACROSS = "across"
BY_NFIQ2 = "nfiq2"
"""Value of the argument `by` that groups prints by their NFIQ 2 score."""
NFIQ2 = "NFIQ 2 of the worse print"
"""Name of the grouping by NFIQ 2 score."""
BANDS = {20: "0-20", 40: "21-40", 60: "41-60", 80: "61-80", 100: "81-100"}
"""Names of the bands of NFIQ 2 scores, by the highest score of each band."""
NOT_SCORED = "(no score)"  # "(" sorts before digits, so that this group is below the groups with scores
MOST_NONMATED = 20_000
"""Largest number of non-mated scores that the intervals of a group are computed from, to save time."""
Table = list[tuple[str, ...]]
"""Rows of cells; the first row is the header."""


@dataclass(frozen=True)
class Group:
    """Error rates of the comparisons within one group of prints.

    The group `ACROSS` contains the comparisons between prints of two groups. In the grouping by NFIQ 2 score, a
    comparison belongs to the group of its print with the lower score.

    Attributes:
        name: name of the group.
        prints: number of prints in the group.
        mated: number of mated comparisons.
        nonmated: number of non-mated comparisons.
        eer: EER of the comparisons of the group; None if it has no mated or no non-mated comparisons.
        fmr: FMR at the threshold of the `Breakdown`; None without non-mated comparisons.
        fnmr: FNMR at the threshold of the `Breakdown`; None without mated comparisons.
        eer_interval_95: 95 % interval of the EER, by bootstrap over fingers; None if `eer` is None.
        fmr_interval_95: 95 % interval of the FMR; None if `eer` is None.
        fnmr_interval_95: 95 % interval of the FNMR; None if `eer` is None.
    """

    name: str
    prints: int
    mated: int
    nonmated: int
    eer: float | None
    fmr: float | None
    fnmr: float | None
    eer_interval_95: Interval | None = None
    fmr_interval_95: Interval | None = None
    fnmr_interval_95: Interval | None = None


@dataclass(frozen=True)
class Breakdown:
    """Error rates of all groups of one grouping, at a common threshold.

    Attributes:
        by: name of the grouping.
        threshold_fmr: FMR of all comparisons together at `threshold`.
        threshold: lowest accepted similarity. The FMR and FNMR of all groups are computed at this threshold.
        groups: groups in order of name, `ACROSS` last.
    """

    by: str
    threshold_fmr: float
    threshold: float
    groups: list[Group]

    def title(self) -> str:
        """Return a heading for `table`, which states the grouping and the threshold."""
        at = f"threshold {self.threshold:.3f}, where all comparisons together have FMR {100 * self.threshold_fmr:g} %"
        return f"By {self.by}, with 95 % intervals. FNMR and FMR at {at}."

    def table(self) -> Table:
        """Return a table of error rates: a header and one row for each group; a dash replaces an unknown rate."""
        rows: Table = [("group", "prints", "mated", "non-mated", "EER", "FNMR", "FMR")]
        for group in self.groups:
            counts = (f"{count:,}" for count in (group.prints, group.mated, group.nonmated))
            rates = (
                _shown(group.eer, group.eer_interval_95, 2),
                _shown(group.fnmr, group.fnmr_interval_95, 2),
                _shown(group.fmr, group.fmr_interval_95, 3),
            )
            rows.append((group.name, *counts, *rates))
        return rows


def groupings(shards: Shards, by: str = "") -> dict[str, np.ndarray]:
    """Assign a group to each print, for one or several groupings.

    Args:
        shards: the dataset.
        by: regular expression that is searched in the source of each print. Its first parenthesised group, or the whole
            match if it has none, names the group of the print. "nfiq2" groups by ranges of the NFIQ 2 score. Empty for
            the default groupings: one for each folder level of the source with 2 to 12 different names (quality and
            pattern class for synthetic prints), and one by NFIQ 2 score if prints have scores.

    Returns:
        Dictionary from the name of each grouping to an (N,) array with the group name of each print.

    Raises:
        UserError: if `by` is not a regular expression, does not match a source, or needs scores that are missing.
    """
    if by == BY_NFIQ2:
        return {NFIQ2: nfiq2_bands(known_nfiq2(shards, f"--by {by}"))}
    encoded = shards.table["source"].combine_chunks().dictionary_encode()
    sources, codes = encoded.dictionary.to_pylist(), np.from_dlpack(encoded.indices)
    if by:
        return {by: _matches(by, sources)[codes]}
    split = [source.split("/") for source in sources]
    synthetic = all(parts[0] == "synthetic" and len(parts) == 3 for parts in split)
    folders = [parts if synthetic else parts[:-1] for parts in split]
    found = {}
    for place in range(min(map(len, folders))):
        names = np.array([parts[place] for parts in folders], dtype=object)
        if FEWEST <= len(set(names)) <= MOST:
            found[SYNTHETIC_PARTS[place] if synthetic else f"folder {place + 1} of the source"] = names[codes]
    bands = nfiq2_bands(shards.nfiq2())
    if len(set(bands)) >= FEWEST:
        found[NFIQ2] = bands
    return found


def known_nfiq2(shards: Shards, option: str) -> np.ndarray:
    """Return the NFIQ 2 scores of a dataset, and raise a UserError if it has none.

    Args:
        shards: the dataset.
        option: command-line option that needs the scores, for the error message.

    Returns:
        (N,) int16, -1 for prints without a score; see `Shards.nfiq2`.

    Raises:
        UserError: if no print has a score.
    """
    scores = shards.nfiq2()
    if (scores < 0).all():
        raise UserError(f"{option}: {shards.folder} has no NFIQ 2 scores; import its prints again with --nfiq2")
    return scores


def nfiq2_bands(scores: np.ndarray) -> np.ndarray:
    """Return the (N,) names of the score ranges, such as "21-40", that contain the (N,) NFIQ 2 scores."""
    names = np.array([NOT_SCORED, *BANDS.values()], dtype=object)
    return names[np.where(scores < 0, 0, 1 + np.searchsorted(list(BANDS), scores))]


def _matches(pattern: str, sources: list[str]) -> np.ndarray:
    """Find the group name of each print by searching the source of the print with a regular expression.

    Args:
        pattern: regular expression. The name is the text of its first parenthesised group, or the whole match if the
            expression has no parenthesised group.
        sources: source of each print.

    Raises:
        UserError: if `pattern` is not a regular expression, or does not match one of the sources.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--by {pattern}: not a regular expression ({error})") from error
    names = np.empty(len(sources), dtype=object)
    for place, source in enumerate(sources):
        match = compiled.search(source)
        if match is None:
            raise UserError(f"--by {pattern}: not found in {source!r}; sources look like {', '.join(sources[:3])}")
        names[place] = match[1 if compiled.groups else 0] or ""
    return names


def breakdown(scores: Scores, names: np.ndarray, by: str) -> Breakdown:
    """Compute the error rates of the comparisons within each group of prints, and of the comparisons across groups.

    In the grouping by NFIQ 2 score, each comparison belongs to the group of its print with the lower score (Grother and
    Tabassi 2007, "Performance of Biometric Quality Measures"). There are then no comparisons across groups.

    Args:
        scores: similarities of all comparisons.
        names: (N,) name of the group of each print.
        by: name of the grouping.
    """
    values, codes = np.unique(names, return_inverse=True)
    rate = sensible_fmr(len(scores.nonmated)) or 0.1
    threshold = sorted_curve(scores.mated, scores.nonmated).threshold_at_fmr(rate)
    both = codes[scores.pairs.mated], codes[scores.pairs.nonmated]  # (n, 2) each
    if by == NFIQ2:  # the names are sorted by score
        mated_of, nonmated_of = (pair.min(axis=1) for pair in both)
    else:  # -1 if the groups differ
        mated_of, nonmated_of = (np.where(pair[:, 0] == pair[:, 1], pair[:, 0], -1) for pair in both)
    groups = []
    for code, name in [*enumerate(values.tolist()), (-1, ACROSS)]:
        mated, nonmated = mated_of == code, nonmated_of == code
        if code < 0 and not mated.any() and not nonmated.any():
            continue
        pairs = Pairs(scores.pairs.mated[mated], scores.pairs.nonmated[nonmated], int(nonmated.sum()))
        part = Scores(scores.mated[mated], scores.nonmated[nonmated], pairs, scores.fingers)
        groups.append(_group(name, int((codes == code).sum()) if code >= 0 else len(codes), part, threshold))
    return Breakdown(by, rate, threshold, groups)


def _group(name: str, prints: int, scores: Scores, threshold: float) -> Group:
    """Compute the error rates of one group.

    Args:
        name: name of the group.
        prints: number of prints in the group.
        scores: similarities of the comparisons of the group.
        threshold: lowest accepted similarity for FMR and FNMR.
    """
    mated, nonmated = scores.mated, scores.nonmated
    eer, intervals = None, []
    if np.isfinite(mated).any() and np.isfinite(nonmated).any():
        eer = sorted_curve(mated, nonmated).eer()[0]
        intervals = bootstrap_scores(
            scores,
            [WeightedCurves.eer, lambda curves: curves.fmr(threshold), lambda curves: curves.fnmr(threshold)],
            most_nonmated=MOST_NONMATED,
        )
    return Group(
        name,
        prints,
        len(mated),
        len(nonmated),
        eer,
        float((nonmated >= threshold).mean()) if len(nonmated) else None,
        float((mated < threshold).mean()) if len(mated) else None,
        *intervals,
    )


def _shown(rate: float | None, interval: Interval | None, digits: int) -> str:
    """Format a rate and its interval in percent, for example "2.83% (1.20 to 4.51)".

    Args:
        rate: rate, from 0 to 1. None is formatted as "-".
        interval: 95 % interval of the rate, or None for the rate alone.
        digits: number of decimals in percent.
    """
    if rate is None:
        return "-"
    if interval is None:
        return f"{rate:.{digits}%}"
    low, high = (f"{100 * end:.{digits}f}" for end in interval)
    return f"{rate:.{digits}%} ({low} to {high})"
