"""Error rates of parts of a dataset, told apart by the `source` of their prints or by their NFIQ 2 scores."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.metrics.curve import sorted_curve
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import sensible_fmr

FEWEST, MOST = 2, 12  # values that a part of the source takes to be looked at unasked
SYNTHETIC_PARTS = {1: "quality", 2: "pattern class"}
ACROSS = "across"
BY_NFIQ2 = "nfiq2"  # in place of a regular expression
NFIQ2 = "NFIQ 2 of the worse print"  # what these groups are told apart by
BANDS = {20: "0-20", 40: "21-40", 60: "41-60", 80: "61-80", 100: "81-100"}  # highest score of each
NOT_SCORED = "(no score)"  # comes before digits: a comparison with such a print counts here
Table = list[tuple[str, ...]]
"""Rows of cells, the first row being the header."""


@dataclass(frozen=True)
class Group:
    """Comparisons of prints that are both of one group, or, as `ACROSS`, of two; by NFIQ 2, of prints the worse of
    which is of this group.

    Attributes:
        name: what the prints have in common.
        prints: of the group.
        mated, nonmated: number of comparisons.
        eer: of these comparisons alone; None without both kinds.
        fmr, fnmr: at the threshold that all comparisons together give at the stated FMR; None without comparisons.
    """

    name: str
    prints: int
    mated: int
    nonmated: int
    eer: float | None
    fmr: float | None
    fnmr: float | None


@dataclass(frozen=True)
class Breakdown:
    """Groups by one part of the source.

    Attributes:
        by: what they are told apart by.
        threshold_fmr: FMR of all comparisons together at the threshold at which groups' FMR and FNMR are stated.
        threshold: that threshold, the lowest similarity accepted.
        groups: in order of name, `ACROSS` last.
    """

    by: str
    threshold_fmr: float
    threshold: float
    groups: list[Group]

    def title(self) -> str:
        """What `table` holds."""
        at = f"the threshold that gives all together an FMR of {100 * self.threshold_fmr:g} % ({self.threshold:.3f})"
        return f"by {self.by}; FNMR and FMR at {at}"

    def table(self) -> Table:
        """A line for each group; a dash where it has no comparison of a kind."""
        rows: Table = [("group", "prints", "mated", "non-mated", "EER", "FNMR", "FMR")]
        for group in self.groups:
            counts = (f"{count:,}" for count in (group.prints, group.mated, group.nonmated))
            rates = ((group.eer, 2), (group.fnmr, 2), (group.fmr, 3))
            shown = ("-" if rate is None else f"{rate:.{digits}%}" for rate, digits in rates)
            rows.append((group.name, *counts, *shown))
        return rows


def groupings(shards: Shards, by: str = "") -> dict[str, np.ndarray]:
    """Name of each print's group, by what they are told apart by.

    Args:
        shards: the dataset.
        by: regular expression that is searched in each source, its first group (or all of it) is the name; "nfiq2":
            bands of the NFIQ 2 score; empty: the folders of the source, each that takes 2 to 12 values (of synthetic
            prints quality and pattern class), and the bands where prints have scores.

    Raises:
        UserError: not a regular expression, a source in which it is not found, or a dataset without scores.
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
    """(N,) int16 scores as of `Shards.nfiq2`.

    Raises:
        UserError: no print has one; the line begins with the option that needs them.
    """
    scores = shards.nfiq2()
    if (scores < 0).all():
        raise UserError(f"{option}: {shards.folder} has no NFIQ 2 scores; import its prints again with --nfiq2")
    return scores


def nfiq2_bands(scores: np.ndarray) -> np.ndarray:
    """scores (N,) -> (N,) names of their bands."""
    names = np.array([NOT_SCORED, *BANDS.values()], dtype=object)
    return names[np.where(scores < 0, 0, 1 + np.searchsorted(list(BANDS), scores))]


def _matches(pattern: str, sources: list[str]) -> np.ndarray:
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
    """Error rates within each group, and of comparisons across groups.

    By NFIQ 2 no comparison is across groups: the quality of a comparison is that of the worse print (Grother and
    Tabassi 2007, "Performance of Biometric Quality Measures").

    Args:
        scores: of all comparisons.
        names: (N,) group of every print.
        by: what the groups are told apart by.
    """
    values, codes = np.unique(names, return_inverse=True)
    rate = sensible_fmr(len(scores.nonmated)) or 0.1
    threshold = sorted_curve(scores.mated, scores.nonmated).threshold_at_fmr(rate)
    both = codes[scores.pairs.mated], codes[scores.pairs.nonmated]  # (n, 2) each
    if by == NFIQ2:  # names are in the order of their bands
        mated_of, nonmated_of = (pair.min(axis=1) for pair in both)
    else:  # -1 where they differ
        mated_of, nonmated_of = (np.where(pair[:, 0] == pair[:, 1], pair[:, 0], -1) for pair in both)
    groups = []
    for code, name in [*enumerate(values.tolist()), (-1, ACROSS)]:
        mated, nonmated = scores.mated[mated_of == code], scores.nonmated[nonmated_of == code]
        if code < 0 and not len(mated) and not len(nonmated):
            continue
        usable = np.isfinite(mated).any() and np.isfinite(nonmated).any()
        group = Group(
            name=name,
            prints=int((codes == code).sum()) if code >= 0 else len(codes),
            mated=len(mated),
            nonmated=len(nonmated),
            eer=sorted_curve(mated, nonmated).eer()[0] if usable else None,
            fmr=float((nonmated >= threshold).mean()) if len(nonmated) else None,
            fnmr=float((mated < threshold).mean()) if len(mated) else None,
        )
        groups.append(group)
    return Breakdown(by, rate, threshold, groups)
