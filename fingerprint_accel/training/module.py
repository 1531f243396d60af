"""Combine network and losses in one module, so that a single DDP wrapper handles all trained parameters.

Identity heads, which classify the finger of a print, are parts of the losses.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.losses.sharded import ShardedHead
from fingerprint_accel.models.alignment import AlignmentNetwork
from fingerprint_accel.models.deepprint import DeepPrint, Output


class TrainingModule(nn.Module):
    """Network and losses as one module. It returns plain tuples and dictionaries, which DDP and autocast can handle.

    Args:
        model: The network.
        loss: The losses, with identity heads and class centres.
    """

    def __init__(self, model: DeepPrint, loss: DeepPrintLoss) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        if not loss.describes:  # only the alignment network is trained; DDP would wait for gradients of other parts
            for name, part in model.named_children():
                part.requires_grad_(name == "alignment")

    def forward(
        self, image: torch.Tensor, *targets: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Compute the loss of a micro-batch.

        If the loss is NaN or infinite, all gradients become non-finite. The average over ranks is then non-finite on
        all ranks. The optimizer skips the update on the device, without waiting for the host.

        Args:
            image: (B, 1, S, S) input of the network: images of B prints with sides of S pixels.
            targets: Arguments of `DeepPrintLoss.forward` after the output of the network, in the same order.

        Returns:
            Three values: the loss as a scalar tensor; a dictionary from the name of each part of the loss to a scalar
                tensor; and a dictionary from the name of each network branch to the (B, D) embeddings of the prints.
        """
        output = self.model(image) if self.loss.describes else self.model.locate(image)
        result = self.loss(output, *targets)
        poison = result.total.detach() * 0 + 1  # 1, or NaN where the loss is NaN or infinite
        branches = {name: value.detach() for name, value in output.branches.items()}
        return result.total * poison, result.parts, branches

    @property
    def sharded_parameters(self) -> dict[str, ShardedHead]:
        """Dictionary from parameter names to identity heads, for heads of which this process holds only a slice."""
        return {
            f"loss.heads.{branch}.{name}": head
            for branch, head in self.loss.sharded_heads.items()
            for name, _ in head.named_parameters()
        }

    @property
    def learns_truth(self) -> bool:
        """Whether a loss needs the true pose or contact area of the finger, which are known for synthetic prints."""
        weights = self.loss.config
        aligns = isinstance(self.model.alignment, AlignmentNetwork) and weights.pose_weight > 0
        return aligns or (self.model.config.cells > 0 and weights.mask_weight > 0)

    def embed(self, image: torch.Tensor) -> Output:
        """Run the network on B images of S x S pixels, and return its output.

        With FSDP, the weights are gathered on all processes for this call.

        Args:
            image: (B, 1, S, S) input of the network.
        """
        output: Output = self.model(image)
        return output

    @property
    def _no_split_modules(self) -> list[str]:
        """Names of the module classes whose weights FSDP gathers as a whole: blocks of the trunk, and the losses.

        Blocks inside other blocks are left out. Accelerate reads this attribute under this name.
        """
        blocks = self.model.blocks
        inner = {type(part) for block in blocks for part in block.modules() if part is not block}
        return sorted({kind.__name__ for kind in {type(block) for block in blocks} - inner} | {"DeepPrintLoss"})


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    """Return the running means and variances of all batch normalisation layers, in a fixed order."""
    layers = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
    return [buffer for buffer in buffers if buffer is not None]


class StatisticsGuard:
    """Restores the running statistics of batch normalisation after a step with a non-finite loss.

    The forward pass of such a step has already changed the running means and variances, and NaN would stay in them.

    Args:
        module: Module with the batch normalisation layers.
        average: Network with averaged weights, or None. The method `average` also averages the running statistics of
            this network over all ranks.
    """

    def __init__(self, module: nn.Module, average: nn.Module | None = None) -> None:
        self.live = running_statistics(module)
        self.averaged = running_statistics(average) if average is not None else []
        self.good = _joined(self.live)

    @torch.no_grad()
    def step(self, bad: torch.Tensor) -> None:
        """Store the running statistics if `bad` is False; otherwise restore the last stored running statistics.

        Args:
            bad: () bool, True if the update of the current step was skipped.
        """
        if self.live:  # operations on one joined tensor are fewer than operations on each layer
            self.good = torch.where(bad, self.good, _joined(self.live))
            _share_out(self.good, self.live)

    @torch.no_grad()
    def of_ranks(self, accelerator: Accelerator) -> torch.Tensor:
        """Collect the running statistics of all ranks. All ranks must call this at the same step.

        Returns:
            (R, K) float32, one row for each rank, to restore with `set_statistics`.
        """
        found: torch.Tensor = accelerator.gather(_joined(self.live + self.averaged)[None])
        return found

    @torch.no_grad()
    def average(self, processes: int) -> None:
        """Average the running statistics over all ranks. All ranks must call this at the same step.

        Args:
            processes: Number of processes of the run.
        """
        if processes > 1 and self.live:
            together = self.live + self.averaged
            flat = _joined(together)
            torch.distributed.all_reduce(flat)
            _share_out(flat / processes, together)
            self.good = _joined(self.live)


@torch.no_grad()
def set_statistics(values: torch.Tensor, module: nn.Module, average: nn.Module | None = None) -> None:
    """Set the running statistics of a module, and of the network with averaged weights if there is one.

    Args:
        values: (K,) float32, a row of `StatisticsGuard.of_ranks`.
        module: Module with the batch normalisation layers.
        average: Network with averaged weights, or None.

    Raises:
        RuntimeError: If the number of values does not fit the layers.
    """
    _share_out(values, running_statistics(module) + (running_statistics(average) if average is not None else []))


def _joined(buffers: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate one-dimensional buffers into one tensor, which is empty if there are no buffers."""
    return torch.cat(buffers) if buffers else torch.empty(0)


def _share_out(joined: torch.Tensor, buffers: list[torch.Tensor]) -> None:
    torch._foreach_copy_(buffers, joined.split([len(buffer) for buffer in buffers]))
