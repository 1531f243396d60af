"""What one step of training consumes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from fingerprint_accel.data.truth import GRID


@dataclass(frozen=True)
class Batch:
    """Prints as they come from the shards, in pinned memory or on the device.

    Attributes:
        image: (B, H, W) uint8, canvases, ridges dark.
        finger: (B,) int64, class label (dense over the training fingers).
        minutiae: (B, M, 4) float32, rows of x, y (canvas pixels, y down), angle (radians, counter-clockwise from +x
            with y up) and quality; rows from `minutia_count` on are padding.
        minutia_count: (B,) int64; 0 where a print has no minutiae.
        index: (B,) int64, row in the dataset.
        epoch: (B,) int64, pass over the data that the print belongs to (`SampleOrder.take`).
        pose: (B, 3) float32, where the finger lies (`synthesis.touch.Touch.pose`); rows of NaN where neither pose nor
            contact is known. None unless whoever reads asks for the truth.
        contact: (B, GRID, GRID) bool, which cells of the canvas are at least half covered by the touching finger;
            False where it is unknown. None together with `pose`.
    """

    image: torch.Tensor
    finger: torch.Tensor
    minutiae: torch.Tensor
    minutia_count: torch.Tensor
    index: torch.Tensor
    epoch: torch.Tensor
    pose: torch.Tensor | None = None
    contact: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """Moves every tensor."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return Batch(**{name: part.to(device) for name, part in parts.items() if part is not None})


class BatchLayout:
    """Where the parts of a batch lie in one flat piece of memory, so that it travels to a device in one copy.

    Args:
        prints: B.
        canvas: H and W, pixels.
        minutiae: M, the same for every batch: static shapes, and nothing depends on what else is in the batch.
        truth: whether pose and contact are in it.
    """

    def __init__(self, prints: int, canvas: int, minutiae: int, truth: bool = False) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {  # wide numbers first: views must be aligned
            "numbers": ((4, prints), torch.int64),  # finger, minutia_count, index, epoch
            "minutiae": ((prints, minutiae, 4), torch.float32),
        }
        if truth:
            self.shapes |= {"pose": ((prints, 3), torch.float32), "contact": ((prints, GRID, GRID), torch.bool)}
        self.shapes["image"] = ((prints, canvas, canvas), torch.uint8)

    def empty(self, pinned: bool = False) -> torch.Tensor:
        """() -> (bytes,) uint8 that holds a batch; `pinned` memory is copied to CUDA without waiting."""
        size = sum(math.prod(shape) * kind.itemsize for shape, kind in self.shapes.values())
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)

    def view(self, flat: torch.Tensor, keep_numbers: bool = False) -> Batch:
        """flat (bytes,) uint8 on any device -> the batch that lies in it, without a copy.

        `keep_numbers` copies finger, index, epoch and minutia_count, which loops like to hold on to.
        """
        parts, start = {}, 0
        for name, (shape, kind) in self.shapes.items():
            end = start + math.prod(shape) * kind.itemsize
            parts[name] = flat[start:end].view(kind).view(shape)
            start = end
        numbers = parts["numbers"].clone() if keep_numbers else parts["numbers"]
        finger, count, index, epoch = numbers.unbind()
        truth = parts.get("pose"), parts.get("contact")
        return Batch(parts["image"], finger, parts["minutiae"], count, index, epoch, *truth)
