"""Identity heads: each turns unit-length embeddings into logits over the training fingers.

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


class SoftmaxHead(nn.Module):
    """Fully connected layer with bias, as in DeepPrint (Engelsma, Cao and Jain 2019, arXiv 1909.09901).

    Embeddings have unit length, so the logits of a layer with the usual initial weights lie within +-0.6 and the loss
    starts flat. Weights and bias are therefore multiplied by a constant gain: the same family of functions, with
    class vectors that turn `gain` times as fast.

    Args:
        dim: length D of the embedding.
        classes: number C of training fingers.
        dropout: share of embedding entries dropped in training.
    """

    def __init__(self, dim: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_class_vectors(classes, dim))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, embedding: torch.Tensor, finger: torch.Tensor, margin: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """embedding (B, D), finger (B,) and margin (not needed here) -> logits (B, C)."""
        weight = self.weight[:, : embedding.shape[1]]
        return SOFTMAX_GAIN * F.linear(self.dropout(embedding), weight, self.bias)


class MarginHead(nn.Module):
    """Scaled cosine to one direction per finger, with a margin on the right one.

    Args:
        dim: length D of the embedding.
        classes: number C of training fingers.
        kind: `arcface` adds the margin to the angle (Deng et al. 2019, arXiv 1801.07698); `cosface` subtracts it from
            the cosine (Wang et al. 2018, arXiv 1801.09414).
        scale: multiplies the cosines.
        margin: radians for arcface, cosine for cosface.
    """

    def __init__(self, dim: int, classes: int, kind: str, scale: float, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_class_vectors(classes, dim))
        self.scale, self.margin = scale, margin
        self.with_margin = WITH_MARGIN[kind]

    def forward(
        self, embedding: torch.Tensor, finger: torch.Tensor, margin: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """embedding (B, D) of unit length, finger (B,) -> logits (B, C); `margin` in place of the head's own."""
        margin = self.margin if margin is None else margin
        cosine = F.linear(embedding, F.normalize(self.weight[:, : embedding.shape[1]], dim=1))
        own = finger[:, None]
        return self.scale * cosine.scatter(1, own, self.with_margin(cosine.gather(1, own), margin))


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


def make_head(kind: str, dim: int, classes: int, scale: float, margin: float, dropout: float) -> nn.Module:
    """The identity head that `LossConfig.head` names, with all classes on this process."""
    if kind == "softmax":
        return SoftmaxHead(dim, classes, dropout)
    return MarginHead(dim, classes, kind, scale, margin)
