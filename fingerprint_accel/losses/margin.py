"""Identity head: turns unit-length embeddings into logits over the training fingers, and these into a loss.

An embedding may be shorter than the head, the beginning of the whole: then the beginnings of the class vectors count
(Kusupati et al. 2022, "Matryoshka Representation Learning", arXiv 2205.13147, the variant with tied weights).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

ROWS_AT_ONCE = 1 << 16
SOFTMAX_GAIN = 16.0  # e^16 = 9 million: a unit-length embedding can stand out among that many fingers


class IdentityHead(nn.Module):
    """Softmax, ArcFace or CosFace head with all classes on this process; gives the loss.

    The softmax head is a fully connected layer with bias, as in DeepPrint (Engelsma, Cao and Jain 2019, arXiv
    1909.09901). Embeddings have unit length, so the logits of a layer with the usual initial weights lie within +-0.6
    and the loss starts flat. Weights and bias are therefore multiplied by a constant gain: the same family of
    functions, with class vectors that turn `SOFTMAX_GAIN` times as fast. The others give the scaled cosine to one
    direction per finger, with a margin on the right one.

    Args:
        dim: length D of the embedding.
        classes: number C of training fingers.
        kind: `softmax`; `arcface` adds the margin to the angle (Deng et al. 2019, arXiv 1801.07698); `cosface`
            subtracts it from the cosine (Wang et al. 2018, arXiv 1801.09414).
        scale: multiplies the cosines.
        margin: radians for arcface, cosine for cosface.
        dropout: share of embedding entries dropped in training, for softmax.
        label_smoothing: share of the target that is spread over all fingers.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        kind: str,
        scale: float,
        margin: float,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_class_vectors(classes, dim))
        self.bias = nn.Parameter(torch.zeros(classes)) if kind == "softmax" else None
        self.scale, self.margin, self.label_smoothing = scale, margin, label_smoothing
        self.with_margin = WITH_MARGIN.get(kind)
        self.dropout = nn.Dropout(dropout)

    def logits(
        self, embedding: torch.Tensor, finger: torch.Tensor, margin: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """embedding (B, D) of unit length, finger (B,) -> (B, C); `margin` in place of the head's own."""
        weight = self.weight[:, : embedding.shape[1]]
        if self.with_margin is None:
            return SOFTMAX_GAIN * F.linear(self.dropout(embedding), weight, self.bias)
        cosine = F.linear(embedding, F.normalize(weight, dim=1))
        own = finger[:, None]
        shifted = self.with_margin(cosine.gather(1, own), self.margin if margin is None else margin)
        return self.scale * cosine.scatter(1, own, shifted)

    def forward(
        self, embeddings: list[torch.Tensor], finger: torch.Tensor, margin: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean cross-entropy over the prints and over the given embeddings of each; arguments as of `ShardedHead`."""
        losses = [
            F.cross_entropy(self.logits(embedding, finger, margin), finger, label_smoothing=self.label_smoothing)
            for embedding in embeddings
        ]
        return sum(losses[1:], losses[0]) / len(losses)


def random_class_vectors(classes: int, dim: int, rows: slice = slice(None)) -> torch.Tensor:
    """(rows, dim) of the `classes` random vectors that a head starts with, the same whichever rows are kept."""
    first, last, _ = rows.indices(classes)
    kept = torch.empty(last - first, dim)
    for begin in range(0, classes, ROWS_AT_ONCE):
        drawn = torch.randn(min(ROWS_AT_ONCE, classes - begin), dim) / math.sqrt(dim)
        wanted = drawn[max(0, first - begin) : max(0, last - begin)]
        start = max(0, begin - first)
        kept[start : start + len(wanted)] = wanted
    return kept


def cosface(cosine: torch.Tensor, margin: float | torch.Tensor) -> torch.Tensor:
    """cos t - m."""
    return cosine - margin


def arcface(cosine: torch.Tensor, margin: float | torch.Tensor) -> torch.Tensor:
    """cos(t + m) where t + m <= pi, and cos t - m sin m beyond, so that it falls with t all the way.

    Written with the addition theorem: acos has an infinite slope at +-1. The clamp does the same for the sine.
    """
    sine = (1 - cosine.square()).clamp(min=1e-6).sqrt()
    cos, sin = (
        (margin.cos(), margin.sin()) if isinstance(margin, torch.Tensor) else (math.cos(margin), math.sin(margin))
    )
    shifted = cosine * cos - sine * sin
    return torch.where(cosine > -cos, shifted, cosine - margin * sin)


WITH_MARGIN = {"arcface": arcface, "cosface": cosface}
