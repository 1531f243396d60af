"""Contrastive loss: prints of one finger stand closer to each other than to all other prints of the batch.

InfoNCE (van den Oord, Li and Vinyals 2018, arXiv 1807.03748) with every other print of the finger as a positive, the
mean outside the logarithm (Khosla et al. 2020, arXiv 2004.11362, equation 2).
"""

from __future__ import annotations

import torch

from fingerprint_accel.losses.exchange import gather, gather_with_gradient, rank_and_world_size
from fingerprint_accel.similarity import masked_similarity


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
