"""Endless training data from nothing: masters stay on the device, every step renders new impressions of them.

Takes the place of a dataset folder: `--data synth:fingers=20000`. Which finger and impression comes when follows the
same order as prints from shards, so runs resume exactly and do not depend on the number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from fingerprint_accel.data.batch import Batch
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.errors import UserError
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import DEFAULT, Style
from fingerprint_accel.synthesis.skin import Masters, Minutiae, make_masters
from fingerprint_accel.synthesis.workers import join

PREFIX = "synth:"
CHUNK = 32  # masters made at a time, per process
MOST_MINUTIAE = 512  # of a master; while processes exchange them, all are padded to so many


@dataclass(frozen=True)
class SourceSpec:
    """What `--data synth:fingers=20000,impressions=8,...` says.

    Attributes:
        fingers: to train on.
        impressions: of each finger per epoch; new ones in every epoch.
        seed: of the fingers and impressions.
        first: number of the first finger.
        style: sensors (joined by +), quality, ppi, canvas, siblings.
    """

    fingers: int
    impressions: int = 8
    seed: int = 0
    first: int = 0
    style: Style = field(default_factory=Style)


def is_source(data: str) -> bool:
    """Whether `--data` names a synthetic source rather than a folder."""
    return data.startswith(PREFIX)


def parse_source(data: str) -> SourceSpec:
    """Reads `synth:fingers=20000,impressions=8,seed=1,first=0,quality=default,sensors=optical+ink,ppi=300,canvas=320`.

    Raises:
        UserError: a key or value that does not fit; the message shows how it is written.
    """
    numbers: dict[str, int] = {}
    looks: dict[str, str | int | float | tuple[str, ...]] = {}
    for part in filter(None, data.removeprefix(PREFIX).split(",")):
        key, _, value = part.partition("=")
        if key == "quality":
            looks[key] = value
        elif key == "sensors":
            looks[key] = tuple(value.split("+")) if value else DEFAULT
        elif key == "partial" and value.replace(".", "", 1).isdecimal():
            looks[key] = float(value)
        elif key in ("fingers", "impressions", "seed", "first", "ppi", "canvas", "siblings") and value.isdecimal():
            (looks if key in ("ppi", "canvas", "siblings") else numbers)[key] = int(value)
        else:
            raise UserError(
                f"--data {data}: cannot read {part!r}; write synth:fingers=20000,impressions=8,seed=0,first=0,"
                "quality=default,partial=0.2,sensors=optical+ink,ppi=300,canvas=320,siblings=1 (all but fingers may be "
                "left out)"
            )
    if numbers.get("fingers", 0) < 2 or numbers.get("impressions", 2) < 2:
        raise UserError(f"--data {data}: needs at least two fingers and two impressions of each")
    return SourceSpec(**numbers, style=Style(**looks))  # type: ignore[arg-type]


def _gathered(masters: Masters, gather: Callable[[torch.Tensor], torch.Tensor], count: int) -> Masters:
    """The first `count` masters of all ranks."""
    own = masters.minutiae
    rows = F.pad(own.rows, (0, 0, 0, MOST_MINUTIAE - own.rows.shape[1]))
    tensors = masters.ridges, masters.kind, masters.size, own.count, rows
    ridges, kind, size, number, rows = (gather(values)[:count] for values in tensors)
    return Masters(ridges, Minutiae(rows[:, : max(1, int(number.max()))], number), kind, size)


@dataclass(frozen=True)
class SyntheticPrints:
    """Impressions of some fingers, rendered when asked for; the counterpart of `data.loader.Subset`.

    Attributes:
        spec: what they look like.
        masters: the fingers, on the device.
        numbers: (F,) int64 number of each finger, on the device.
    """

    spec: SourceSpec
    masters: Masters
    numbers: torch.Tensor

    def __getitem__(self, fingers: slice) -> SyntheticPrints:
        """Those of some of the fingers; views."""
        return SyntheticPrints(self.spec, self.masters[fingers], self.numbers[fingers])

    def __len__(self) -> int:
        """Prints per epoch."""
        return len(self.masters) * self.spec.impressions

    @property
    def classes(self) -> int:
        """Number of fingers."""
        return len(self.masters)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 finger of each print, dense."""
        return np.arange(len(self)) // self.spec.impressions

    @property
    def with_minutiae(self) -> int:
        """Number of prints that have minutiae: the generator places some on every finger."""
        return len(self)

    @property
    def info(self) -> PrintInfo:
        """Resolution and size of the prints."""
        return PrintInfo(self.spec.style.ppi, self.spec.style.canvas)

    @property
    def identity(self) -> str:
        """What decides which fingers these are and how they look."""
        knobs = vars(self.spec) | vars(self.spec.style)
        return ",".join(f"{name}={value}" for name, value in knobs.items() if name != "style")

    def read(self, samples: np.ndarray, epochs: np.ndarray, truth: bool = False) -> Batch:
        """Renders prints on the masters' device.

        Args:
            samples: (B,) int64 in 0..N-1.
            epochs: (B,) int64; an epoch has its own impressions.
            truth: also gives pose and contact.
        """
        index, epoch = (torch.from_numpy(values).to(self.numbers.device) for values in (samples, epochs))
        which, impression = index // self.spec.impressions, index % self.spec.impressions
        keys = impression_keys(self.spec.seed, self.numbers[which], epoch * self.spec.impressions + impression)
        prints = render(self.masters, which, keys, self.spec.style)
        known = (prints.pose, prints.contact) if truth else (None, None)
        return Batch(prints.image, which, prints.minutiae, prints.count, index, epoch, *known)

    def loader(
        self,
        order: SampleOrder,
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
        device: torch.device | str = "cpu",
        position: int = 0,
        truth: bool = False,
    ) -> RenderLoader:
        """Endless micro-batches of one process, as `data.loader.Subset.loader`."""
        return RenderLoader(self, order, batch_size, rank, processes, position, truth)


