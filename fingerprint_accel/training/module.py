"""What is trained: the network and its losses under one roof, so that DDP sees every parameter once."""

from __future__ import annotations

import torch
from torch import nn

from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.losses.sharded import ShardedHead
from fingerprint_accel.models.alignment import AlignmentNetwork
from fingerprint_accel.models.deepprint import DeepPrint, Output


class TrainingModule(nn.Module):
    """Network and losses; returns plain tuples and dictionaries, which DDP and autocast know how to handle.

    Args:
        model: the network.
        loss: heads, centres and weights.
    """

    def __init__(self, model: DeepPrint, loss: DeepPrintLoss) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        if not loss.describes:  # DDP waits for the gradient of whatever wants one
            for name, part in model.named_children():
                part.requires_grad_(name == "alignment")

    def forward(
        self, image: torch.Tensor, *targets: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """image (B, 1, S, S) and what `DeepPrintLoss.forward` takes behind the output -> loss, its parts, embeddings.

        A loss that is not finite makes every gradient not finite, on all ranks after their gradients are averaged: the
        update is skipped on the device, without asking the host.
        """
        output = self.model(image) if self.loss.describes else self.model.locate(image)
        result = self.loss(output, *targets)
        poison = result.total.detach() * 0 + 1  # 1, or NaN where the loss is NaN or infinite
        branches = {name: value.detach() for name, value in output.branches.items()}
        return result.total * poison, result.parts, branches

    @property
    def sharded_parameters(self) -> dict[str, ShardedHead]:
        """Name of every parameter of which this process has a slice, and its head."""
        return {
            f"loss.heads.{branch}.{name}": head
            for branch, head in self.loss.sharded_heads.items()
            for name, _ in head.named_parameters()
        }

    @property
    def learns_truth(self) -> bool:
        """Whether the losses ask how a print lies and what it shows."""
        weights = self.loss.config
        aligns = isinstance(self.model.alignment, AlignmentNetwork) and weights.pose_weight > 0
        return aligns or (self.model.config.cells > 0 and weights.mask_weight > 0)

    def embed(self, image: torch.Tensor) -> Output:
        """image (B, 1, S, S) -> what the network makes of it."""
        output: Output = self.model(image)
        return output

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers whose weights FSDP gathers together, by the name under which Accelerate looks for them:
        the blocks of the trunk, as far as they are not parts of others, and the losses."""
        blocks = self.model.blocks
        inner = {type(part) for block in blocks for part in block.modules() if part is not block}
        return sorted({kind.__name__ for kind in {type(block) for block in blocks} - inner} | {"DeepPrintLoss"})


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    """Buffers that batch normalisation updates as it sees data, in a fixed order."""
    layers = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
    return [buffer for buffer in buffers if buffer is not None]


class StatisticsGuard:
    """Undoes what a step with a loss that is not finite did to the running statistics.

    Args:
        module: whose batch normalisation is guarded.
        average: moving average of the network, whose statistics are then the mean over ranks too.
    """

    def __init__(self, module: nn.Module, average: nn.Module | None = None) -> None:
        self.live = running_statistics(module)
        self.averaged = running_statistics(average) if average is not None else []
        self.good = _joined(self.live)

    @torch.no_grad()
    def step(self, bad: torch.Tensor) -> None:
        """bad: () bool on the device. Keeps the live statistics, or puts the last good ones back."""
        if self.live:  # joined: a handful of operations, not one per layer
            self.good = torch.where(bad, self.good, _joined(self.live))
            _share_out(self.good, self.live)

    @torch.no_grad()
    def average(self, processes: int) -> None:
        """Makes the statistics the mean over ranks; every rank calls this at the same step."""
        if processes > 1 and self.live:
            together = self.live + self.averaged
            flat = _joined(together)
            torch.distributed.all_reduce(flat)
            _share_out(flat / processes, together)
            self.good = _joined(self.live)


def _joined(buffers: list[torch.Tensor]) -> torch.Tensor:
    """(C,) each -> one after the other."""
    return torch.cat(buffers) if buffers else torch.empty(0)


def _share_out(joined: torch.Tensor, buffers: list[torch.Tensor]) -> None:
    torch._foreach_copy_(buffers, joined.split([len(buffer) for buffer in buffers]))
