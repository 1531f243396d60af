"""What one step of training consumes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


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
    """

    image: torch.Tensor
    finger: torch.Tensor
    minutiae: torch.Tensor
    minutia_count: torch.Tensor
    index: torch.Tensor
    epoch: torch.Tensor

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """Moves every tensor, without waiting where the source is pinned."""
        names = ("image", "finger", "minutiae", "minutia_count", "index", "epoch")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})
