"""Identification of persons in an evaluation: the rates with one, two, four and ten fingers, and their 95 % intervals.

The 95 % intervals are computed by bootstrap over persons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fingerprint_accel.data.persons import person_in
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.evaluation.groups import Table
from fingerprint_accel.evaluation.rates import HEADER, identification_rows, identification_values
from fingerprint_accel.metrics.bootstrap import Interval, bootstrap_fnir, bootstrap_share
from fingerprint_accel.metrics.identification import FPIRS
from fingerprint_accel.metrics.identification import RANKS as STORED_RANKS
from fingerprint_accel.metrics.persons import PersonPrints, PersonSearches, search_persons

FINGERS = (1, 2, 4, 10)
RANKS = (1, 10)
FUSION = "sum of the similarities of the compared fingers, divided by the square root of their number"


def prints_of_persons(shards: Shards) -> PersonPrints:
    """Read the persons and finger positions of a dataset from its finger keys, such as `anna_07`.

    Raises:
        UserError: if a finger key states no person and position, if there are fewer than two persons, or if no finger
            has two prints.
    """
    read = [person_in(key) for key in shards.key_of_finger]
    without = [key for key, (person, _) in zip(shards.key_of_finger, read, strict=True) if not person]
    if without:
        raise UserError(
            f"--by-person: {shards.folder} has {len(without):,} finger keys without a person and a finger position, "
            f"such as {without[0]}; import its prints with --names and its groups subject and position"
        )
    names, persons = np.unique([person for person, _ in read], return_inverse=True)
    require(len(names) > 1, f"--by-person: {shards.folder} has prints of one person; two or more are needed")
    positions = np.array([position for _, position in read])
    found = PersonPrints(persons[shards.fingers], positions[shards.fingers], np.asarray(shards.impressions))
    require(
        bool((found.ordinals() > 0).any()),
        f"--by-person: no finger of {shards.folder} has two prints; a search needs a probe and a reference",
    )
    return found


@dataclass(frozen=True)
class PersonRates:
    """Results of the searches of persons.

    Attributes:
        persons: number of persons.
        searches: results by the number of fingers of a probe set, fewest first.
        identified: 95 % intervals of the rank-k identification rate by rank k, for each entry of `searches`.
        fnir: 95 % intervals of the FNIR by FPIR, for each entry of `searches`.
    """

    persons: int
    searches: list[PersonSearches]
    identified: list[dict[int, Interval]]
    fnir: list[dict[float, Interval]]

    @classmethod
    def measured(
        cls, embeddings: np.ndarray, prints: PersonPrints, extracted: np.ndarray | None, cells: int
    ) -> PersonRates:
        """Search all probe sets with 1, 2, 4 and 10 fingers, as far as the persons have so many fingers.

        Args:
            embeddings: (N, D) float32, or (N, P, D) for P poses.
            prints: the prints of persons.
            extracted: (N,) bool, False for prints that failed to acquire; None if none failed.
            cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
        """
        probes = prints.ordinals() == 1
        most = int(np.bincount(prints.persons[probes]).max())
        counts = [count for count in FINGERS if count < most] + [most]
        searches = [search_persons(embeddings, prints, count, extracted, cells) for count in counts]
        identified, fnir = [], []
        for each in searches:
            rank, persons = each.closed.rank, each.closed.fingers
            identified.append({k: bootstrap_share(rank <= k, persons) for k in {*RANKS, *STORED_RANKS}})
            fpirs = [fpir for fpir in FPIRS if each.open.fnir(fpir) is not None]
            fnir.append(dict(zip(fpirs, bootstrap_fnir(each.open, fpirs), strict=True)) if fpirs else {})
        return cls(int(prints.persons.max()) + 1, searches, identified, fnir)

    def table(self) -> Table:
        """Return the table of rates with intervals and thresholds of fused scores; its first row is the header."""
        rows: Table = [("fingers", *HEADER)]
        for each, identified, fnir in zip(self.searches, self.identified, self.fnir, strict=True):
            for row in identification_rows(each.closed, each.open, identified, fnir, RANKS):
                rows.append((str(each.fingers), *row))
        return rows

    def has_curves(self) -> bool:
        """Return whether every open-set test has mated and non-mated scores, so that its curve can be drawn."""
        return all(
            bool(np.isfinite(values).any())
            for each in self.searches
            for values in (each.open.mated[each.open.is_mated], each.open.best_other[~each.open.is_mated])
        )

    def facts(self) -> str:
        """Return a sentence about the numbers of searches and the fusion."""
        opened = self.searches[0].open
        mated = int(opened.is_mated.sum())
        return (
            f"persons: {len(self.searches[0].closed.rank):,} closed-set searches among {self.persons:,} persons; "
            f"{mated:,} mated and {len(opened.rank) - mated:,} non-mated open-set searches among {opened.enrolled:,} "
            f"persons; fused score: {FUSION}"
        )

    def values(self) -> dict[str, Any]:
        """Return all results as a dictionary, for `metrics.json`."""
        found = zip(self.searches, self.identified, self.fnir, strict=True)
        rates = {
            str(each.fingers): identification_values(each.closed, each.open, identified, fnir)
            for each, identified, fnir in found
        }
        return {"persons": self.persons, "fusion": FUSION, "fingers": rates}
