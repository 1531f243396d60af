"""What is trained: the network and its losses under one roof, so that DDP sees every parameter once."""

from __future__ import annotations

import torch
from torch import nn

from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.models.deepprint import DeepPrint


class TrainingModule(nn.Module):
    """Network and losses; returns plain tuples and dictionaries, which DDP and autocast know how to handle.

    Args:
        model: the network.
        loss: heads, centres and weights.
    """

    def __init__(self, model: DeepPrint, loss: DeepPrintLoss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(
        self,
        image: torch.Tensor,
        finger: torch.Tensor,
        maps: torch.Tensor | None,
        has_minutiae: torch.Tensor | None,
        margin: float | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """image (B, 1, S, S), finger (B,), maps (B, 6, M, M), has_minutiae (B,) bool -> loss, its parts, embeddings.
        `margin` is the identity heads' at this step.

        A loss that is not finite makes every gradient not finite, on all ranks after their gradients are averaged: the
        update is skipped on the device, without asking the host.
        """
        output = self.model(image)
        result = self.loss(output, finger, maps, has_minutiae, margin)
        poison = result.total.detach() * 0 + 1  # 1, or NaN where the loss is NaN or infinite
        branches = {name: value.detach() for name, value in output.branches.items()}
        return result.total * poison, result.parts, branches


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    """Buffers that batch normalisation updates as it sees data, in a fixed order."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    found = []
    for part in module.modules():
        if isinstance(part, kinds) and part.track_running_stats:
            found += [part.running_mean, part.running_var]
    return [buffer for buffer in found if buffer is not None]


class StatisticsGuard:
    """Undoes what a step with a loss that is not finite did to the running statistics.

    Args:
        module: whose batch normalisation is guarded.
    """

    def __init__(self, module: nn.Module) -> None:
        self.live = running_statistics(module)
        self.good = [buffer.clone() for buffer in self.live]

    @torch.no_grad()
    def step(self, bad: torch.Tensor) -> None:
        """bad: () bool on the device. Keeps the live statistics, or puts the last good ones back."""
        if self.live:
            kept = [torch.where(bad, good, live) for good, live in zip(self.good, self.live, strict=True)]
            torch._foreach_copy_(self.live, kept)
            torch._foreach_copy_(self.good, kept)

    @torch.no_grad()
    def average(self, processes: int) -> None:
        """Makes the statistics the mean over ranks; every rank calls this at the same step."""
        if processes > 1 and self.live:
            flat = torch.cat([buffer.flatten() for buffer in self.live])
            torch.distributed.all_reduce(flat)
            parts = (flat / processes).split([buffer.numel() for buffer in self.live])
            for live, good, part in zip(self.live, self.good, parts, strict=True):
                live.copy_(part.view_as(live))
                good.copy_(live)
