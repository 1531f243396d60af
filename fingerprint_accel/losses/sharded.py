"""Define an identity head whose class vectors are sharded over processes.

A replicated head needs memory for all classes on each process, and each step communicates all of its gradients. The
sharded head gathers the embeddings of all processes on each process, which compares them with its own classes (An et
al. 2021, "Partial FC", arXiv 2010.05222). The communication depends only on the batch size.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from fingerprint_accel.errors import require
from fingerprint_accel.losses.exchange import gather, gather_with_gradient, rank_and_world_size
from fingerprint_accel.losses.margin import SOFTMAX_GAIN, WITH_MARGIN, random_class_vectors
from fingerprint_accel.losses.sharded_softmax import Scoring, ShardedCrossEntropy


def slice_of_classes(classes: int, rank: int, processes: int) -> slice:
    """Return the slice of the classes that one process owns. The sizes of the slices differ by at most one.

    Args:
        classes: number of classes.
        rank: rank of the process.
        processes: number of processes.
    """
    return slice(classes * rank // processes, classes * (rank + 1) // processes)


class ShardedHead(nn.Module):
    """Softmax, ArcFace or CosFace head that returns the classification loss. Each process owns a slice of the classes.

    Loss and gradients equal those of a replicated head averaged over ranks. Class vectors and bias get their complete
    gradient on the process that owns them. These gradients must therefore not be averaged over ranks, and gradient
    norms must be summed over processes. All ranks must pass the same number of prints in a call. Without a process
    group, this process owns all classes.

    With `sampling` below 1, an update compares prints with a random sample of the classes, which includes the classes
    of all prints of the update (An et al. 2022, "Killing Two Birds with One Stone", arXiv 2203.15565). Call `draw`
    before the first micro-batch of an update and `put_back` after the update. `draw` copies the sampled rows to
    `drawn`, and the optimizer changes these copies. Classes outside the sample and their optimizer state do not change.

    Args:
        dim: embedding dimension, D.
        classes: number of training fingers, C.
        kind: `softmax`, `arcface` or `cosface`; see `losses.margin`.
        scale: factor of the cosines.
        margin: margin of the true class: an angle in radians for arcface, a difference of cosines for cosface.
        dropout: dropout probability of embedding elements, for softmax.
        sampling: share of the classes of this process that take part in an update.
        filter_threshold: wrong classes with a larger cosine are excluded, because they may be the same finger stored
            under a different key (An et al. 2022, section 3.3); 1 excludes none.

    Raises:
        UserError: if there are fewer classes than processes.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        kind: str,
        scale: float,
        margin: float,
        dropout: float = 0.0,
        sampling: float = 1.0,
        filter_threshold: float = 1.0,
    ) -> None:
        super().__init__()
        rank, processes = rank_and_world_size()
        require(classes >= processes, f"loss.sharded: {classes} fingers cannot be shared by {processes} processes")
        self.classes, self.margin, self.sampling = classes, margin, sampling
        self.rows = slice_of_classes(classes, rank, processes)
        self.weight = nn.Parameter(random_class_vectors(classes, dim, self.rows))
        self.bias = nn.Parameter(torch.zeros(len(self.weight))) if kind == "softmax" else None
        self.scoring = Scoring(SOFTMAX_GAIN if kind == "softmax" else scale, WITH_MARGIN.get(kind), filter_threshold)
        self.dropout = nn.Dropout(dropout if kind == "softmax" else 0.0)
        self.drawn: dict[str, nn.Parameter] = {}  # copies of rows, not part of the state dict
        if sampling < 1:
            self.drawn = {name: nn.Parameter(own.detach()[:0].clone()) for name, own in self.named_parameters()}
        self._drawn_rows = torch.empty(0, dtype=torch.int64)

    def forward(
        self, embeddings: list[torch.Tensor], finger: torch.Tensor, margin: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the cross-entropy, averaged over the prints of all ranks and over the given embeddings of each print.

        Args:
            embeddings: the embedding (B, D) and optional prefixes (B, d), each float32 of unit length.
            finger: (B,) int64 class labels in 0..C-1.
            margin: margin to use instead of the margin of the head.
        """
        margin = self.margin if margin is None else margin
        lengths = [embedding.shape[1] for embedding in embeddings]
        mine = torch.cat([self.dropout(embedding) for embedding in embeddings], dim=1)
        everyone, own = gather_with_gradient(mine), self._row_here(gather(finger))
        vectors: dict[str, torch.Tensor] = dict(self.named_parameters())
        if self.drawn:
            assert len(self.drawn["weight"]), "call draw() first"
            vectors = {name: _leaf(drawn) for name, drawn in self.drawn.items()}
            slot = torch.searchsorted(self._drawn_rows, own).clamp(max=len(self._drawn_rows) - 1)
            own = torch.where(self._drawn_rows[slot] == own, slot, -1)
        weight, bias = vectors["weight"], vectors.get("bias")
        return ShardedCrossEntropy.apply(everyone, weight, bias, own, margin, lengths, self.scoring)

    def _row_here(self, finger: torch.Tensor) -> torch.Tensor:
        """Return the row index of each class in the class vectors of this process, as a tensor (N,).

        The index is -1 for a class that a different process owns.
        """
        row = finger - self.rows.start
        return torch.where((row >= 0) & (row < len(self.weight)), row, -1)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that get gradients: the sampled copies, or all parameters without sampling."""
        return list(self.drawn.values()) if self.drawn else list(self.parameters())

    @torch.no_grad()
    def draw(self, finger: torch.Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Sample the classes of the next update. Without sampling, the method does nothing.

        Args:
            finger: (M,) classes of the prints of all micro-batches and ranks. These classes are always in the sample.
            optimizer: optimizer of the class vectors. Its state for the sampled rows is copied, too.
        """
        if not self.drawn:
            return
        size = len(self.weight)
        # The size of the sample depends on shapes only, so the host need not wait for the device.
        count = min(size, max(math.ceil(self.sampling * size), len(finger)))
        chance = torch.rand(size + 1, device=self.weight.device)
        chance.index_fill_(0, self._row_here(finger) % (size + 1), 2.0)  # -1 maps to the extra last element
        self._drawn_rows = chance[:size].topk(count, sorted=False).indices.sort().values
        for name, drawn in self.drawn.items():
            whole = self.get_parameter(name)
            drawn.data, drawn.grad = whole.data[self._drawn_rows], None
            if optimizer is not None and whole in optimizer.state:
                optimizer.state[drawn] = {
                    entry: value[self._drawn_rows] if _is_like(value, whole) else value
                    for entry, value in optimizer.state[whole].items()
                }

    @torch.no_grad()
    def put_back(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Copy the sampled rows and their optimizer state back to the complete parameters, and free the copies.

        Args:
            optimizer: the optimizer that `draw` was called with.
        """
        for name, drawn in self.drawn.items():
            whole = self.get_parameter(name)
            whole.data.index_copy_(0, self._drawn_rows, drawn.data)
            if optimizer is not None:
                remembered = optimizer.state[whole]
                for entry, value in optimizer.state.pop(drawn, {}).items():
                    if _is_like(value, drawn):
                        if entry not in remembered:
                            remembered[entry] = torch.zeros_like(whole)
                        remembered[entry].index_copy_(0, self._drawn_rows, value)
                    else:
                        remembered[entry] = value
            drawn.data, drawn.grad = drawn.data[:0].clone(), None


def _leaf(drawn: nn.Parameter) -> torch.Tensor:
    """Return a leaf tensor that shares the data of `drawn` and adds its gradient to `drawn.grad` in the backward pass.

    `drawn` is resized between updates, but the leaves of an autograd graph must keep their shape. Each graph therefore
    gets its own leaf.
    """

    def hand_over(leaf: torch.Tensor) -> None:
        drawn.grad = leaf.grad if drawn.grad is None or leaf.grad is None else drawn.grad.add_(leaf.grad)
        leaf.grad = None

    leaf = drawn.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(hand_over)
    return leaf


def _is_like(value: object, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape
