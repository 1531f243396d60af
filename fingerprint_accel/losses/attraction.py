"""What draws the prints of a finger together: center loss and contrastive loss.

Center loss: Wen et al. 2016 (ECCV). Contrastive loss: InfoNCE (van den Oord, Li and Vinyals 2018, arXiv 1807.03748),
with every other print of the finger as a positive, the mean outside the logarithm (Khosla et al. 2020, arXiv
2004.11362, equation 2).
"""

from __future__ import annotations

import torch
from torch import nn

from fingerprint_accel.losses.exchange import gather, gather_with_gradient, rank_and_world_size
from fingerprint_accel.similarity import masked_similarity

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


def contrastive_loss(embedding: torch.Tensor, finger: torch.Tensor, temperature: float, cells: int = 0) -> torch.Tensor:
    """Mean over the prints of this rank of -log softmax(similarities to all other prints)[own finger].

    Prints of all ranks are compared with. A print that is alone with its finger counts as 0. The mean over ranks of the
    loss, and of its gradients as DDP takes it, is that of the whole micro-batch in one process.

    Args:
        embedding: (B, D) float32, of unit length.
        finger: (B,) int64 class labels.
        temperature: by which similarities are divided.
        cells: of a dense embedding; then the loss is the mean of that of cosines and that of masked similarities.

    Returns:
        () float32.
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
    """similarity, mated, itself (B, N) -> (), mean over the prints of this rank."""
    others = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min)  # finite: a batch of one has no others
    mates = mated.sum(dim=1)
    to_mates = (similarity * mated).sum(dim=1) / mates.clamp(min=1)
    return ((others.logsumexp(dim=1) - to_mates) * (mates > 0)).mean()
