"""Define the identity head: a classification loss over the training fingers for embeddings of unit length.

The head also accepts prefixes of the embedding. Prefixes are compared with prefixes of the class vectors (Kusupati et
al. 2022, "Matryoshka Representation Learning", arXiv 2205.13147, the variant with tied weights).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

ROWS_AT_ONCE = 1 << 16  # class vectors drawn at a time
SOFTMAX_GAIN = 16.0  # e^16 = 9 million, enough to separate that many fingers


class IdentityHead(nn.Module):
    """Softmax, ArcFace or CosFace head that returns the classification loss. Each process has all classes.

    The softmax head is a linear layer with bias, as in DeepPrint (Engelsma, Cao and Jain 2019, arXiv 1909.09901).
    Embeddings have unit length, so with the usual initialisation the logits lie within +-0.6 and the loss is flat. The
    logits are therefore multiplied by the constant `SOFTMAX_GAIN`. ArcFace and CosFace use scaled cosines to one vector
    per finger, with a margin on the true class.

    Args:
        dim: embedding dimension, D.
        classes: number of training fingers, C.
        kind: `softmax`; `arcface` adds the margin to the angle (Deng et al. 2019, arXiv 1801.07698); `cosface`
            subtracts the margin from the cosine (Wang et al. 2018, arXiv 1801.09414).
        scale: factor of the cosines.
        margin: margin of the true class: an angle in radians for arcface, a difference of cosines for cosface.
        dropout: dropout probability of embedding elements, for softmax.
        label_smoothing: share of the target distribution that is spread over all fingers.
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
        """Return the logits of all classes, with the margin applied to the true class.

        Args:
            embedding: (B, d) embeddings of unit length, or their prefixes.
            finger: (B,) int64 true classes.
            margin: margin to use instead of the margin of the head.

        Returns:
            (B, C).
        """
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
        """Return the cross-entropy, averaged over prints and over the given embeddings of each print.

        The arguments are those of `ShardedHead.forward`.
        """
        losses = [
            F.cross_entropy(self.logits(embedding, finger, margin), finger, label_smoothing=self.label_smoothing)
            for embedding in embeddings
        ]
        return sum(losses[1:], losses[0]) / len(losses)


def random_class_vectors(classes: int, dim: int, rows: slice = slice(None)) -> torch.Tensor:
    """Draw the initial class vectors (classes, dim), and return some of their rows.

    The values of a row do not depend on `rows`.

    Args:
        classes: number of classes.
        dim: dimension of a class vector.
        rows: rows to return.
    """
    first, last, _ = rows.indices(classes)
    kept = torch.empty(last - first, dim)
    for begin in range(0, classes, ROWS_AT_ONCE):
        drawn = torch.randn(min(ROWS_AT_ONCE, classes - begin), dim) / math.sqrt(dim)
        wanted = drawn[max(0, first - begin) : max(0, last - begin)]
        start = max(0, begin - first)
        kept[start : start + len(wanted)] = wanted
    return kept


def cosface(cosine: torch.Tensor, margin: float | torch.Tensor) -> torch.Tensor:
    """Subtract the margin m from the cosine of the angle t: cos t - m."""
    return cosine - margin


def arcface(cosine: torch.Tensor, margin: float | torch.Tensor) -> torch.Tensor:
    """Add the margin m to the angle t: return cos(t + m) for cosines cos t.

    Where t + m exceeds pi, the result is cos t - m sin m, so that the function stays monotonic. The addition theorem
    replaces acos, because the derivative of acos is infinite at +-1. The sine is clamped for the same reason.
    """
    sine = (1 - cosine.square()).clamp(min=1e-6).sqrt()
    cos, sin = (
        (margin.cos(), margin.sin()) if isinstance(margin, torch.Tensor) else (math.cos(margin), math.sin(margin))
    )
    shifted = cosine * cos - sine * sin
    return torch.where(cosine > -cos, shifted, cosine - margin * sin)


WITH_MARGIN = {"arcface": arcface, "cosface": cosface}
