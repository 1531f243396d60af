"""Contrastive loss: prints of one finger stand closer to each other than to all other prints of the batch.

InfoNCE (van den Oord, Li and Vinyals 2018, arXiv 1807.03748) with every other print of the finger as a positive, the
mean outside the logarithm (Khosla et al. 2020, arXiv 2004.11362, equation 2).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def contrastive_loss(embedding: torch.Tensor, finger: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over the prints of this rank of -log softmax(similarities to all other prints)[own finger].

    Prints of all ranks are compared with. A print that is alone with its finger counts as 0. The mean over ranks of the
    loss, and of its gradients as DDP takes it, is that of the whole micro-batch in one process.

    Args:
        embedding: (B, D) float32, of unit length.
        finger: (B,) int64 class labels.
        temperature: by which similarities are divided.

    Returns:
        () float32.
    """
    everyone, fingers = gather_with_gradient(embedding), finger  # (N, D), (N,)
    if _is_distributed():
        fingers = _gather(finger)
    rank = dist.get_rank() if _is_distributed() else 0
    place = torch.arange(len(finger), device=finger.device) + rank * len(finger)
    itself = place[:, None] == torch.arange(len(fingers), device=finger.device)  # (B, N)
    mated = (finger[:, None] == fingers) & ~itself
    similarity = embedding @ everyone.T / temperature
    others = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min)  # finite: a batch of one has no others
    mates = mated.sum(dim=1)
    to_mates = (similarity * mated).sum(dim=1) / mates.clamp(min=1)
    return ((others.logsumexp(dim=1) - to_mates) * (mates > 0)).mean()


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) on each rank -> (ranks * B, ...) of all, in order of rank; without a process group the tensor itself.

    The gradient of a row is the sum of what all ranks send back to it.
    """
    return _exchange(tensor) if _is_distributed() else tensor


@torch.compiler.disable  # processes talk outside of compiled code
def _exchange(tensor: torch.Tensor) -> torch.Tensor:
    return _GatherWithGradient.apply(tensor)


class _GatherWithGradient(torch.autograd.Function):
    """`torch.distributed.nn.functional.all_gather`, which torch is giving up, with a backward that gloo has too."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(tensor)
        return _gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.rows :][: ctx.rows]


@torch.compiler.disable
def _gather(tensor: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
