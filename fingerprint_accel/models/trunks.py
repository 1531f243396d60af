"""The trunks by name, and the head of the dense variants. A new trunk is a module with a function like those below, a
line here, and its name in `config.Trunk`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from fingerprint_accel.config import ModelConfig

TRUNKS = {  # module and function; a module is imported when its trunk is made: timm takes seconds
    "inception_v4": "fingerprint_accel.models.inception:inception_parts",
    "compact": "fingerprint_accel.models.backbones:compact_parts",
    "vit_small": "fingerprint_accel.models.vit:vit_parts",
    "vit_base": "fingerprint_accel.models.vit:vit_parts",
    "flx": "fingerprint_accel.models.inception:inception_parts",
}


class TrunkParts(NamedTuple):
    """Functions that make the parts of a network; those that its variant lacks are never called.

    Attributes:
        stem: (B, 1, S, S) -> features that all branches share.
        texture: features -> (B, dims).
        minutia_stem: features -> features, which the minutia map is drawn from too.
        minutia_map: (side) those -> (B, 6, side, side).
        minutia: those -> (B, dims).
        body: features -> (B, channels, h, w), for the cells of a dense head.
        channels: of the body.
        dense_map: (side) what the first `map_after` blocks of the body give -> (B, 6, side, side).
        map_after: number of blocks.
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
    """Parts of the trunk that `config.trunk` names, for branches with `dims` numbers each."""
    module, _, function = TRUNKS[config.trunk].partition(":")
    parts: TrunkParts = getattr(importlib.import_module(module), function)(config, dims)
    return parts


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
