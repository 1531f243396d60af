"""Compute the order of the training prints from a seed. The order is the same for any number of processes.

Training reads one endless stream: a permutation of the prints for epoch 0, then a new permutation for epoch 1, etc.
Micro-batch `m` of rank `r` starts at position `(m * processes + r) * batch_size` of the stream. Batches are always full
and may span two epochs. Every print occurs once per epoch, except if prints are drawn in groups of impressions of one
finger. A run resumes from one integer, its position in the stream.

No list is shuffled in memory. The print at a position is computed on demand, so that time and memory do not depend on
the number of prints.
"""

from __future__ import annotations

import math

import numpy as np

REPEATED = 2**32  # added to the pass of a print for each earlier occurrence in the same epoch, see `SampleOrder.take`
RUN = 1024  # number of neighbouring rows that a block shuffle keeps together; record batches of shards have as many
_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)
# Identifiers of independent random streams. Stream 2 is the order in which shards are written.
PRINTS, RUNS, INSIDE, GROUPS, IMPRESSIONS = 0, 1, 4, 3, 5


def mix64(values: np.ndarray) -> np.ndarray:
    """Hash uint64 values of any shape with the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * _FIRST
        values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def stream_key(*parts: int) -> np.uint64:
    """Hash integers such as (seed, epoch, identifier of a random stream) into one key."""
    key = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            key = mix64((key ^ np.uint64(part % 2**64)) + np.uint64(_GOLDEN))
    return key[0]


class Permutation:
    """Random permutation of 0..count-1 whose elements are computed one by one, in constant memory.

    `numpy.random.permutation` would need the whole array to find one element. A Feistel network is a bijection that a
    hash function makes random, so single elements and their inverses can be computed. The network permutes pairs of
    integers below a and b, where a * b is at least `count`. A value outside of 0..count-1 goes through the network
    again until it is inside, which keeps the map a bijection (cycle walking; Black and Rogaway 2002, "Ciphers with
    Arbitrary Finite Domains").

    Args:
        count: Number of elements.
        key: Key that selects the permutation.
    """

    def __init__(self, count: int, key: np.uint64) -> None:
        self.count = count
        a = max(4, math.isqrt(max(count - 1, 0)) + 1)  # with smaller sides the network reaches few permutations
        self._sides = np.uint64(a), np.uint64(max(4, -(-count // a)))
        with np.errstate(over="ignore"):
            self._keys = mix64(key + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(_GOLDEN))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the (N,) int64 elements of the permutation at the (N,) int64 `positions`. Both lie in 0..count-1."""
        return self._walk(positions, inverse=False)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Return the (N,) int64 positions at which the permutation has the (N,) int64 elements `values`."""
        return self._walk(values, inverse=True)

    def _walk(self, positions: np.ndarray, inverse: bool) -> np.ndarray:
        values = self._network(positions.astype(np.uint64), inverse)
        while (outside := np.flatnonzero(values >= self.count)).size:
            values[outside] = self._network(values[outside], inverse)
        return values.astype(np.int64)

    def _network(self, values: np.ndarray, inverse: bool) -> np.ndarray:
        sides = self._sides
        halves = list(np.divmod(values, sides[0])[::-1])  # below a, below b
        for number in reversed(range(_ROUNDS)) if inverse else range(_ROUNDS):
            here, other = number % 2, 1 - number % 2
            moved = _hash(halves[other], self._keys[number]) % sides[here]
            halves[here] = (halves[here] + (sides[here] - moved if inverse else moved)) % sides[here]
        return halves[1] * sides[0] + halves[0]


def _hash(values: np.ndarray, key: np.uint64) -> np.ndarray:
    with np.errstate(over="ignore"):
        mixed = (values + key) * _FIRST
        mixed ^= mixed >> _HALF
        mixed *= _SECOND
    return mixed >> _HALF


def permutation(count: int, seed: int, epoch: int, level: int = PRINTS) -> np.ndarray:
    """Return a random permutation of 0..count-1 as a (count,) int64 array, determined by the arguments alone.

    Args:
        count: Number of elements.
        seed: Random seed.
        epoch: Epoch, from 0.
        level: Identifier of the random stream, see the constants above.
    """
    return Permutation(count, stream_key(seed, epoch, level))(np.arange(count))


class _Plain:
    """Order in which each print occurs once per epoch, shuffled over the whole dataset."""

    def __init__(self, count: int, seed: int) -> None:
        self.length, self.seed = count, seed

    def epoch(self, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
        return Permutation(self.length, stream_key(self.seed, epoch, PRINTS))(places), 0


class _Blocks:
    """Order in which each print occurs once per epoch, shuffled within blocks of prints.

    A block consists of runs of neighbouring rows. Training then reads `block_size` prints at a time, in long sequential
    pieces, which suits data larger than memory. Each epoch combines different runs into blocks.
    """

    def __init__(self, count: int, seed: int, block_size: int) -> None:
        self.length, self.seed = count, seed
        self.run = min(RUN, block_size)
        self.block = -(-block_size // self.run) * self.run
        self.runs = -(-count // self.run)
        self.short = self.runs * self.run - count  # rows missing in the last run

    def epoch(self, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
        shuffled = np.empty_like(places)
        blocks = places // self.block
        for block in np.unique(blocks).tolist():
            here, start = blocks == block, block * self.block
            inside = Permutation(min(self.block, self.length - start), stream_key(self.seed, epoch, INSIDE, block))
            shuffled[here] = start + inside(places[here] - start)
        order = Permutation(self.runs, stream_key(self.seed, epoch, RUNS))
        last = int(order.inverse(np.array([self.runs - 1]))[0])  # place of the last run, which may be shorter
        shuffled = np.where(shuffled >= (last + 1) * self.run - self.short, shuffled + self.short, shuffled)
        return order(shuffled // self.run) * self.run + shuffled % self.run, 0


class _Groups:
    """Order in which prints come in groups of `per_finger` impressions of one finger. Each epoch forms new groups.

    Every print is in a group. The last group of a finger is completed with prints of its first group, and a finger with
    fewer than `per_finger` prints repeats them. With `balanced`, each finger has as many groups as the average finger
    needs. An epoch then leaves out some prints of fingers with many prints, different prints in each epoch, and
    repeats prints of fingers with few prints.

    With `siblings`, the groups of the fingers of a family follow each other. The arguments are those of `SampleOrder`.
    """

    def __init__(
        self, labels: np.ndarray, seed: int, per_finger: int, balanced: bool, siblings: np.ndarray | None = None
    ) -> None:
        self.seed, self.per_finger, self.siblings = seed, per_finger, siblings
        self.by_finger = np.argsort(labels, kind="stable")
        self.prints = np.unique(labels, return_counts=True)[1]  # (F,) number of prints of each finger
        self.first = np.cumsum(self.prints) - self.prints
        groups = -(-self.prints // per_finger)
        if balanced:
            groups = np.full(len(self.prints), max(1, round(len(labels) / len(self.prints) / per_finger)))
        self.group_end = np.cumsum(groups)
        self.groups = int(self.group_end[-1])
        self.length = self.groups * per_finger

    def epoch(self, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
        group, member = np.divmod(places, self.per_finger)
        key = stream_key(self.seed, epoch, GROUPS)
        if self.siblings is None:
            group = Permutation(self.groups, key)(group)
        else:
            families, size = self.siblings.shape
            per_finger = self.groups // self.siblings.size
            turn, sibling = np.divmod(group, size)
            family, which = np.divmod(Permutation(families * per_finger, key)(turn), per_finger)
            group = self.siblings[family, sibling] * per_finger + which
        finger = np.searchsorted(self.group_end, group, side="right")
        before = np.where(finger > 0, self.group_end[finger - 1], 0)
        slot = (group - before) * self.per_finger + member
        repetition, place = np.divmod(slot, self.prints[finger])
        return self._shuffled(finger, place, epoch), repetition

    def _shuffled(self, finger: np.ndarray, place: np.ndarray, epoch: int) -> np.ndarray:
        """Return the (N,) int64 prints at the given places in the shuffled prints of each finger.

        Args:
            finger: (N,) label of the finger of each print.
            place: (N,) place of each print among the prints of its finger, in the shuffled order of the epoch.
            epoch: epoch, which determines the shuffled order.
        """
        fingers, which = np.unique(finger, return_inverse=True)
        prints = self.prints[fingers]
        start = np.cumsum(prints) - prints
        owner = np.repeat(np.arange(len(fingers)), prints)
        candidates = self.by_finger[np.arange(len(owner)) - start[owner] + self.first[fingers][owner]]
        chance = mix64(candidates.astype(np.uint64) ^ stream_key(self.seed, epoch, IMPRESSIONS))
        return candidates[np.lexsort((chance, owner))][start[which] + place]


class SampleOrder:
    """Endless order of the training prints: a print for each position of a stream.

    With `per_finger` above 1, neighbouring positions form groups of different impressions of one finger. A finger with
    too few impressions repeats them.

    Args:
        count: Number of prints in the data.
        seed: Seed of the run.
        block_size: Number of prints per block of a block shuffle; 0 shuffles all prints together.
        labels: (count,) int64 label of the finger of each print; needed for groups and for `balanced` only.
        per_finger: Number of impressions per group; 1 forms no groups.
        balanced: Whether to draw every finger equally often, regardless of its number of prints.
        siblings: (families, size) int64 labels of fingers. Each row is a family of `size` similar fingers. The groups
            of a family follow each other in the stream. Each label occurs once, and all fingers need the same number of
            groups. If None, the order of groups is random.

    Attributes:
        length: Number of positions per epoch: `count`, unless prints come in groups.
        rule: Name of the shuffling method. A position refers to the same print only if rule and seed are the same.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        block_size: int = 0,
        labels: np.ndarray | None = None,
        per_finger: int = 1,
        balanced: bool = False,
        siblings: np.ndarray | None = None,
    ) -> None:
        assert count > 0, "an order needs at least one print"
        self._kind: _Plain | _Blocks | _Groups
        if per_finger > 1 or balanced or siblings is not None:
            assert labels is not None and len(labels) == count, "groups need the finger of each print"
            assert not block_size, "groups are gathered from all over the data"
            self._kind = _Groups(labels, seed, per_finger, balanced, siblings)
            self.rule = f"groups of {per_finger}" + (", balanced" if balanced else "")
            if siblings is not None:
                self.rule += f", {siblings.shape[1]} siblings together"
        elif block_size:
            self._kind = _Blocks(count, seed, block_size)
            self.rule = f"blocks of {self._kind.block}"
        else:
            self._kind, self.rule = _Plain(count, seed), "permutation"
        self.length = self._kind.length

    def take(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the prints at the stream positions `start` to `start + length - 1`, and the pass of each print.

        The pass is the epoch, plus `REPEATED` for each earlier occurrence of the print in the same epoch.
        Augmentation depends on the pass, so that a repeated print is augmented differently.

        Returns:
            (length,) int64 prints, and (length,) int64 passes.
        """
        samples, passes = np.empty(length, np.int64), np.empty(length, np.int64)
        done = 0
        while done < length:
            epoch, offset = divmod(start + done, self.length)
            part = slice(done, done + min(length - done, self.length - offset))
            samples[part], repetition = self._kind.epoch(epoch, offset + np.arange(part.stop - done))
            passes[part] = epoch + repetition * REPEATED
            done = part.stop
        return samples, passes
