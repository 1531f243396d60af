"""Look up trunks by name, and define the head of the dense variants.

A trunk is the part of a network that computes features from images. To add a trunk, write a module with a function that
returns `TrunkParts`, add a line to `TRUNKS`, and add the name to `config.Trunk`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from fingerprint_accel.config import ModelConfig

TRUNKS = {  # "module:function" by name; modules are imported on demand, because importing timm takes seconds
    "inception_v4": "fingerprint_accel.models.inception:inception_parts",
    "compact": "fingerprint_accel.models.backbones:compact_parts",
    "vit_small": "fingerprint_accel.models.vit:vit_parts",
    "vit_base": "fingerprint_accel.models.vit:vit_parts",
    "flx": "fingerprint_accel.models.inception:inception_parts",
}


class TrunkParts(NamedTuple):
    """Functions that make the parts of a network. `DeepPrint` calls only the functions that its variant needs.

    In the shapes below, `dims` is the embedding dimension of a branch.

    Attributes:
        stem: makes the stem that all branches share. It maps images (B, 1, S, S) to features.
        texture: makes the texture branch. It maps the features of the stem to embeddings (B, dims).
        minutia_stem: makes the first part of the minutia branch. It maps the features of the stem to minutia features.
        minutia_map: makes the decoder of the minutia map for a given side of the map. It maps minutia features to maps
            (B, 6, side, side).
        minutia: makes the rest of the minutia branch. It maps minutia features to embeddings (B, dims).
        body: makes the blocks in front of the head of a dense variant. They map the features of the stem to features
            (B, channels, h, w).
        channels: number of channels of the features that the body returns.
        dense_map: makes the map decoder of a dense variant for a given side of the map. The input of the decoder is the
            output of the first `map_after` blocks of the body.
        map_after: number of blocks of the body in front of the map decoder.
    """

    stem: Callable[[], nn.Sequential]
    texture: Callable[[], nn.Sequential]
    minutia_stem: Callable[[], nn.Sequential]
    minutia_map: Callable[[int], nn.Module]
    minutia: Callable[[], nn.Sequential]
    body: Callable[[], list[nn.Module]]
    channels: int
    dense_map: Callable[[int], nn.Module]
    map_after: int


def trunk_parts(config: ModelConfig, dims: int) -> TrunkParts:
    """Return functions that make the parts of the trunk with the name `config.trunk`.

    Args:
        config: configuration of the model.
        dims: embedding dimension of each branch.
    """
    module, _, function = TRUNKS[config.trunk].partition(":")
    parts: TrunkParts = getattr(importlib.import_module(module), function)(config, dims)
    return parts


class DenseHead(nn.Module):
    """Head of the dense variants, which predicts a vector and a contact logit for each cell of a grid.

    A contact logit above 0 means that the print shows the cell. The module maps features (B, C, h, w) to vectors (B, G,
    G, D) and logits (B, G, G).

    Args:
        channels: number of input channels, C.
        grid: number of cells along each side, G.
        dims: dimension of the vector of each cell, D.
        dropout: dropout probability in front of the vectors.
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
