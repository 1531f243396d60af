"""Define losses that pull the prints of a finger together: center loss and supervised contrastive loss.

The center loss follows Wen et al. 2016 (ECCV). The contrastive loss is InfoNCE (van den Oord, Li and Vinyals 2018,
arXiv 1807.03748) with all other prints of the finger as positives (Khosla et al. 2020, arXiv 2004.11362, equation 2).
"""

from __future__ import annotations

import torch
from torch import nn

from fingerprint_accel.losses.exchange import gather, gather_with_gradient, rank_and_world_size
from fingerprint_accel.similarity import masked_similarity

_UNIT = 2.0**30  # scale of fixed-point numbers; sums of fixed-point numbers do not depend on the order of the terms


class CenterLoss(nn.Module):
    """Loss that is the mean squared distance between embeddings and the centres of their fingers.

    Centres are buffers, not parameters. `update` moves them. They start at zero, where the loss has no effect, because
    all embeddings have unit length.

    Args:
        dim: embedding dimension, D.
        classes: number of training fingers.
        rate: step size with which a centre moves to the mean of its prints.
    """

    def __init__(self, dim: int, classes: int, rate: float = 0.01) -> None:
        super().__init__()
        self.rate = rate
        self.centers: torch.Tensor
        self.register_buffer("centers", torch.zeros(classes, dim))

    def forward(self, embedding: torch.Tensor, finger: torch.Tensor) -> torch.Tensor:
        """Return the mean squared distance between embeddings and the centres of their fingers, as a scalar.

        Args:
            embedding: (B, D) of unit length.
            finger: (B,) class labels.
        """
        return (embedding - self.centers[finger]).square().sum(dim=1).mean()

    @torch.no_grad()
    def update(self, embedding: torch.Tensor, finger: torch.Tensor, skip: torch.Tensor | None = None) -> None:
        """Move the centre c of each finger in the batch by rate * (mean of the embeddings of this finger - c).

        In contrast to this mean, Wen et al. divide the sum of the n embeddings of a finger by 1 + n. Sums use
        fixed-point numbers, so that the bits do not depend on the order of the prints or the number of ranks. All
        shapes are static, so that the host never waits for the device.

        Args:
            embedding: (N, D) of unit length, from all micro-batches and ranks.
            finger: (N,) class labels.
            skip: scalar bool tensor; if True, the centres do not change.
        """
        fixed = (embedding.float() * _UNIT).round().to(torch.int64)
        ranked, order = finger.sort()
        changes = (ranked[1:] != ranked[:-1]).to(torch.int64)
        slot = torch.cat([changes.new_zeros(1), changes.cumsum(0)])  # (N,) index of the distinct finger
        sums = torch.zeros_like(fixed).index_add_(0, slot, fixed[order])
        counts = torch.zeros_like(slot).index_add_(0, slot, torch.ones_like(slot))
        mean = (sums[slot].float() / _UNIT) / counts[slot, None]
        old = self.centers[ranked]
        new = old + self.rate * (mean - old)
        if skip is not None:
            new = torch.where(skip, old, new)
        self.centers.index_copy_(0, ranked, new)  # duplicate rows of a finger are equal, so their order does not matter


def contrastive_loss(embedding: torch.Tensor, finger: torch.Tensor, temperature: float, cells: int = 0) -> torch.Tensor:
    """Compute the supervised contrastive loss of the prints of this rank against the prints of all ranks.

    If a print is the only print of its finger, its loss is 0. DDP averages losses and gradients over ranks. The
    averages equal the loss and gradient of the whole micro-batch in one process.

    Args:
        embedding: (B, D) float32 of unit length.
        finger: (B,) int64 class labels.
        temperature: divisor of the similarities.
        cells: number of grid cells of dense embeddings; 0 for embeddings that are not dense. For dense embeddings, the
            result is the mean of two losses, one with plain cosines and one with the similarities of
            `masked_similarity`.

    Returns:
        Scalar float32 tensor.
    """
    everyone, fingers = gather_with_gradient(embedding), gather(finger)  # (N, D), (N,)
    row = torch.arange(len(finger), device=finger.device) + rank_and_world_size()[0] * len(finger)
    itself = row[:, None] == torch.arange(len(fingers), device=finger.device)  # (B, N)
    mated = (finger[:, None] == fingers) & ~itself
    found = [embedding @ everyone.T]
    if cells:
        found.append(masked_similarity(embedding, everyone, cells))
    losses = [_info_nce(each / temperature, mated, itself) for each in found]
    return sum(losses[1:], losses[0]) / len(losses)


def _info_nce(similarity: torch.Tensor, mated: torch.Tensor, itself: torch.Tensor) -> torch.Tensor:
    """Compute the InfoNCE loss, averaged over the B prints of this rank. The batch of all ranks has N prints.

    Args:
        similarity: (B, N) similarities divided by the temperature.
        mated: (B, N) bool, pairs of different prints of one finger.
        itself: (B, N) bool, pairs of a print with itself.
    """
    # A finite value instead of -inf, because a batch of one has no other print.
    others = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min)
    mates = mated.sum(dim=1)
    to_mates = (similarity * mated).sum(dim=1) / mates.clamp(min=1)
    return ((others.logsumexp(dim=1) - to_mates) * (mates > 0)).mean()
