"""Center loss: prints stay close to the centre of their finger (Wen et al. 2016, ECCV)."""

from __future__ import annotations

import torch
from torch import nn

_UNIT = 2.0**30  # fixed-point unit: integer sums do not depend on the order of their terms


class CenterLoss(nn.Module):
    """Squared distance to the centre of the own finger, mean over the batch.

    Centres start at zero: from there every unit-length embedding is equally far, so a centre pulls only once its prints
    have moved it. They are buffers, not parameters, and move by `update`.

    Args:
        dim: length D of the embedding.
        classes: number C of training fingers.
        rate: share of the way to the mean of its prints that a centre moves in one update.
    """

    def __init__(self, dim: int, classes: int, rate: float = 0.01) -> None:
        super().__init__()
        self.rate = rate
        self.centers: torch.Tensor
        self.register_buffer("centers", torch.zeros(classes, dim))

    def forward(self, embedding: torch.Tensor, finger: torch.Tensor) -> torch.Tensor:
        """embedding (B, D), finger (B,) -> () mean squared distance."""
        return (embedding - self.centers[finger]).square().sum(dim=1).mean()

    @torch.no_grad()
    def update(self, embedding: torch.Tensor, finger: torch.Tensor, skip: torch.Tensor | None = None) -> None:
        """c_j <- c_j + rate * (mean of the x_i with y_i = j  -  c_j) for every finger j among the prints.

        Wen et al. divide by 1 + n_j where this divides by n_j: their centre moves n_j / (1 + n_j) as far. Sums are
        taken in fixed point, so that prints in another order, or from other ranks, give the same bits; shapes are
        static, so that the host never waits for the device.

        Args:
            embedding: (N, D), of unit length, of all micro-batches and ranks.
            finger: (N,) their fingers.
            skip: () bool; True leaves the centres as they are.
        """
        fixed = (embedding.float() * _UNIT).round().to(torch.int64)
        ranked, order = finger.sort()
        changes = (ranked[1:] != ranked[:-1]).to(torch.int64)
        slot = torch.cat([changes.new_zeros(1), changes.cumsum(0)])  # (N,) 0, 1, ... per distinct finger
        sums = torch.zeros_like(fixed).index_add_(0, slot, fixed[order])
        counts = torch.zeros_like(slot).index_add_(0, slot, torch.ones_like(slot))
        mean = (sums[slot].float() / _UNIT) / counts[slot, None]
        old = self.centers[ranked]
        new = old + self.rate * (mean - old)
        if skip is not None:
            new = torch.where(skip, old, new)
        self.centers.index_copy_(0, ranked, new)  # rows of one finger are equal: whichever is written last
