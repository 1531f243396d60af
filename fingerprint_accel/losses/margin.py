"""Identity head: classification loss over the training fingers, from embeddings of unit length.

The head also accepts prefixes of the embedding. They are compared with prefixes of the class vectors (Kusupati et al.
2022, "Matryoshka Representation Learning", arXiv 2205.13147, the variant with tied weights).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

ROWS_AT_ONCE = 1 << 16
SOFTMAX_GAIN = 16.0  # e^16 = 9 million, enough to separate that many fingers


class IdentityHead(nn.Module):
    """Softmax, ArcFace or CosFace head with all classes on this process. It returns the loss.

    The softmax head is a linear layer with bias, as in DeepPrint (Engelsma, Cao and Jain 2019, arXiv 1909.09901).
    Embeddings have unit length, so with the usual initialisation the logits lie within +-0.6 and the loss is flat. The
    logits are therefore multiplied by the constant `SOFTMAX_GAIN`. ArcFace and CosFace use scaled cosines to one vector
    per finger, with a margin on the true class.

    Args:
        dim: length of the embedding, D.
        classes: number of training fingers, C.
        kind: `softmax`; `arcface` adds the margin to the angle (Deng et al. 2019, arXiv 1801.07698); `cosface`
            subtracts it from the cosine (Wang et al. 2018, arXiv 1801.09414).
        scale: factor of the cosines.
        margin: in radians for arcface, as a cosine for cosface.
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
        """Return logits (B, C) for embeddings (B, D) of unit length and their classes (B,).

        `margin` replaces the margin of the head.
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

        Arguments are those of `ShardedHead.forward`.
        """
        losses = [
            F.cross_entropy(self.logits(embedding, finger, margin), finger, label_smoothing=self.label_smoothing)
            for embedding in embeddings
        ]
        return sum(losses[1:], losses[0]) / len(losses)


def random_class_vectors(classes: int, dim: int, rows: slice = slice(None)) -> torch.Tensor:
    """Return some rows of the initial class vectors (classes, dim). Values do not depend on the selected rows."""
    first, last, _ = rows.indices(classes)
    kept = torch.empty(last - first, dim)
    for begin in range(0, classes, ROWS_AT_ONCE):
        drawn = torch.randn(min(ROWS_AT_ONCE, classes - begin), dim) / math.sqrt(dim)
        wanted = drawn[max(0, first - begin) : max(0, last - begin)]
        start = max(0, begin - first)
        kept[start : start + len(wanted)] = wanted
    return kept


def cosface(cosine: torch.Tensor, margin: float | torch.Tensor) -> torch.Tensor:
    """Subtract the margin m from the cosine: cos t - m."""
    return cosine - margin


def arcface(cosine: torch.Tensor, margin: float | torch.Tensor) -> torch.Tensor:
    """Add the margin m to the angle: cos(t + m) for t + m <= pi, else cos t - m sin m, which keeps it monotonic.

    The addition theorem replaces acos, whose derivative is infinite at +-1. The sine is clamped for the same reason.
    """
    sine = (1 - cosine.square()).clamp(min=1e-6).sqrt()
    cos, sin = (
        (margin.cos(), margin.sin()) if isinstance(margin, torch.Tensor) else (math.cos(margin), math.sin(margin))
    )
    shifted = cosine * cos - sine * sin
    return torch.where(cosine > -cos, shifted, cosine - margin * sin)


WITH_MARGIN = {"arcface": arcface, "cosface": cosface}
