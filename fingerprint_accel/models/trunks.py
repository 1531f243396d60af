"""The trunks by name. A new one is a module with a function like those below, a line here, and its name in
`config.Trunk`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.models.dense import DenseHead

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


def dense_branch(parts: TrunkParts, config: ModelConfig, dims: int) -> nn.Sequential:
    """features -> vectors and contact of the cells, see `DenseHead`."""
    body = parts.body()
    return nn.Sequential(*body, DenseHead(parts.channels, config.grid, dims // max(1, config.cells), config.dropout))
