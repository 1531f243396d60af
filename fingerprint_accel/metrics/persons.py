"""Identification of persons by several fingers, closed-set and open-set (ISO/IEC 19795-1).

A search compares a set of probes of one person, one impression of each finger, with the references of every person. The
similarities of the fingers are fused, see `fusion`. The references of a person are the first impressions of the
fingers; the second impressions are the first probe set of the person, the third impressions the second, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from fingerprint_accel.metrics.curve import FAILED
from fingerprint_accel.metrics.fusion import from_sums
from fingerprint_accel.metrics.identification import BLOCK_BYTES, MAX_COMPARISONS, SEED, SLOW, Searches
from fingerprint_accel.metrics.protocols import unit_vectors
from fingerprint_accel.similarity import similarity

PREFERRED = (2, 7, 1, 6, 3, 8, 4, 9, 5, 10)
"""Finger positions in the order in which tests with fewer than ten fingers use them: the index fingers first, then the
thumbs, as many identity cards and border controls do."""


@dataclass(frozen=True)
class PersonPrints:
    """Prints of persons, and their numbers.

    Attributes:
        persons: (N,) number of the person of each print, from 0.
        positions: (N,) finger position code of each print.
        impressions: (N,) impression number of each print; the lowest number of a finger is its first impression.
    """

    persons: np.ndarray
    positions: np.ndarray
    impressions: np.ndarray

    def ordinals(self) -> np.ndarray:
        """Return the place of each print among the impressions of its finger, (N,) int64 from 0."""
        order = np.lexsort((self.impressions, self.positions, self.persons))
        persons, positions = self.persons[order], self.positions[order]
        starts = np.flatnonzero((np.diff(persons, prepend=-1) != 0) | (np.diff(positions, prepend=-1) != 0))
        sizes = np.diff(starts, append=len(order))
        found = np.empty(len(order), np.int64)
        found[order] = np.arange(len(order)) - np.repeat(starts, sizes)
        return found


@dataclass(frozen=True)
class PersonSearches:
    """Results of the searches with at most a given number of fingers.

    Attributes:
        fingers: largest number of fingers of a probe set.
        closed: closed-set searches; all persons are enrolled.
        open: open-set searches; half of the persons are enrolled.
    """

    fingers: int
    closed: Searches
    open: Searches


def search_persons(
    embeddings: np.ndarray,
    prints: PersonPrints,
    fingers: int,
    extracted: np.ndarray | None = None,
    cells: int = 0,
) -> PersonSearches:
    """Search every probe set among the references of all persons, and among those of half of the persons.

    If there are more than `MAX_COMPARISONS` comparisons of prints, a fixed random sample of the probe sets is searched.
    A print that failed to acquire is not compared.

    Args:
        embeddings: (N, D) float32 with any norm above 0; or (N, P, D) for P poses.
        prints: persons, positions and impressions of the N prints.
        fingers: largest number of fingers of a probe set. The fingers are chosen in the order `PREFERRED`.
        extracted: (N,) bool, False for prints that failed to acquire; None if none failed.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
    """
    vectors, ordinals = unit_vectors(embeddings, extracted, cells), prints.ordinals()
    count = int(prints.persons.max()) + 1
    half = np.sort(np.random.default_rng(SEED).permutation(count)[: (count + 1) // 2])
    sets = np.unique(np.stack([prints.persons, ordinals], axis=1)[ordinals > 0], axis=0)  # (S, 2) person, ordinal
    possible, most = len(sets), max(1, MAX_COMPARISONS // (count * fingers))
    if possible > most:
        sets = sets[np.sort(np.random.default_rng(SEED).permutation(possible)[:most])]
    found: list[list[np.ndarray]] = []
    block = max(1, BLOCK_BYTES // (12 * count))
    quiet = len(sets) * count * fingers < SLOW
    with tqdm(total=len(sets), desc="searching persons", unit="set", disable=quiet, leave=False) as bar:
        for start in range(0, len(sets), block):
            some = sets[start : start + block]
            scores = _fused(vectors, prints, ordinals, some, fingers, cells)  # (B, persons)
            found.append([part for enrolled in (np.arange(count), half) for part in _ranked(scores, some, enrolled)])
            bar.update(len(some))
    every = [np.concatenate(part) for part in zip(*found, strict=True)]
    closed, opened = (
        Searches(rank, mated, other, sets[:, 0], enrolled, possible)
        for (rank, mated, other), enrolled in ((every[:3], count), (every[3:], len(half)))
    )
    return PersonSearches(fingers, closed, opened)


def _fused(
    vectors: np.ndarray, prints: PersonPrints, ordinals: np.ndarray, sets: np.ndarray, fingers: int, cells: int
) -> np.ndarray:
    """Compare probe sets with the references of all persons.

    Args:
        vectors: (N, D) or (N, P, D) embeddings of unit length; NaN for prints that failed to acquire.
        prints: the N prints.
        ordinals: (N,) place of each print among the impressions of its finger.
        sets: (S, 2) person and ordinal of each probe set.
        fingers: largest number of fingers of a probe set.
        cells: number of grid cells of a dense template, 0 for other templates.

    Returns:
        (S, persons) float32 fused scores; -infinity if no finger is compared.
    """
    count = int(prints.persons.max()) + 1
    sums, counts = np.zeros((len(sets), count), np.float32), np.zeros((len(sets), count), np.int16)
    left = np.full(len(sets), fingers)
    set_of = {(person, ordinal): place for place, (person, ordinal) in enumerate(sets.tolist())}
    codes = sorted(set(prints.positions.tolist()), key=lambda code: (*PREFERRED, code).index(code))
    for code in codes:
        here = np.flatnonzero(prints.positions == code)
        references = here[ordinals[here] == 0]
        keys = zip(prints.persons[here].tolist(), ordinals[here].tolist(), strict=True)
        places = np.array([set_of.get(key, -1) for key in keys])
        chosen = places >= 0
        chosen[chosen] &= left[places[chosen]] > 0
        if not chosen.any():
            continue
        scores = similarity(vectors[here[chosen]], vectors[references], cells)
        compared = ~np.isnan(scores)
        rows = np.ix_(places[chosen], prints.persons[references])
        sums[rows] += np.where(compared, scores, 0)
        counts[rows] += compared
        left[places[chosen]] -= 1
    return from_sums(sums, counts)


def _ranked(scores: np.ndarray, sets: np.ndarray, enrolled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the attributes `rank`, `mated` and `best_other` of `identification.Searches`.

    Args:
        scores: (S, persons) fused scores.
        sets: (S, 2) person and ordinal of each probe set.
        enrolled: (E,) persons that are enrolled, ascending.
    """
    mate = np.minimum(np.searchsorted(enrolled, sets[:, 0]), len(enrolled) - 1)
    known, lines = enrolled[mate] == sets[:, 0], np.arange(len(sets))
    scores = scores[:, enrolled]
    mated = np.where(known, scores[lines, mate], FAILED).astype(np.float32)
    rank = np.where(known, (scores >= mated[:, None]).sum(axis=1), 0)
    rank[known & (mated == FAILED)] = len(enrolled) + 1
    scores[lines[known], mate[known]] = FAILED
    return rank, mated, scores.max(axis=1)
