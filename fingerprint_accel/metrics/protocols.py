"""Protocols that define which prints are compared, and the similarities of these comparisons.

A leaf module: it imports numpy, `similarity` and the errors of this package only, so that the training loop may use it
for validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.errors import UserError
from fingerprint_accel.similarity import pair_similarity, similarity

PROTOCOLS = {
    "fvc": "FVC2000-2006: mated = every pair of impressions of a finger, once; "
    "non-mated = first impression of each finger against the first of every other finger, once",
    "all-pairs": "mated = every pair of impressions of a finger, once; "
    "non-mated = every pair of impressions of different fingers, once",
    "sampled": "a seeded sample of all-pairs in which every finger takes part equally often, if it has enough "
    "impressions for its mated comparisons",
}
MAX_NONMATED = 20_000_000
"""Most non-mated comparisons. Larger tests use a fixed sample in which every print occurs about equally often."""
_BLOCK = 1024
_SAMPLE_SEED = 2382  # fixed, so that every model is tested with the same comparisons


@dataclass(frozen=True)
class Pairs:
    """Comparisons, as row numbers of the dataset with the lower row first.

    Attributes:
        mated: (n, 2) int64 pairs of prints of one finger.
        nonmated: (m, 2) int64 pairs of prints of two fingers.
        nonmated_possible: number of non-mated comparisons that the protocol defines; larger than m if they were
            sampled.
    """

    mated: np.ndarray
    nonmated: np.ndarray
    nonmated_possible: int


@dataclass(frozen=True)
class Scores:
    """Similarities of all comparisons of a test; -infinity for comparisons with a print that failed to acquire.

    Attributes:
        mated: (n,) float32 similarities of the mated comparisons.
        nonmated: (m,) float32 similarities of the non-mated comparisons.
        pairs: rows of the compared prints, in the order of the scores.
        fingers: (N,) finger of every print of the dataset.
    """

    mated: np.ndarray
    nonmated: np.ndarray
    pairs: Pairs
    fingers: np.ndarray


def comparisons(protocol: str, fingers: np.ndarray, impressions: np.ndarray, max_nonmated: int = MAX_NONMATED) -> Pairs:
    """List the comparisons of `fvc` or `all-pairs`; see `sampled_comparisons` for `sampled`.

    Args:
        protocol: key of `PROTOCOLS`.
        fingers: (N,) finger of every print.
        impressions: (N,) impression number of every print; the lowest number of a finger is its first impression.
        max_nonmated: largest number of non-mated comparisons, see `MAX_NONMATED`.

    Raises:
        UserError: the protocol is unknown, there are fewer than two fingers, or no finger has two impressions.
    """
    rows, mated, possible = _plan(protocol, fingers, impressions)
    found = [_ordered(*block) for block in _blocks(fingers, rows, possible, max_nonmated)]
    return Pairs(mated, np.concatenate(found)[:max_nonmated], possible)


def sampled_comparisons(fingers: np.ndarray, impressions: np.ndarray, count: int, seed: int = 0) -> Pairs:
    """Draw up to `count` mated and `count` non-mated comparisons of `all-pairs`, equally many for every finger.

    Args:
        fingers: (N,) finger of every print.
        impressions: (N,) impression number of every print.
        count: largest number of comparisons of each kind.
        seed: seed of the sample.

    Raises:
        UserError: `count` is below 1, there are fewer than two fingers, or no finger has two impressions.
    """
    if count < 1:
        raise UserError(f"--pairs {count}: must be at least 1")
    _, mated, possible = _plan("sampled", fingers, impressions)
    fingers = np.asarray(fingers)
    return Pairs(_mated_sample(mated, fingers, count, seed), _nonmated_sample(fingers, count, seed), possible)


def score_pairs(
    embeddings: np.ndarray,
    pairs: Pairs,
    fingers: np.ndarray,
    extracted: np.ndarray | None = None,
    cells: int = 0,
) -> Scores:
    """Compute the cosine similarity of listed comparisons, the highest over poses if there are several.

    Args:
        embeddings: (N, D) float32 of any length above 0, or (N, P, D) in P poses with the unchanged print first.
        pairs: comparisons to make.
        fingers: (N,) finger of every print.
        extracted: (N,) bool, False for prints that failed to acquire. Their comparisons score -infinity and their
            embeddings are ignored. By default none failed.
        cells: number of cells of dense templates, as in `similarity`; 0 for other templates.

    Raises:
        UserError: an embedding is not finite, or is zero.
    """
    vectors = unit_vectors(embeddings, extracted, cells)
    mated, nonmated = (pair_similarity(vectors, vectors, rows, cells) for rows in (pairs.mated, pairs.nonmated))
    return Scores(failed_never_match(mated), failed_never_match(nonmated), pairs, np.asarray(fingers))


def score_protocol(
    protocol: str,
    embeddings: np.ndarray,
    fingers: np.ndarray,
    impressions: np.ndarray,
    max_nonmated: int = MAX_NONMATED,
    extracted: np.ndarray | None = None,
    cells: int = 0,
) -> Scores:
    """Compute the cosine similarity of every comparison of `fvc` or `all-pairs`, by blocks of matrix products.

    Args:
        protocol: key of `PROTOCOLS`.
        embeddings: embeddings, as in `score_pairs`.
        fingers: (N,) finger of every print.
        impressions: (N,) impression number of every print.
        max_nonmated: largest number of non-mated comparisons, see `MAX_NONMATED`.
        extracted: prints that did not fail to acquire, as in `score_pairs`.
        cells: number of cells of dense templates, as in `score_pairs`.

    Raises:
        UserError: as in `comparisons`; or an embedding is not finite, or is zero.
    """
    rows, mated, possible = _plan(protocol, fingers, impressions)
    vectors = unit_vectors(embeddings, extracted, cells)
    bound = min(possible, max_nonmated)
    scores, pairs = np.empty(bound, np.float32), np.empty((bound, 2), np.int64)
    filled = 0
    for first, second, keep in _blocks(fingers, rows, possible, max_nonmated):
        block = similarity(vectors[first], vectors[second], cells)[keep][: bound - filled]
        scores[filled : filled + len(block)] = block
        pairs[filled : filled + len(block)] = _ordered(first, second, keep)[: len(block)]
        filled += len(block)
    mated_scores = failed_never_match(pair_similarity(vectors, vectors, mated, cells))
    chosen = Pairs(mated, pairs[:filled], possible)
    return Scores(mated_scores, failed_never_match(scores[:filled]), chosen, np.asarray(fingers))


def _plan(protocol: str, fingers: np.ndarray, impressions: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the rows for non-mated comparisons, the mated pairs, and the number of possible non-mated pairs."""
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    fingers, impressions = np.asarray(fingers), np.asarray(impressions)
    order = np.lexsort((impressions, fingers))  # by finger, then impression, then row
    starts = np.flatnonzero(np.diff(fingers[order], prepend=fingers[order[:1]] - 1)) if len(order) else order
    sizes = np.diff(starts, append=len(order))
    if len(starts) < 2:
        raise UserError(f"{protocol}: non-mated comparisons need at least two fingers; the dataset has {len(starts)}")
    mated = _mated(order, starts, sizes)
    if not len(mated):
        raise UserError(f"{protocol}: mated comparisons need a finger with two impressions; the dataset has none")
    if protocol == "fvc":
        return np.sort(order[starts]), mated, len(starts) * (len(starts) - 1) // 2
    return np.arange(len(order)), mated, len(order) * (len(order) - 1) // 2 - len(mated)


