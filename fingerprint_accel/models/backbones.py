"""Trunks: the stem that both branches share, the body of each branch, and the minutia-map decoder.

`inception_v4` follows Engelsma, Cao and Jain 2019 ("Learning a Fixed-Length Fingerprint Representation", arXiv
1909.09901), with Inception v4 modules (Szegedy et al. 2016) from timm. `compact` is a small residual network of ours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.errors import UserError

try:
    from timm.layers import ConvNormAct
    from timm.models.inception_v4 import (
        InceptionA,
        InceptionB,
        InceptionC,
        Mixed3a,
        Mixed4a,
        Mixed5a,
        ReductionA,
        ReductionB,
    )
except RuntimeError as error:  # timm imports torchvision
    if "torchvision::" not in str(error):
        raise
    raise UserError(
        f"torch {torch.__version__} and the installed torchvision do not fit each other ({error}); "
        "install both from one place: pip install --force-reinstall torch torchvision"
    ) from error

ORIENTATIONS = 6  # channels of the minutia map

_block: Any = partial(ConvNormAct, padding=0, norm_kwargs={"eps": 1e-3}, act_kwargs={"inplace": True})


class MapDecoder(nn.Module):
    """Minutia map from stem features of any size: (B, C, h, w) -> (B, 6, S, S).

    Args:
        channels: of the features.
        hidden: channels of the two hidden widths.
        side: S, pixels.
        plain: without activations, as in flx.
    """

    def __init__(self, channels: int, hidden: tuple[int, int], side: int, plain: bool = False) -> None:
        super().__init__()
        self.side = side
        first, second = hidden
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(channels, first, 3, stride=2),
            nn.Conv2d(first, first, 7),
            nn.ConvTranspose2d(first, second, 3, stride=2),
        ]
        if not plain:
            layers = [each for layer in layers for each in (layer, nn.ReLU(inplace=True))]
        self.features = nn.Sequential(*layers, nn.Conv2d(second, ORIENTATIONS, 3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        maps = self.features(features)
        if maps.shape[-1] == self.side + 1:  # DeepPrint's own size: 299 pixels in, 129 out, last row and column dropped
            return maps[..., :-1, :-1]
        return F.interpolate(maps, size=(self.side, self.side), mode="bilinear", align_corners=False)


def inception_stem() -> nn.Sequential:
    """(B, 1, 299, 299) -> (B, 384, 35, 35)."""
    return nn.Sequential(
        _block(1, 32, kernel_size=3, stride=2),
        _block(32, 32, kernel_size=3, stride=1),
        _block(32, 64, kernel_size=3, stride=1, padding=1),
        Mixed3a(_block),
        Mixed4a(_block),
        Mixed5a(_block),
    )


def inception_texture(dropout: float, dims: int) -> nn.Sequential:
    """(B, 384, 35, 35) -> (B, dims): rest of Inception v4, averaged over space."""
    return nn.Sequential(
        *[InceptionA(_block) for _ in range(4)],
        ReductionA(_block),
        *[InceptionB(_block) for _ in range(7)],
        ReductionB(_block),
        *[InceptionC(_block) for _ in range(3)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(1536, dims),
    )


def inception_minutia_stem() -> nn.Sequential:
    """(B, 384, 35, 35) -> (B, 384, 35, 35)."""
    return nn.Sequential(*[InceptionA(_block) for _ in range(6)])


def inception_minutia(dropout: float, dims: int, plain: bool = False) -> nn.Sequential:
    """(B, 384, 35, 35) -> (B, dims): four convolutions, the maximum over space; `plain` without activations, as flx."""
    block = nn.Conv2d if plain else _block
    return nn.Sequential(
        block(384, 768, kernel_size=3, stride=1, padding=1),
        block(768, 768, kernel_size=3, stride=2, padding=1),
        block(768, 896, kernel_size=3, stride=1, padding=1),
        block(896, 1024, kernel_size=3, stride=2, padding=1),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(1024, dims),
    )


def _normalisation(kind: str, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(channels // 8, channels)


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut that averages before it drops pixels (He et al. 2016 and 2019)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        shrink = [nn.AvgPool2d(stride, ceil_mode=True)] if stride > 1 else []
        last = _normalisation(norm, outputs)
        nn.init.zeros_(last.weight)  # starts as the shortcut
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            _normalisation(norm, outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            last,
        )
        self.shortcut = nn.Sequential(*shrink, *([nn.Conv2d(inputs, outputs, 1)] if inputs != outputs else []))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(features) + self.shortcut(features))


def compact_stem(width: int, norm: str) -> nn.Sequential:
    """(B, 1, S, S) -> (B, 2 * width, S / 4, S / 4)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False),
        _normalisation(norm, width),
        nn.ReLU(inplace=True),
        Residual(width, 2 * width, 2, norm),
    )


def compact_texture(width: int, norm: str, dropout: float, dims: int) -> nn.Sequential:
    """(B, 2 * width, h, w) -> (B, dims); a 4 x 4 grid keeps where on the print things are."""
    return nn.Sequential(
        Residual(2 * width, 4 * width, 2, norm),
        Residual(4 * width, 4 * width, 1, norm),
        Residual(4 * width, 8 * width, 2, norm),
        Residual(8 * width, 8 * width, 1, norm),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8 * width * 16, dims),
    )


def compact_minutia_stem(width: int, norm: str) -> nn.Sequential:
    """(B, 2 * width, h, w) -> the same shape."""
    return nn.Sequential(Residual(2 * width, 2 * width, 1, norm))


def compact_minutia(width: int, norm: str, dropout: float, dims: int) -> nn.Sequential:
    """(B, 2 * width, h, w) -> (B, dims)."""
    return compact_texture(width, norm, dropout, dims)
