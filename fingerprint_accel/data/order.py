"""Which print comes when: a pure function of (seed, position), the same for any number of processes.

Training consumes one endless stream: the permutation of epoch 0, then that of epoch 1, and so on. Micro-batch `m` of
rank `r` is the stream from `(m * processes + r) * batch_size`. Batches are always full and may span two epochs: every
print is seen exactly once per epoch (more often where groups of one finger are filled up), and a run resumes from one
integer, its position in the stream.
"""

from __future__ import annotations

import numpy as np

REPEATED = 2**32
_GOLDEN = 0x9E3779B97F4A7C15


def mix64(values: np.ndarray) -> np.ndarray:
    """Scrambles uint64 values, any shape (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permutation(count: int, seed: int, epoch: int, level: int = 0) -> np.ndarray:
    """(count,) int64: 0..count-1 in an order that depends on nothing but the arguments.

    Sorting hashed counters, unlike a library's generator, gives the same order in every version of numpy.
    """
    key = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in (seed, epoch, level):
            key = mix64((key ^ np.uint64(part % 2**64)) + np.uint64(_GOLDEN))
        counters = np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN) + key
    return np.argsort(mix64(counters), kind="stable")


def block_permutation(count: int, seed: int, epoch: int, block_size: int) -> np.ndarray:
    """(count,) int64: blocks of neighbouring rows in random order, rows shuffled inside each block.

    Reading then touches one block of the file at a time, for data larger than memory. Shards are written shuffled over
    fingers, so a block mixes identities.
    """
    inside = permutation(count, seed, epoch)
    return inside[_by_block(inside // block_size, -(-count // block_size), seed, epoch)]


def _by_block(block: np.ndarray, blocks: int, seed: int, epoch: int) -> np.ndarray:
    """block (N,) of each item -> (N,) int64: items block by block, blocks in random order, items in theirs."""
    place = np.empty(blocks, np.int64)
    place[permutation(blocks, seed, epoch, level=1)] = np.arange(blocks)
    return np.argsort(place[block], kind="stable")


class FingerGroups:
    """Prints in groups of `per_finger` impressions of one finger, drawn anew in each epoch.

    Every print is in a group. The last group of a finger is filled up with the first prints of its first group; a
    finger with fewer than `per_finger` prints repeats them all.

    Args:
        labels: (N,) int64, finger of each print.
        per_finger: impressions per group.
    """

    def __init__(self, labels: np.ndarray, per_finger: int) -> None:
        self.labels, self.per_finger = labels, per_finger
        prints = np.unique(labels, return_counts=True)[1]  # (F,) of each finger
        slots = -(-prints // per_finger) * per_finger
        self.length = int(slots.sum())
        slot = np.arange(self.length) - np.repeat(np.cumsum(slots) - slots, slots)  # 0, 1, ... within each finger
        prints_here = np.repeat(prints, slots)
        self._source = np.repeat(np.cumsum(prints) - prints, slots) + slot % prints_here
        self._repetition = slot // prints_here

    def epoch(self, seed: int, epoch: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
        """(length,) int64 prints in the order of one epoch, and (length,) int64 how often each came before in it.

        With a `block_size`, groups come in the order of the blocks that their first prints lie in.
        """
        shuffled = permutation(len(self.labels), seed, epoch)
        by_finger = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        groups = by_finger[self._source].reshape(-1, self.per_finger)
        order = permutation(len(groups), seed, epoch, level=3)
        if block_size:
            blocks = -(-len(self.labels) // block_size)
            order = order[_by_block(groups[order, 0] // block_size, blocks, seed, epoch)]
        return groups[order].ravel(), self._repetition.reshape(groups.shape)[order].ravel()


class SampleOrder:
    """The endless stream over `count` prints.

    With `per_finger` above 1 it comes in groups of so many neighbouring positions, each with different impressions of
    one finger; where a finger has too few of them, prints are repeated (`FingerGroups`).

    Args:
        count: prints of the data.
        seed: of the run.
        block_size: 0 for a full permutation per epoch, else rows per block of a block shuffle.
        labels: (count,) int64 finger of each print; needed for groups only.
        per_finger: impressions of one finger per group; 1 makes no groups.

    Attributes:
        length: positions per epoch: `count`, and the repetitions that fill up groups.
    """

    def __init__(
        self, count: int, seed: int, block_size: int = 0, labels: np.ndarray | None = None, per_finger: int = 1
    ) -> None:
        assert count > 0, "an order needs at least one print"
        self.count, self.seed, self.block_size = count, seed, block_size
        self._groups: FingerGroups | None = None
        if per_finger > 1:
            assert labels is not None and len(labels) == count, "groups need the finger of each print"
            self._groups = FingerGroups(labels, per_finger)
        self.length = self._groups.length if self._groups else count
        self._epoch = -1
        self._samples = self._passes = np.empty(0, np.int64)

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(length,) int64 prints and (length,) int64 passes of one epoch; the last one asked for is kept."""
        if epoch != self._epoch:
            repetition = np.zeros(self.length, np.int64)
            if self._groups:
                self._samples, repetition = self._groups.epoch(self.seed, epoch, self.block_size)
            elif self.block_size:
                self._samples = block_permutation(self.count, self.seed, epoch, self.block_size)
            else:
                self._samples = permutation(self.count, self.seed, epoch)
            self._passes = epoch + repetition * REPEATED
            self._epoch = epoch
        return self._samples, self._passes

    def take(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions `start` to `start + length` of the stream: (length,) int64 prints and (length,) int64 passes.

        The pass of a print is its epoch, and `REPEATED` more for each time that it came before in that epoch:
        augmentation, which depends on it, then makes another picture of the same print.
        """
        samples, passes = [], []
        while length > 0:
            epoch, offset = divmod(start, self.length)
            part, part_passes = (values[offset : offset + length] for values in self.epoch(epoch))
            samples.append(part)
            passes.append(part_passes)
            start, length = start + len(part), length - len(part)
        return np.concatenate(samples), np.concatenate(passes)
