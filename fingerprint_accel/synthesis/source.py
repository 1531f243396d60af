"""Render synthetic training data during training, without a dataset folder.

The option `--data synth:fingers=20000` selects this kind of data. The masters (complete ridge images of the fingers)
stay on the device, and each training step renders new impressions from them. `data.order` determines the order of
fingers and impressions, so runs resume exactly and do not depend on the number of processes.
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
CHUNK = 32  # number of masters that a process generates at a time
MOST_MINUTIAE = 512  # largest number of minutiae per finger; rows are padded to this number for the exchange


@dataclass(frozen=True)
class SourceSpec:
    """Options of synthetic training data, parsed from `--data synth:fingers=20000,impressions=8,...`.

    Attributes:
        fingers: number of training fingers.
        impressions: number of impressions of each finger per epoch. Every epoch renders new impressions.
        seed: random seed of fingers and impressions.
        first: index of the first finger.
        style: sensors, quality, ppi, canvas, siblings and share of partial impressions.
    """

    fingers: int
    impressions: int = 8
    seed: int = 0
    first: int = 0
    style: Style = field(default_factory=Style)


def is_source(data: str) -> bool:
    """Return whether a value of `--data` selects synthetic data (`synth:...`) instead of a dataset folder."""
    return data.startswith(PREFIX)


def parse_source(data: str) -> SourceSpec:
    """Parse a value of `--data` that selects synthetic data.

    Args:
        data: `synth:` and comma-separated options, of which only `fingers` is required, for example
            `synth:fingers=20000,impressions=8,seed=1,first=0,quality=default,sensors=optical+ink,ppi=300,canvas=320`.

    Raises:
        UserError: if an option is unknown or has an invalid value. The message shows the format.
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
    """Concatenate the masters (complete ridge images) of all ranks, and return the first `count` of them.

    Args:
        masters: masters that this rank has made.
        gather: function that concatenates a tensor of all ranks along the first dimension.
        count: number of masters to return.
    """
    own = masters.minutiae
    rows = F.pad(own.rows, (0, 0, 0, MOST_MINUTIAE - own.rows.shape[1]))
    tensors = masters.ridges, masters.kind, masters.size, own.count, rows
    ridges, kind, size, number, rows = (gather(values)[:count] for values in tensors)
    return Masters(ridges, Minutiae(rows[:, : max(1, int(number.max()))], number), kind, size)


@dataclass(frozen=True)
class SyntheticPrints:
    """Synthetic prints of F fingers, which are rendered on demand. The interface is that of `data.loader.Subset`.

    Attributes:
        spec: options of the prints.
        masters: masters (complete ridge images) of the fingers, on the device.
        numbers: (F,) int64 index of each finger, on the device.
    """

    spec: SourceSpec
    masters: Masters
    numbers: torch.Tensor

    def __getitem__(self, fingers: slice) -> SyntheticPrints:
        """Return the prints of a slice of the fingers, without a copy."""
        return SyntheticPrints(self.spec, self.masters[fingers], self.numbers[fingers])

    def __len__(self) -> int:
        """Return the number of prints per epoch."""
        return len(self.masters) * self.spec.impressions

    @property
    def classes(self) -> int:
        """Number of fingers."""
        return len(self.masters)

    @property
    def labels(self) -> np.ndarray:
        """Class labels of the prints of an epoch, as an int64 array (len(self),).

        A label is an index into `masters`.
        """
        return np.arange(len(self)) // self.spec.impressions

    @property
    def with_minutiae(self) -> int:
        """Number of prints per epoch that have minutiae. All prints have minutiae."""
        return len(self)

    @property
    def info(self) -> PrintInfo:
        """Resolution of the prints, and side of their square images (canvases)."""
        return PrintInfo(self.spec.style.ppi, self.spec.style.canvas)

    @property
    def identity(self) -> str:
        """All options that determine the prints, as text. A training run can resume only if this text is unchanged."""
        knobs = vars(self.spec) | vars(self.spec.style)
        return ",".join(f"{name}={value}" for name, value in knobs.items() if name != "style")

    def read(self, samples: np.ndarray, epochs: np.ndarray, truth: bool = False) -> Batch:
        """Render the prints with the given indices, on the device of the masters.

        Args:
            samples: (B,) int64 index of each print within an epoch, from 0 to len(self) - 1.
            epochs: (B,) int64 epoch of each print. The impressions differ between epochs.
            truth: whether the batch contains the true pose and contact mask of each print.
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
        """Return an endless loader of the micro-batches of one process.

        The arguments are those of `data.loader.Subset.loader`, but `device` has no effect: prints are rendered on the
        device of the masters.
        """
        return RenderLoader(self, order, batch_size, rank, processes, position, truth)


@dataclass
class RenderLoader:
    """Endless iterator over rendered micro-batches of one process. Use it as a context manager.

    Attributes:
        prints, order, batch_size, rank, processes, position, truth: see `data.loader.Subset.loader`.
        waited: seconds spent on rendering on a CPU, without the first batch. The value is 0 on a GPU, where rendering
            runs asynchronously and the host cannot time it.
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
        """Seconds that training has waited for data, as a dictionary keyed by stage. Rendering is the only stage."""
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
            if on_cpu and position > self.position:  # the first batch includes initialisation
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
    """Generate the fingers of synthetic training data, and separate fingers for validation.

    Each rank generates a part of the fingers. Then all ranks exchange their parts, so that each rank has all fingers.

    Args:
        data: value of `--data`, see `parse_source`.
        held_out: number of validation fingers divided by the number of training fingers; 0 for no validation. A value
            above 0 gives at least two validation fingers.
        device: device of the masters (complete ridge images).
        rank, processes: rank of this process and number of processes.
        gather: function that concatenates a tensor of all ranks along the first dimension; required for several
            processes.

    Returns:
        Training prints, and validation prints or None.
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
                assert gather is not None, "gather is required for several processes"
                made = _gathered(made, gather, len(chunk))
            parts.append(made)
            bar.update(len(chunk))
    both = SyntheticPrints(spec, join(parts), numbers)
    return both[: spec.fingers], both[spec.fingers :] if validation else None
