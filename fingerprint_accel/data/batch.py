"""Batches of prints for training steps, and the layout of a batch in one buffer."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from fingerprint_accel.data.truth import GRID


@dataclass(frozen=True)
class Batch:
    """Batch of B prints as stored in the dataset, in pinned memory or on the device.

    Attributes:
        image: (B, H, W) uint8 canvases, the square images of the prints. Ridges are dark.
        finger: (B,) int64 class labels, from 0 to F - 1 for F training fingers.
        minutiae: (B, M, 4) float32 with room for M minutiae per print. Each row holds x, y (canvas pixels, y down),
            angle (radians, counter-clockwise from +x with y up) and quality (0 to 1). Rows from `minutia_count` on are
            padding.
        minutia_count: (B,) int64 number of minutiae of each print; 0 if a print has none.
        index: (B,) int64 row index of each print in the dataset.
        epoch: (B,) int64 epoch of each print, from 0; a batch may contain prints of two epochs.
        pose: (B, 3) float32 true pose of the finger: rotation in radians, shift along x and y in canvas pixels (see
            `synthesis.touch.Touch.pose`). Rows are NaN for prints without ground truth. None if the batch was read
            without ground truth.
        contact: (B, GRID, GRID) bool for GRID x GRID cells of the canvas. A cell is true if the finger touches at least
            half of its area; all are false for prints without ground truth. None if `pose` is None.
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
        """Return the batch with all tensors moved to `device`."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return Batch(**{name: part.to(device) for name, part in parts.items() if part is not None})


class BatchLayout:
    """Layout of a batch in one flat buffer, so that one copy moves the whole batch to the device.

    Args:
        prints: number of prints, B.
        canvas: side of the images, pixels (H = W).
        minutiae: number of minutiae that each print has room for, M. All batches have the same M, so that shapes are
            static.
        truth: whether the batch contains the true pose and contact.
    """

    def __init__(self, prints: int, canvas: int, minutiae: int, truth: bool = False) -> None:
        # Types with more bytes come first, because views must be aligned.
        self.shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "numbers": ((4, prints), torch.int64),  # finger, minutia_count, index, epoch
            "minutiae": ((prints, minutiae, 4), torch.float32),
        }
        if truth:
            self.shapes |= {"pose": ((prints, 3), torch.float32), "contact": ((prints, GRID, GRID), torch.bool)}
        self.shapes["image"] = ((prints, canvas, canvas), torch.uint8)

    def empty(self, pinned: bool = False) -> torch.Tensor:
        """Allocate an uninitialised buffer for one batch, and return it as a (bytes,) uint8 tensor.

        Args:
            pinned: whether to allocate page-locked memory, from which CUDA can copy asynchronously.
        """
        size = sum(math.prod(shape) * kind.itemsize for shape, kind in self.shapes.values())
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)

    def view(self, flat: torch.Tensor, keep_numbers: bool = False) -> Batch:
        """Return the batch stored in a buffer. Its tensors are views of the buffer.

        Args:
            flat: (bytes,) uint8 on any device, laid out as `empty` allocates it.
            keep_numbers: whether to copy `finger`, `minutia_count`, `index` and `epoch`, so that they stay valid when
                the buffer is reused.
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
