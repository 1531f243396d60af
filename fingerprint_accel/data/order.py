"""Which print comes when: a pure function of (seed, position), the same for any number of processes.

Training consumes one endless stream: the permutation of epoch 0, then that of epoch 1, and so on. Micro-batch `m` of
rank `r` is the stream from `(m * processes + r) * batch_size`. Batches are always full and may span two epochs: every
print is seen exactly once per epoch (more or less often where fingers come in groups), and a run resumes from one
integer, its position in the stream. Nothing is shuffled in memory: where a position leads is computed when it is asked
for, so that a hundred million prints cost as much as a hundred.
"""

from __future__ import annotations

import math

import numpy as np

REPEATED = 2**32
RUN = 1024  # neighbouring rows that a block shuffle keeps together: a record batch
_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)
PRINTS, RUNS, INSIDE, GROUPS, IMPRESSIONS = 0, 1, 4, 3, 5  # random streams; 2 is the order in which shards are written


def mix64(values: np.ndarray) -> np.ndarray:
    """Scrambles uint64 values, any shape (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * _FIRST
        values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def stream_key(*parts: int) -> np.uint64:
    """A key from (seed, epoch, stream, ...)."""
    key = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            key = mix64((key ^ np.uint64(part % 2**64)) + np.uint64(_GOLDEN))
    return key[0]


class Permutation:
    """A random permutation of 0..count-1 that is evaluated where it is needed, in constant memory.

    A Feistel network over pairs of numbers below a and b, with a * b just above `count`; what falls outside is sent
    through again until it falls inside (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").

    Args:
        count: how many items.
        key: which permutation.
    """

    def __init__(self, count: int, key: np.uint64) -> None:
        self.count = count
        a = max(4, math.isqrt(max(count - 1, 0)) + 1)  # smaller sides reach few of all permutations
        self._sides = np.uint64(a), np.uint64(max(4, -(-count // a)))
        with np.errstate(over="ignore"):
            self._keys = mix64(key + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(_GOLDEN))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """positions (N,) int64 in 0..count-1 -> (N,) int64 in 0..count-1."""
        return self._walk(positions, inverse=False)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """values (N,) -> (N,) int64: the positions that lead to them."""
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
    """(count,) int64: 0..count-1 in an order that depends on nothing but the arguments."""
    return Permutation(count, stream_key(seed, epoch, level))(np.arange(count))


class _Plain:
    """Every print once, in any order."""

    def __init__(self, count: int, seed: int) -> None:
        self.length, self.seed = count, seed

    def epoch(self, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
        return Permutation(self.length, stream_key(self.seed, epoch, PRINTS))(places), 0


class _Blocks:
    """Every print once, block by block. A block is made of runs of neighbouring rows from all over the data.

    Reading then touches `block_size` prints at a time, in long pieces, for data larger than memory; which runs share a
    block changes with the epoch.
    """

    def __init__(self, count: int, seed: int, block_size: int) -> None:
        self.length, self.seed = count, seed
        self.run = min(RUN, block_size)
        self.block = -(-block_size // self.run) * self.run
        self.runs = -(-count // self.run)
        self.short = self.runs * self.run - count  # rows that the last run lacks

    def epoch(self, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
        shuffled = np.empty_like(places)
        blocks = places // self.block
        for block in np.unique(blocks).tolist():
            here, start = blocks == block, block * self.block
            inside = Permutation(min(self.block, self.length - start), stream_key(self.seed, epoch, INSIDE, block))
            shuffled[here] = start + inside(places[here] - start)
        order = Permutation(self.runs, stream_key(self.seed, epoch, RUNS))
        last = int(order.inverse(np.array([self.runs - 1]))[0])  # when the run comes that may be shorter
        shuffled = np.where(shuffled >= (last + 1) * self.run - self.short, shuffled + self.short, shuffled)
        return order(shuffled // self.run) * self.run + shuffled % self.run, 0


class _Groups:
    """Prints in groups of `per_finger` impressions of one finger, drawn anew in each epoch.

    Every print is in a group. The last group of a finger is filled up with the first prints of its first group; a
    finger with fewer than `per_finger` prints repeats them all. `balanced` gives every finger as many groups as the
    mean finger needs, so that an epoch leaves out prints of large fingers, others each time, and repeats small ones.

    With `siblings`, a group of each finger of a family comes after the other, in the same way all through the epoch.
    """

    def __init__(
        self, labels: np.ndarray, seed: int, per_finger: int, balanced: bool, siblings: np.ndarray | None = None
    ) -> None:
        self.seed, self.per_finger, self.siblings = seed, per_finger, siblings
        self.by_finger = np.argsort(labels, kind="stable")
        self.prints = np.unique(labels, return_counts=True)[1]  # (F,) of each finger
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
        """finger (N,), place (N,) among the prints of that finger -> (N,) print, in this epoch's order."""
        fingers, which = np.unique(finger, return_inverse=True)
        prints = self.prints[fingers]
        start = np.cumsum(prints) - prints
        owner = np.repeat(np.arange(len(fingers)), prints)
        candidates = self.by_finger[np.arange(len(owner)) - start[owner] + self.first[fingers][owner]]
        chance = mix64(candidates.astype(np.uint64) ^ stream_key(self.seed, epoch, IMPRESSIONS))
        return candidates[np.lexsort((chance, owner))][start[which] + place]


class SampleOrder:
    """The endless stream over `count` prints.

    With `per_finger` above 1 it comes in groups of so many neighbouring positions, each with different impressions of
    one finger; where a finger has too few of them, prints are repeated.

    Args:
        count: prints of the data.
        seed: of the run.
        block_size: 0 for a full permutation per epoch, else prints per block of a block shuffle.
        labels: (count,) int64 finger of each print; needed for groups and for `balanced` only.
        per_finger: impressions of one finger per group; 1 makes no groups.
        balanced: every finger equally often, however many prints it has.
        siblings: (families, fingers) labels of fingers that are to come one after the other, every label once; each
            finger needs the same number of groups. None: in any order.

    Attributes:
        length: positions per epoch: `count`, except where fingers come in groups.
        rule: what decides the order beside the seed; positions in streams of other rules mean something else.
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
        """Positions `start` to `start + length` of the stream: (length,) int64 prints and (length,) int64 passes.

        The pass of a print is its epoch, and `REPEATED` more for each time that it came before in that epoch:
        augmentation, which depends on it, then makes another picture of the same print.
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
