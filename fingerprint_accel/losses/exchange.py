"""Provide the collective operations that losses need. Without a process group, tensors are returned unchanged."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes. Without a process group, these are 0 and 1."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def is_distributed() -> bool:
    """Return whether a process group with several processes exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the tensors (B, ...) of all ranks in rank order, without gradient."""
    return _gather(tensor) if is_distributed() else tensor


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the tensors (B, ...) of all ranks in rank order, with gradient.

    The gradient of a row is the sum of its gradients on all ranks.
    """
    return _exchange(tensor) if is_distributed() else tensor


def _exchange(tensor: torch.Tensor) -> torch.Tensor:
    return _GatherWithGradient.apply(tensor)


class _GatherWithGradient(torch.autograd.Function):
    """Autograd function that concatenates the tensors of all ranks.

    The function replaces the deprecated `torch.distributed.nn.functional.all_gather`. Its backward pass also works with
    gloo.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(tensor)
        return _gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.rows :][: ctx.rows]


def reduce(tensor: torch.Tensor, largest: bool = False) -> torch.Tensor:
    """Replace a tensor in place by its sum over all ranks, or by its maximum if `largest` is true, without gradient."""
    return _reduce(tensor, largest) if is_distributed() else tensor


def _reduce(tensor: torch.Tensor, largest: bool) -> torch.Tensor:
    dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor


def talk_outside_compiled_code() -> None:
    """Exclude the collective operations from compilation. Call this function before compiling losses.

    Decorators would have the same effect, but importing this module would then import the compiler.
    """
    for name in ("_gather", "_exchange", "_reduce"):
        globals()[name] = torch.compiler.disable(globals()[name])
