"""Identity heads: one class per training finger, on top of an embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.losses.margin import arcface_logits, cosface_logits


class IdentityHead(nn.Module):
    """Logits over the training fingers, in float32 whatever the autocast.

    Args:
        kind: `softmax` (linear layer), `arcface` or `cosface` (scaled cosine with a margin).
        dims: length of the embedding.
        fingers: number of classes.
        scale, margin: of the cosine heads.
    """

    def __init__(self, kind: str, dims: int, fingers: int, scale: float, margin: float) -> None:
        super().__init__()
        self.kind, self.scale, self.margin = kind, scale, margin
        self.weight = nn.Parameter(torch.empty(fingers, dims))
        nn.init.normal_(self.weight, std=1.0 if kind == "softmax" else 0.01)
        self.bias = nn.Parameter(torch.zeros(fingers)) if kind == "softmax" else None

    def forward(self, embedding: torch.Tensor, finger: torch.Tensor) -> torch.Tensor:
        """embedding (B, D) of unit length, finger (B,) -> (B, fingers) logits for cross-entropy."""
        with torch.autocast(embedding.device.type, enabled=False):
            embedding, weight = embedding.float(), self.weight.float()
            if self.kind == "softmax":
                return F.linear(embedding, weight, self.bias)
            cosine = F.linear(embedding, F.normalize(weight, dim=1))
            logits = arcface_logits if self.kind == "arcface" else cosface_logits
            return logits(cosine, finger, self.scale, self.margin)