def _mated(order: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return all pairs within each finger, (n, 2). Fingers with equally many impressions are handled together."""
    found = []
    for size in np.unique(sizes[sizes > 1]):
        members = order[starts[sizes == size][:, None] + np.arange(size)]  # (fingers, size)
        first, second = np.triu_indices(size, 1)
        found.append(np.stack([members[:, first].ravel(), members[:, second].ravel()], axis=1))
    if not found:
        return np.empty((0, 2), np.int64)
    pairs = np.sort(np.concatenate(found), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _blocks(
    fingers: np.ndarray, rows: np.ndarray, possible: int, max_nonmated: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield non-mated pairs as two blocks of rows and a (len(first), len(second)) mask of the pairs to compare.

    The blocks cover every pair of `rows`, or a fixed sample that ends with the block in which it reaches
    `max_nonmated`. The sample shuffles the rows on a ring and compares each block with the next few blocks. So every
    print is compared equally often, and the cost grows with the size of the sample only.
    """
    fingers = np.asarray(fingers)
    if possible <= max_nonmated:
        parts = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
        for index, first in enumerate(parts):
            yield first, first, np.triu(fingers[first][:, None] != fingers[first], 1)
            for second in parts[index + 1 :]:
                yield first, second, fingers[first][:, None] != fingers[second]
        return
    ring = np.random.default_rng(_SAMPLE_SEED).permutation(rows)
    size = min(_BLOCK, max(1, max_nonmated // (2 * len(rows))))
    parts = np.split(ring, range(size, len(rows), size))
    drawn = 0
    for lag in range(1, len(parts) // 2 + 1):
        for index in range(len(parts) if 2 * lag != len(parts) else lag):
            first, second = parts[index], parts[(index + lag) % len(parts)]
            keep = fingers[first][:, None] != fingers[second]
            yield first, second, keep
            drawn += int(keep.sum())
            if drawn >= max_nonmated:
                return


def _mated_sample(mated: np.ndarray, fingers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw some of the (n, 2) mated pairs, and keep their order.

    Each finger gets `count` / number of fingers pairs, rounded up or down at random, or all pairs if it has fewer.
    """
    generator = np.random.default_rng(seed)
    _, finger = np.unique(fingers[mated[:, 0]], return_inverse=True)
    of_finger = np.bincount(finger)
    quota = np.full(len(of_finger), count // len(of_finger))
    quota[generator.permutation(len(of_finger))[: count % len(of_finger)]] += 1
    order = np.lexsort((generator.random(len(mated)), finger))
    rank = np.empty(len(mated), np.int64)
    rank[order] = np.arange(len(mated)) - np.repeat(np.cumsum(of_finger) - of_finger, of_finger)
    return mated[rank < quota[finger]]


def _nonmated_sample(fingers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw (m, 2) pairs of prints of different fingers without repetition; m is `count`, or the number of all pairs.

    The fingers are shuffled on a ring. In each round every finger is compared with the finger at a certain distance, so
    that it takes part twice. The distances come in random order, and the impressions are drawn at random. When all
    pairs of fingers were compared, the rounds start again with other impressions. The numbers of comparisons of any two
    fingers differ by at most two, unless a finger has too few impressions.
    """
    generator = np.random.default_rng(seed)
    rows = np.argsort(fingers, kind="stable")
    _, starts, sizes = np.unique(fingers[rows], return_index=True, return_counts=True)
    number = len(sizes)
    ring = generator.permutation(number)
    distances = 1 + generator.permutation(number // 2)
    draw = generator.integers(0, 2**40, number)
    found: list[np.ndarray] = []
    missing = count
    for again in range(int(sizes.max()) ** 2):
        for distance in distances.tolist():
            here = np.arange(number // 2 if 2 * distance == number else number)
            first, second = ring[here], ring[(here + distance) % number]
            possible = sizes[first] * sizes[second]
            above, below = np.divmod((draw[first] + draw[second] + again) % possible, sizes[second])
            pairs = np.stack([rows[starts[first] + above], rows[starts[second] + below]], axis=1)
            found.append(np.sort(pairs[again < possible][:missing], axis=1))
            missing -= len(found[-1])
            if missing <= 0:
                return np.concatenate(found)
    return np.concatenate(found)


def _ordered(first: np.ndarray, second: np.ndarray, keep: np.ndarray) -> np.ndarray:
    above, below = np.nonzero(keep)
    return np.sort(np.stack([first[above], second[below]], axis=1), axis=1)


def unit_vectors(embeddings: np.ndarray, extracted: np.ndarray | None, cells: int = 0) -> np.ndarray:
    """Scale (N, D) or (N, P, D) embeddings to unit length; prints that failed to acquire become NaN.

    In dense templates, other poses keep their length relative to the first pose, because a shifted print may lose some
    or all of its cells.
    """
    vectors = np.array(embeddings, np.float32)
    lengths = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]  # `norm` would store all squares
    if cells and vectors.ndim == 3:
        finite = np.isfinite(lengths).all(axis=1, keepdims=True)
        lengths = np.where(finite, lengths[:, :1], np.float32(np.nan))
    wanted = np.ones(len(vectors), bool) if extracted is None else np.asarray(extracted, bool)
    bad = np.flatnonzero(wanted & ~(np.isfinite(lengths) & (lengths > 0)).reshape(len(vectors), -1).all(axis=1))
    if len(bad):
        raise UserError(f"{len(bad)} of {len(vectors)} embeddings are NaN, infinite or zero (first: row {bad[0]})")
    lengths[~wanted] = np.nan
    vectors /= lengths
    return vectors


def failed_never_match(scores: np.ndarray) -> np.ndarray:
    """Replace NaN by -infinity in place: scores of comparisons with a print that failed to acquire."""
    scores[np.isnan(scores)] = -np.inf
    return scores
