"""Prefetch training batches with one thread, into reused buffers.

The thread copies bytes from the memory-mapped shards. numpy releases the GIL while it copies, so that reading and
training run in parallel without worker processes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fingerprint_accel.data.batch import Batch, BatchLayout
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.data.shards import Shards

PREFETCH = 3  # number of batches to read ahead, which bridges short delays of the disk
ANNOUNCED = 4  # number of batches that the kernel prefetches for the reading thread, if data are larger than memory


@dataclass(frozen=True)
class Subset:
    """Selected prints of a dataset, with the class label of each print.

    Attributes:
        shards: the dataset.
        rows: (N,) int64 rows of the dataset that are selected.
        labels: (N,) int64 class label of each row, from 0 to `classes` - 1. Prints of one finger have the same label.
    """

    shards: Shards
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> int:
        """Number of class labels."""
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    @property
    def info(self) -> PrintInfo:
        """Resolution and canvas of the prints, and whether they are enhanced."""
        info = self.shards.info
        return PrintInfo(info.ppi, info.canvas, info.enhanced)

    @property
    def with_minutiae(self) -> int:
        """Number of prints that have at least one minutia."""
        return int(np.count_nonzero(self.shards.minutia_count[self.rows]))

    @cached_property
    def identity(self) -> str:
        """Digest of the finger keys (names of fingers) and impression numbers of all prints, without their images."""
        fingers = np.unique(self.shards.fingers[self.rows]).tolist()
        keys = "\0".join(self.shards.key_of_finger[finger] for finger in fingers)
        numbers = self.labels.tobytes() + self.shards.impressions[self.rows].tobytes()
        return hashlib.blake2b(keys.encode() + numbers, digest_size=8).hexdigest()

    def layout(self, prints: int, truth: bool = False) -> BatchLayout:
        """Return the memory layout of a batch of `prints` prints.

        If `truth` is true, a batch includes pose and contact.
        """
        return BatchLayout(prints, self.info.canvas, max(1, self.shards.most_minutiae), truth)

    def read(
        self,
        samples: np.ndarray,
        epochs: np.ndarray,
        buffer: torch.Tensor | None = None,
        seconds: dict[str, float] | None = None,
        truth: bool = False,
    ) -> Batch:
        """Read a batch of B prints.

        Args:
            samples: (B,) int64 indices of the prints in the subset.
            epochs: (B,) int64 epoch of each print, which becomes `Batch.epoch`.
            buffer: (bytes,) uint8 buffer with the size of `layout(B, truth)`. The batch is a view of it. By default, a
                new buffer is allocated.
            seconds: Dictionary to which the time of reading and decoding is added (`Shards.read`).
            truth: Whether to read pose and contact too.
        """
        rows = self.rows[samples]
        layout = self.layout(len(rows), truth)
        batch = layout.view(layout.empty() if buffer is None else buffer)
        self.shards.read(rows, batch.image.numpy(), seconds)
        _, counts = self.shards.minutiae(rows, batch.minutiae.numpy())
        if batch.pose is not None and batch.contact is not None:
            self.shards.truth(rows, batch.pose.numpy(), batch.contact.numpy())
        batch.finger.numpy()[:], batch.minutia_count.numpy()[:] = self.labels[samples], counts
        batch.index.numpy()[:], batch.epoch.numpy()[:] = rows, epochs
        return batch

    def loader(
        self,
        order: SampleOrder,
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
        device: torch.device | str = "cpu",
        position: int = 0,
        truth: bool = False,
    ) -> TrainingLoader:
        """Return a loader of endless micro-batches for one process. See `TrainingLoader` for the arguments."""
        return TrainingLoader(self, order, batch_size, rank, processes, device, position, truth=truth)


def subset_of_fingers(shards: Shards, fingers: np.ndarray) -> Subset:
    """Select all prints of some fingers of a dataset.

    Args:
        shards: The dataset.
        fingers: (F,) bool with an entry for each of the F fingers of the dataset, True for the fingers to include. The
            n included fingers get the labels 0 to n - 1, in ascending order of their indices in the dataset.
    """
    return subset_of_prints(shards, fingers[shards.fingers])


def subset_of_prints(shards: Shards, prints: np.ndarray) -> Subset:
    """Select some prints of a dataset.

    Args:
        shards: The dataset.
        prints: (N,) bool with an entry for each of the N rows of the dataset, True for the rows to include. The n
            fingers of these rows get the labels 0 to n - 1, in ascending order of their indices in the dataset.
    """
    present = np.zeros(len(shards.key_of_finger), bool)
    present[shards.fingers[prints]] = True
    labels = np.cumsum(present) - 1
    return Subset(shards, np.flatnonzero(prints), labels[shards.fingers[prints]].astype(np.int64))


@dataclass
class _Slot:
    """Reused buffer for one batch.

    Allocating pinned memory takes longer than filling it, so a few buffers are reused for the whole run.

    Attributes:
        buffer: (bytes,) uint8 tensor, the memory of the buffer.
        copied: CUDA event at the end of the copy to the device, after which the buffer may be overwritten; None on a
            CPU.
    """

    buffer: torch.Tensor
    copied: torch.cuda.Event | None = None


@dataclass(eq=False)
class TrainingLoader:
    """Endless iterator over the micro-batches of one process. A thread reads batches ahead.

    Use the loader as a context manager, and iterate over it inside the `with` statement. On a CPU, the image, minutiae,
    pose and contact of a batch are in a reused buffer, and are valid until the next batch is requested. On CUDA, the
    thread copies each buffer from pinned memory to the device on a separate stream, in parallel with training.

    Args:
        subset: prints to train on.
        order: order in which the prints are read, an endless stream of positions in `subset`.
        batch_size: number of prints in a micro-batch of this process.
        rank: rank of this process, which selects its part of the stream.
        processes: number of processes.
        device: device that batches are copied to.
        position: position in the stream to start from, counted in prints over all processes.
        prefetch: number of batches to read ahead.
        truth: whether batches have pose and contact.

    Attributes:
        waited: seconds that the training loop has waited for batches, excluding the first batch.
        seconds: seconds that the thread has spent on each activity: `order` (computing the order of prints), `disk`
            (reading from disk or memory) and `decode` (decoding images).
    """

    subset: Subset
    order: SampleOrder
    batch_size: int
    rank: int = 0
    processes: int = 1
    device: torch.device | str = "cpu"
    position: int = 0
    prefetch: int = PREFETCH
    truth: bool = False

    def __post_init__(self) -> None:
        self.waited = 0.0
        self.seconds = {"order": 0.0, "disk": 0.0, "decode": 0.0}
        self._layout = self.subset.layout(self.batch_size, self.truth)
        cuda = torch.device(self.device).type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None
        self._slots = [_Slot(self._layout.empty(pinned=cuda)) for _ in range(self.prefetch + 1)]
        self._batches = self._announced() if self.subset.shards.larger_than_memory else self._samples()
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._coming: deque[Future[tuple[torch.Tensor, _Slot]]] = deque()
        self._process = os.getpid()

    def __enter__(self) -> TrainingLoader:
        for slot in self._slots:
            self._read_ahead(slot)
        return self

    def __exit__(self, *_: object) -> None:
        self._coming.clear()
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches endlessly.

        Raises:
            RuntimeError: If the loader is used outside `with`, or in a forked process.
        """
        started = False
        while True:
            if os.getpid() != self._process:
                raise RuntimeError(
                    "this loader belongs to the process that created it; create another one after a fork"
                )
            if not self._coming:
                raise RuntimeError("this loader is not reading: use it inside `with loader:`")
            start = time.perf_counter()
            flat, slot = self._coming.popleft().result()
            if started:  # `waited` excludes the first batch
                self.waited += time.perf_counter() - start
            started = True
            if slot.copied is None:
                yield self._layout.view(flat, keep_numbers=True)
                self._read_ahead(slot)
            else:
                stream = torch.cuda.current_stream(self.device)
                stream.wait_event(slot.copied)
                # The batch was allocated on the copy stream. Without this, the allocator could reuse its memory while
                # the training stream still reads it.
                flat.record_stream(stream)
                self._read_ahead(slot)
                yield self._layout.view(flat)

    def _read_ahead(self, slot: _Slot) -> None:
        self._coming.append(self._thread.submit(self._read, slot))

    def _read(self, slot: _Slot) -> tuple[torch.Tensor, _Slot]:
        """Read the next batch into a slot. The reading thread runs this method.

        Returns:
            The batch as one tensor (bytes,) uint8, and the slot. On a CPU the tensor is the buffer of the slot. On CUDA
            it is a copy of the buffer on the device, which may be incomplete until the event `slot.copied`.
        """
        if slot.copied is not None:
            slot.copied.synchronize()
        samples, epochs = next(self._batches)
        self.subset.read(samples, epochs, slot.buffer, self.seconds, self.truth)
        if self._stream is None:
            return slot.buffer, slot
        with torch.cuda.stream(self._stream):
            flat = slot.buffer.to(self.device, non_blocking=True)
            slot.copied = torch.cuda.Event(blocking=True)  # `synchronize` then sleeps instead of spinning on a core
            slot.copied.record()
        return flat, slot

    def _samples(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the prints of each micro-batch of this process, as arguments `samples` and `epochs` of `Subset.read`.

        The prints of a micro-batch are sorted by position in the files, for faster reading.
        """
        position = self.position + self.rank * self.batch_size
        while True:
            start = time.perf_counter()
            samples, epochs = self.order.take(position, self.batch_size)
            by_row = np.argsort(self.subset.rows[samples], kind="stable")
            position += self.batch_size * self.processes
            self.seconds["order"] += time.perf_counter() - start
            yield samples[by_row], epochs[by_row]

    def _announced(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the values of `_samples`, and ask the kernel to prefetch each batch `ANNOUNCED` batches in advance."""
        waiting: deque[tuple[np.ndarray, np.ndarray]] = deque()
        for samples, epochs in self._samples():
            self.subset.shards.wanted(self.subset.rows[samples])
            waiting.append((samples, epochs))
            if len(waiting) > ANNOUNCED:
                yield waiting.popleft()
