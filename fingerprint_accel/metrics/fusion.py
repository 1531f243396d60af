"""Fuse the scores of several fingers of a person (score-level fusion, ISO/IEC TR 24722).

The fused score of n fingers is the sum of their similarities divided by the square root of n. For a constant n, this is
the sum rule of Kittler et al. 1998 (IEEE TPAMI 20(3)), which ranks persons as the mean does. Persons may have different
numbers of fingers in common with the probes. The sum of n independent non-mated similarities around zero has a standard
deviation that grows with the square root of n, so the division gives all persons the same distribution of non-mated
scores (Stouffer et al. 1949), and one threshold holds for any n. A mean does not have this property: a person with one
compared finger exceeds a threshold by chance more often than one with ten.

This module imports only numpy, so that commands start fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def fused_score(scores: np.ndarray) -> np.ndarray:
    """Fuse the similarities of the fingers of a person.

    Args:
        scores: (..., F) similarities of F fingers; NaN for fingers that are not compared.

    Returns:
        (...,) float32 fused scores; -infinity if no finger is compared.
    """
    compared = ~np.isnan(scores)
    return from_sums(np.where(compared, scores, 0).sum(axis=-1), compared.sum(axis=-1))


def from_sums(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the fused scores of persons from the sums of their similarities and the numbers of compared fingers."""
    return np.where(counts > 0, sums / np.sqrt(np.maximum(counts, 1)), -np.inf).astype(np.float32)


def best_of_persons(
    similarities: np.ndarray, persons: np.ndarray, positions: np.ndarray, probe_positions: np.ndarray, count: int
) -> np.ndarray:
    """Find the highest similarity of each probe with the references of each person.

    A probe is compared with references of its finger position and of unknown position. A probe of unknown position is
    compared with all references.

    Args:
        similarities: (M, N) similarities of M probes with N references.
        persons: (N,) person of each reference, from 0 to `count` - 1.
        positions: (N,) finger position code of each reference; 0 if unknown.
        probe_positions: (M,) finger position code of each probe; 0 if unknown.
        count: number of persons, P.

    Returns:
        (P, M) float32; NaN if a person has no reference to compare with a probe.
    """
    found = np.full((len(similarities), count), -np.inf, np.float32)
    for probe, (scores, position) in enumerate(zip(similarities, probe_positions.tolist(), strict=True)):
        fits = (positions == position) | (positions == 0) | (position == 0)
        np.maximum.at(found[probe], persons[fits], scores[fits])
    return np.where(found == -np.inf, np.nan, found).T


def by_finger(scores: np.ndarray, probe_positions: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Average the similarities of probes of the same finger. Each probe of unknown position is a finger of its own.

    Args:
        scores: (P, M) similarities of P persons with M probes; NaN if not compared.
        probe_positions: finger position code of each probe; 0 if unknown.

    Returns:
        (P, F) means of the compared probes of each finger, and the position code of each of the F fingers: known
        positions in ascending order, then a 0 for each probe of unknown position.
    """
    groups = [[probe for probe, each in enumerate(probe_positions) if each == code] for code in _known(probe_positions)]
    groups += [[probe] for probe, each in enumerate(probe_positions) if each == 0]
    columns = []
    for probes in groups:
        some = scores[:, probes]
        compared = (~np.isnan(some)).sum(axis=1)
        columns.append(np.where(compared > 0, np.nansum(some, axis=1) / np.maximum(compared, 1), np.nan))
    codes = _known(probe_positions) + [0] * (len(groups) - len(_known(probe_positions)))
    return np.stack(columns, axis=1).astype(np.float32), codes


def _known(positions: Sequence[int]) -> list[int]:
    return sorted({position for position in positions if position})
