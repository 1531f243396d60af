"""Which print comes when: a pure function of (seed, position), the same for any number of processes.

Training consumes one endless stream: the permutation of epoch 0, then that of epoch 1, and so on. Micro-batch `m` of
rank `r` is the stream from `(m * processes + r) * batch_size`. Batches are always full and may span two epochs: every
print is seen exactly once per epoch, and a run resumes from one integer, its position in the stream.
"""

from __future__ import annotations

import numpy as np

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
    blocks = permutation(-(-count // block_size), seed, epoch, level=1)
    inside = permutation(count, seed, epoch)
    place = np.empty_like(blocks)
    place[blocks] = np.arange(len(blocks))
    return inside[np.argsort(place[inside // block_size], kind="stable")]


class SampleOrder:
    """The endless stream over `count` prints.

    Args:
        count: prints per epoch.
        seed: of the run.
        block_size: 0 for a full permutation per epoch, else rows per block of a block shuffle.
    """

    def __init__(self, count: int, seed: int, block_size: int = 0) -> None:
        assert count > 0, "an order needs at least one print"
        self.count, self.seed, self.block_size = count, seed, block_size
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def epoch(self, epoch: int) -> np.ndarray:
        """(count,) int64: the order of one epoch; the last one asked for is kept."""
        if epoch != self._epoch:
            if self.block_size:
                self._permutation = block_permutation(self.count, self.seed, epoch, self.block_size)
            else:
                self._permutation = permutation(self.count, self.seed, epoch)
            self._epoch = epoch
        return self._permutation

    def take(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions `start` to `start + length` of the stream: (length,) int64 prints and (length,) int64 epochs."""
        samples, epochs = [], []
        while length > 0:
            epoch, offset = divmod(start, self.count)
            part = self.epoch(epoch)[offset : offset + length]
            samples.append(part)
            epochs.append(np.full(len(part), epoch, np.int64))
            start, length = start + len(part), length - len(part)
        return np.concatenate(samples), np.concatenate(epochs)
