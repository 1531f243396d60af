"""Parts of a synthetic dataset, made one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fingerprint_accel import __version__
from fingerprint_accel.data.parallel import end_if_stopping
from fingerprint_accel.data.part_folder import PartFolder
from fingerprint_accel.data.truth import CONTACT_BYTES, Truth
from fingerprint_accel.errors import UserError
from fingerprint_accel.synthesis.impressions import Prints, impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import numbered_masters

FINGERS_PER_PART, PRINTS_PER_PART = 64, 1024  # at most
PARTS_ON_CPU = 256  # at least, if there are as many fingers: work for every core
PIXELS_AT_ONCE = 2**24  # 163 prints of 320 x 320; a GPU needs about 200 bytes for each pixel
MOST_FINGERS, MOST_IMPRESSIONS = 2**31 - 1, 2**15 - 1  # int32 and int16 in the dataset


@dataclass(frozen=True)
class Plan:
    """All that the bytes of a synthetic dataset depend on.

    Attributes:
        fingers: how many, numbered from `first_finger`.
        impressions: of each finger, numbered from 0.
        seed: with a finger's number it decides all about the finger.
        first_finger: number of the first finger.
        style: of the impressions.
        device: "cpu" or "cuda".

    Raises:
        UserError: a number out of range.
    """

    fingers: int
    impressions: int
    seed: int
    first_finger: int
    style: Style
    device: str

    def __post_init__(self) -> None:
        for option, value, low, high in (
            ("--fingers", self.fingers, 1, MOST_FINGERS),
            ("--impressions", self.impressions, 1, MOST_IMPRESSIONS),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--first-finger", self.first_finger, 0, MOST_FINGERS),
        ):
            if not low <= value <= high:
                raise UserError(f"{option} {value}: must lie between {low} and {high}")

    @property
    def prints(self) -> int:
        """Rows of the dataset."""
        return self.fingers * self.impressions

    @property
    def fingers_per_part(self) -> int:
        """Enough to fill a GPU, few enough to be soon done."""
        most = min(FINGERS_PER_PART, PRINTS_PER_PART // self.impressions)
        if self.device == "cpu":
            most = min(most, -(-self.fingers // PARTS_ON_CPU))
        return max(1, most)

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.fingers // self.fingers_per_part)

    @property
    def prints_at_once(self) -> int:
        """Prints that are rendered together, and rows of a record batch of a part, at most."""
        return max(1, min(128, PIXELS_AT_ONCE // self.style.canvas**2))

    @property
    def masters_at_once(self) -> int:
        """Fingers that are made together."""
        return 1 if self.device == "cpu" else self.fingers_per_part

    @property
    def fingers_at_once(self) -> int:
        """Fingers that are rendered together."""
        return 1 if self.device == "cpu" else max(1, self.prints_at_once // self.impressions)

    def place(self, row: int) -> tuple[int, int]:
        """Record batch, and row in it, of a part's row; the rows of a part count finger by finger."""
        group, row = divmod(row, self.fingers_at_once * self.impressions)
        batches = -(-self.fingers_at_once * self.impressions // self.prints_at_once)
        return group * batches + row // self.prints_at_once, row % self.prints_at_once

    def fingers_of(self, part: int) -> range:
        """Numbers of the fingers in a part."""
        start = part * self.fingers_per_part
        stop = min(self.fingers, start + self.fingers_per_part)
        return range(self.first_finger + start, self.first_finger + stop)

    @property
    def schema(self) -> pa.Schema:
        """Columns of a part."""
        image = pa.binary(self.style.canvas**2)
        truth = {"pose": pa.list_(pa.float32(), 3), "contact": pa.binary(CONTACT_BYTES)}
        return pa.schema({"image": image, "minutiae": pa.list_(pa.float32()), "kind": pa.int8(), **truth})

    def arguments(self) -> dict[str, Any]:
        """The plan as JSON, with the versions whose bits it means."""
        style = self.style
        return {
            "fingers": self.fingers,
            "impressions": self.impressions,
            "seed": self.seed,
            "first_finger": self.first_finger,
            "sensors": list(style.sensors),
            "quality": style.quality,
            "ppi": style.ppi,
            "canvas": style.canvas,
            "siblings": style.siblings,
            "partial": style.partial_share,
            "device": self.device,
            "fingerprint_accel": __version__,
            "torch": torch.__version__,
        }


@dataclass(frozen=True)
class MadePrint:
    """A print of a part: image (canvas, canvas) uint8, minutiae (n, 4) float32, pattern class, pose and contact."""

    image: np.ndarray
    minutiae: np.ndarray
    kind: int
    truth: Truth


class Parts(PartFolder):
    """The parts of one plan."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__(folder, plan.arguments(), plan.parts)
        self.plan = plan

    def read(self, rows: np.ndarray) -> Iterator[tuple[int, MadePrint]]:
        """Yields row and print of some rows, ascending.

        Rows count finger by finger. One part is open at a time: there may be more than a process can open files.

        Raises:
            UserError: a part is damaged.
        """
        per_part = self.plan.fingers_per_part * self.plan.impressions
        rows = np.sort(rows)
        for part in np.unique(rows // per_part).tolist():
            here = rows[rows // per_part == part]
            try:
                with pa.memory_map(str(self.path(part))) as file:
                    reader = pa.ipc.open_file(file)
                    for row in here.tolist():
                        batch, place = self.plan.place(row - part * per_part)
                        yield row, _row(reader.get_batch(batch), place, self.plan.style.canvas)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{self.path(part)}: damaged; delete it and run the same command again") from error


def _row(batch: pa.RecordBatch, place: int, canvas: int) -> MadePrint:
    image = np.frombuffer(batch["image"].buffers()[1], np.uint8)[place * canvas**2 : (place + 1) * canvas**2]
    minutiae = batch["minutiae"][place].values.to_numpy().reshape(-1, 4)
    truth = Truth(batch["pose"][place].values.to_numpy().copy(), batch["contact"][place].as_py())
    return MadePrint(image.reshape(canvas, canvas).copy(), minutiae.copy(), batch["kind"][place].as_py(), truth)


def make_part(task: tuple[Parts, int]) -> int:
    """Makes one part and says how many prints it holds."""
    parts, number = task
    plan = parts.plan
    prints = 0
    with parts.writing(number) as file, pa.ipc.new_file(file, plan.schema) as writer:
        for batch in _batches(plan, plan.fingers_of(number)):
            end_if_stopping()
            writer.write_batch(batch)
            prints += len(batch)
    return prints


def _batches(plan: Plan, numbers: range) -> Iterator[pa.RecordBatch]:
    """All impressions of some fingers, as `Plan.place` finds them.

    A CPU goes finger by finger, so that it soon notices when it is to stop.
    """
    at_once = plan.prints_at_once
    every = torch.arange(plan.impressions, device=plan.device)
    for fingers in torch.tensor(numbers, device=plan.device).split(plan.masters_at_once):
        masters = numbered_masters(plan.seed, fingers, plan.style.siblings)
        for group in torch.arange(len(fingers), device=plan.device).split(plan.fingers_at_once):
            which, impressions = group.repeat_interleave(len(every)), every.repeat(len(group))
            for some, touches in zip(which.split(at_once), impressions.split(at_once), strict=True):
                prints = render(masters, some, impression_keys(plan.seed, fingers[some], touches), plan.style)
                yield _batch(prints, masters.kind[some], plan.schema)


def _batch(prints: Prints, kind: torch.Tensor, schema: pa.Schema) -> pa.RecordBatch:
    images = np.ascontiguousarray(prints.image.cpu().numpy())
    minutiae, counts = prints.minutiae.cpu().numpy(), prints.count.cpu().numpy()
    there = np.arange(minutiae.shape[1]) < counts[:, None]
    offsets = np.concatenate([[0], 4 * np.cumsum(counts)]).astype(np.int32)
    contacts = np.packbits(prints.contact.flatten(1).cpu().numpy(), axis=1)  # (B, CONTACT_BYTES), as `pack_contact`
    arrays = [
        pa.Array.from_buffers(schema.field("image").type, len(images), [None, pa.py_buffer(images)]),
        pa.ListArray.from_arrays(offsets, minutiae[there].ravel()),
        pa.array(kind.cpu().numpy().astype(np.int8)),
        pa.FixedSizeListArray.from_arrays(prints.pose.cpu().numpy().ravel(), 3),
        pa.Array.from_buffers(schema.field("contact").type, len(images), [None, pa.py_buffer(contacts)]),
    ]
    return pa.record_batch(arrays, schema=schema)
