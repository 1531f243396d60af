"""Batches read ahead by one thread into reused buffers.

The thread copies bytes from the memory-mapped shards; numpy releases the interpreter lock while it does, so reading
runs beside training without worker processes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fingerprint_accel.data.batch import Batch
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.data.shards import Shards


@dataclass(frozen=True)
class PrintInfo:
    """Resolution (pixels per inch) and side (pixels) of prints, and whether they are stored enhanced."""

    ppi: int
    canvas: int
    enhanced: bool = False


@dataclass(frozen=True)
class Subset:
    """Prints of a dataset that take part, with the class label of each.

    Attributes:
        shards: the dataset.
        rows: (N,) int64 rows of the dataset.
        labels: (N,) int64 class label of each row, dense.
    """

    shards: Shards
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> int:
        """Number of different labels."""
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    @property
    def info(self) -> PrintInfo:
        """Resolution and size of the prints, and whether they are enhanced."""
        info = self.shards.info
        return PrintInfo(info.ppi, info.canvas, info.enhanced)

    def read(self, samples: np.ndarray, epochs: np.ndarray, buffer: torch.Tensor | None = None) -> Batch:
        """Reads prints.

        Args:
            samples: (B,) int64, positions in the subset.
            epochs: (B,) int64, pass over the data of each.
            buffer: (>=B, H, W) uint8; the batch's image is a view of it.
        """
        rows = self.rows[samples]
        if buffer is None:
            buffer = torch.empty(len(rows), self.info.canvas, self.info.canvas, dtype=torch.uint8)
        image = buffer[: len(rows)]
        self.shards.read(rows, image.numpy())
        minutiae, counts = self.shards.minutiae(rows)
        return Batch(
            image=image,
            finger=torch.from_numpy(self.labels[samples]),
            minutiae=torch.from_numpy(minutiae),
            minutia_count=torch.from_numpy(counts),
            index=torch.from_numpy(rows),
            epoch=torch.from_numpy(epochs),
        )

    def loader(
        self,
        order: SampleOrder,
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
        device: torch.device | str = "cpu",
        position: int = 0,
        prefetch: int = 3,
    ) -> TrainingLoader:
        """Endless micro-batches of one process; arguments as of `TrainingLoader`."""
        return TrainingLoader(self, order, batch_size, rank, processes, device, position, prefetch)


def subset_of_fingers(shards: Shards, fingers: np.ndarray) -> Subset:
    """Every print of the chosen fingers.

    Args:
        shards: the dataset.
        fingers: (F,) bool, True for the fingers (dense ids) that take part; they are relabelled 0..n-1 in that order.
    """
    chosen = fingers[shards.fingers]
    labels = np.cumsum(fingers) - 1
    return Subset(shards, np.flatnonzero(chosen), labels[shards.fingers[chosen]].astype(np.int64))


class TrainingLoader:
    """Endless micro-batches of one process, starting anywhere in the stream. Use as a context manager, then iterate.

    The image tensor of a batch lives in a reused buffer: on a CPU it is valid until the next batch is asked for.

    Args:
        subset: prints to train on.
        order: the stream over them.
        batch_size: prints per micro-batch of this process.
        rank, processes: which share of each global micro-batch is this process's.
        device: where batches are delivered; pinned memory and asynchronous copies for CUDA.
        position: position in the stream to start from, prints over all processes.
        prefetch: batches read ahead.
    """

    def __init__(
        self,
        subset: Subset,
        order: SampleOrder,
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
        device: torch.device | str = "cpu",
        position: int = 0,
        prefetch: int = 3,
    ) -> None:
        self.subset, self.order, self.batch_size = subset, order, batch_size
        self.rank, self.processes, self.device = rank, processes, torch.device(device)
        self.position = position
        self.waited = 0.0
        side = subset.info.canvas
        shape = (batch_size, side, side)
        self._pin = self.device.type == "cuda"
        buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin) for _ in range(prefetch + 2)]
        self._free: queue.Queue[tuple[torch.Tensor, torch.cuda.Event | None]] = queue.Queue()
        for buffer in buffers:
            self._free.put((buffer, None))
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, name="read-ahead", daemon=True)

    def __enter__(self) -> TrainingLoader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            _drain(self._ready)
            self._thread.join(timeout=0.01)

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches for ever; `waited` adds up the seconds spent waiting for them."""
        while True:
            start = time.perf_counter()
            item = self._ready.get()
            self.waited += time.perf_counter() - start
            if isinstance(item, BaseException):
                raise item
            yield item.to(self.device) if self._pin else item
            event = None
            if self._pin:
                event = torch.cuda.Event()
                event.record()
            self._free.put((item.image, event))

    def _read_ahead(self) -> None:
        try:
            position = self.position
            while not self._stop.is_set():
                try:
                    buffer, event = self._free.get(timeout=0.1)
                except queue.Empty:
                    continue
                if event is not None:
                    event.synchronize()
                batch = self._read(position + self.rank * self.batch_size, buffer)
                position += self.batch_size * self.processes
                _put(self._ready, batch, self._stop)
        except BaseException as error:  # handed to the consumer, which raises it
            _put(self._ready, error, self._stop)

    def _read(self, position: int, buffer: torch.Tensor) -> Batch:
        samples, epochs = self.order.take(position, self.batch_size)
        rows = self.subset.rows[samples]
        by_row = np.argsort(rows, kind="stable")  # neighbours in the file are read together
        return self.subset.read(samples[by_row], epochs[by_row], buffer)


def _drain(items: queue.Queue) -> None:
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return


def _put(items: queue.Queue, item: object, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            items.put(item, timeout=0.1)
            return
        except queue.Full:
            continue
