"""The head of the dense variants: a descriptor that keeps its place on the finger, and which places the print shows.

As in FDD (Pan, Duan, Feng and Zhou 2023, arXiv 2311.18576) and DMD (2024, arXiv 2405.01199): a grid of short vectors on
the aligned print, compared where both prints are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class DenseHead(nn.Module):
    """(B, C, h, w) -> a vector and a logit for each cell of a grid: (B, G, G, D) and (B, G, G).

    Args:
        channels: C.
        grid: G, cells along each side.
        dims: D, numbers of each cell.
        dropout: in front of the vectors.
    """

    def __init__(self, channels: int, grid: int, dims: int, dropout: float) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.dropout = nn.Dropout(dropout)
        self.vectors = nn.Conv2d(channels, dims, 1)
        self.contact = nn.Conv2d(channels, 1, 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cells = self.pool(features)
        return self.vectors(self.dropout(cells)).permute(0, 2, 3, 1), self.contact(cells)[:, 0]


def masked_embedding(vectors: torch.Tensor, contact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts the cells that a print shows side by side and scales the whole to unit length; other cells are zero.

    Args:
        vectors: (B, G, G, D).
        contact: (B, G, G) logits. Where none is above 0, the largest counts, so that no embedding is empty.

    Returns:
        (B, G * G * D) float32 of unit length, row by row, and (B,) the length before.
    """
    logits = contact.detach().float().flatten(1)  # the mask is learned by its own loss
    shown = logits >= logits.amax(dim=1, keepdim=True).clamp(max=0.0)
    cells = vectors.float().flatten(1, 2) * shown[:, :, None]
    embedding = cells.flatten(1)
    return F.normalize(embedding, dim=1), embedding.detach().norm(dim=1)
