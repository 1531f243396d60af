"""What the processes of a training tell each other while a loss is computed. Without a process group: nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process, and how many processes there are."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def is_distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) on each rank -> (ranks * B, ...) of all, in order of rank; has no gradient."""
    return _gather(tensor) if is_distributed() else tensor


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) on each rank -> (ranks * B, ...) of all, in order of rank; without a process group the tensor itself.

    The gradient of a row is the sum of what all ranks send back to it.
    """
    return _exchange(tensor) if is_distributed() else tensor


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


def reduce(tensor: torch.Tensor, largest: bool = False) -> torch.Tensor:
    """Sum over ranks, element by element, or the largest; changes `tensor` itself, and has no gradient."""
    return _reduce(tensor, largest) if is_distributed() else tensor


def _reduce(tensor: torch.Tensor, largest: bool) -> torch.Tensor:
    dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor


def talk_outside_compiled_code() -> None:
    """To be called before losses are compiled; decorators would cost everybody the import of the compiler."""
    for name in ("_gather", "_exchange", "_reduce"):
        globals()[name] = torch.compiler.disable(globals()[name])