@dataclass
class RenderLoader:
    """Endless micro-batches, rendered one after the other. Use as a context manager, then iterate.

    Attributes:
        prints, order, batch_size, rank, processes, position, truth: as of `data.loader.Subset.loader`.
        waited: seconds spent on rendering batches after the first; 0 on a GPU, where rendering is work like any other
            and the host's clock shows how far ahead of it the host is.
    """

    prints: SyntheticPrints
    order: SampleOrder
    batch_size: int
    rank: int
    processes: int
    position: int
    truth: bool
    waited: float = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """The same, by stage."""
        return {"render": self.waited}

    def __enter__(self) -> RenderLoader:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Batch]:
        position = self.position
        while True:
            start = time.perf_counter()
            samples, epochs = self.order.take(position + self.rank * self.batch_size, self.batch_size)
            batch = self.prints.read(samples, epochs, self.truth)
            on_cpu = batch.image.device.type == "cpu"
            if on_cpu and position > self.position:  # the first batch also readies the device
                self.waited += time.perf_counter() - start
            position += self.batch_size * self.processes
            yield batch


def open_source(
    data: str,
    held_out: float,
    device: torch.device,
    rank: int = 0,
    processes: int = 1,
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[SyntheticPrints, SyntheticPrints | None]:
    """Fingers to train on, and others to validate on: the same on every rank; each rank makes its share.

    Args:
        data: see `parse_source`.
        held_out: validation fingers as a share of the training fingers, at least two; 0 for none.
        device: where the fingers are made and stay.
        rank, processes: which share is this process's.
        gather: concatenates tensors of all ranks along the first dimension; needed with several processes.
    """
    spec = parse_source(data)
    validation = max(2, round(held_out * spec.fingers)) if held_out > 0 else 0
    numbers = spec.first + torch.arange(spec.fingers + validation, device=device)
    parts = []
    with tqdm(total=len(numbers), desc="making fingers", unit="finger", disable=rank > 0) as bar:
        for chunk in numbers.split(CHUNK * processes):
            share = -(-len(chunk) // processes)
            mine = chunk[torch.arange(rank * share, (rank + 1) * share, device=device).clamp(max=len(chunk) - 1)]
            made = make_masters(spec.seed, mine, spec.style.siblings)
            if processes > 1:
                assert gather is not None, "several processes exchange their masters"
                made = _gathered(made, gather, len(chunk))
            parts.append(made)
            bar.update(len(chunk))
    both = SyntheticPrints(spec, join(parts), numbers)
    return both[: spec.fingers], both[spec.fingers :] if validation else None
