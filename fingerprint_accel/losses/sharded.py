"""Identity head whose classes lie on all processes, each of which keeps a slice of them.

A head that every process holds whole takes memory for all classes on each, and its gradients are sent around in every
step. Here each process gathers the embeddings of all and scores them against its own classes (An et al. 2021, "Partial
FC", arXiv 2010.05222): what is sent depends on the batch alone.
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
    """The classes of one process: slices follow each other and differ by one at most."""
    return slice(classes * rank // processes, classes * (rank + 1) // processes)


class ShardedHead(nn.Module):
    """Softmax, ArcFace or CosFace head, one slice of the classes per process; gives the loss, since no process has all
    logits.

    Loss and gradients are those of the head that is held whole, averaged over ranks. Class vectors and bias have their
    whole gradient on the one process that has them: nothing may average them, and a norm of gradients has to be
    summed over processes. Every rank has to call with as many prints as the others, in each step as many as it likes.
    One process without a process group has all classes.

    With `sampling` below 1 an update compares each print with some of the classes only, among them those of all its
    prints (An et al. 2022, "Killing Two Birds with One Stone", arXiv 2203.15565): `draw` before the first micro-batch
    of an update, `put_back` after it. What the optimizer changes are the vectors in `drawn`; classes that were not
    drawn stay as they are, and so does what it remembers of them.

    Args:
        dim: length D of the embedding.
        classes: number C of training fingers.
        kind: `softmax`, `arcface` or `cosface`, as in `losses.margin`.
        scale: multiplies the cosines.
        margin: radians for arcface, cosine for cosface.
        dropout: share of embedding entries dropped in training, for softmax.
        sampling: share of this process's classes that take part in an update.
        filter_threshold: other fingers with a larger cosine to a print are left out of its sum, since they may be the
            same finger under another name (An et al. 2022, section 3.3); 1 leaves none out.

    Raises:
        UserError: there are fewer classes than processes.
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
        self.drawn: dict[str, nn.Parameter] = {}  # not a part of the state: copies of rows
        if sampling < 1:
            self.drawn = {name: nn.Parameter(own.detach()[:0].clone()) for name, own in self.named_parameters()}
        self._drawn_rows = torch.empty(0, dtype=torch.int64)

    def forward(
        self, embeddings: list[torch.Tensor], finger: torch.Tensor, margin: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean cross-entropy over the prints of all ranks and over the given embeddings of each.

        Args:
            embeddings: (B, D) and its beginnings (B, d), each of unit length and float32.
            finger: (B,) int64 classes, of all C.
            margin: in place of the head's own.
        """
        margin = self.margin if margin is None else margin
        lengths = [embedding.shape[1] for embedding in embeddings]
        mine = torch.cat([self.dropout(embedding) for embedding in embeddings], dim=1)
        everyone, own = gather_with_gradient(mine), self._row_here(gather(finger))
        vectors: dict[str, torch.Tensor] = dict(self.named_parameters())
        if self.drawn:
            assert len(self.drawn["weight"]), "draw() comes first"
            vectors = {name: _leaf(drawn) for name, drawn in self.drawn.items()}
            slot = torch.searchsorted(self._drawn_rows, own).clamp(max=len(self._drawn_rows) - 1)
            own = torch.where(self._drawn_rows[slot] == own, slot, -1)
        weight, bias = vectors["weight"], vectors.get("bias")
        return ShardedCrossEntropy.apply(everyone, weight, bias, own, margin, lengths, self.scoring)

    def _row_here(self, finger: torch.Tensor) -> torch.Tensor:
        """(N,) classes -> (N,) rows of this process's slice, -1 for those of others."""
        row = finger - self.rows.start
        return torch.where((row >= 0) & (row < len(self.weight)), row, -1)

    def trained(self) -> list[nn.Parameter]:
        """What gets gradients: everything, or what is drawn of it."""
        return list(self.drawn.values()) if self.drawn else list(self.parameters())

    @torch.no_grad()
    def draw(self, finger: torch.Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Chooses at random the classes of the next update; does nothing without sampling.

        Args:
            finger: (M,) classes of all its prints, those of all micro-batches and ranks; they are always chosen.
            optimizer: which is to know of them what it knows of the whole.
        """
        if not self.drawn:
            return
        size = len(self.weight)
        count = min(size, max(math.ceil(self.sampling * size), len(finger)))  # known without asking the device
        chance = torch.rand(size + 1, device=self.weight.device)
        chance.index_fill_(0, self._row_here(finger) % (size + 1), 2.0)  # -1, of others, hits the last, which is no row
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
        """Writes what was drawn to where it came from, and what the optimizer remembers of it; frees the copies."""
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
    """Stands for `drawn` in one graph and hands it the gradient.

    A graph that is still alive insists on the shape that its leaves had, and `drawn` may change its shape from one
    update to the next.
    """

    def hand_over(leaf: torch.Tensor) -> None:
        drawn.grad = leaf.grad if drawn.grad is None or leaf.grad is None else drawn.grad.add_(leaf.grad)
        leaf.grad = None

    leaf = drawn.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(hand_over)
    return leaf


def _is_like(value: object, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape
