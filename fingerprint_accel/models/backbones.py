"""Define the compact trunk, which is a small residual network, and the minutia-map decoder of all trunks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.models.trunks import TrunkParts

ORIENTATIONS = 6  # channels of the minutia map


class MapDecoder(nn.Module):
    """Decoder that predicts a minutia map from a feature map of any size.

    A minutia map consists of six heat maps of minutia positions, one for each range of directions. The module maps
    features (B, C, h, w) to (B, 6, S, S).

    Args:
        channels: number of input channels, C.
        hidden: channel counts of the two hidden stages.
        side: side of the minutia map in pixels, S.
        plain: whether to leave out activations, as the flx implementation of DeepPrint does.
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
        if maps.shape[-1] == self.side + 1:  # an input of 299 pixels gives 129 pixels; drop the last row and column
            return maps[..., :-1, :-1]
        return F.interpolate(maps, size=(self.side, self.side), mode="bilinear", align_corners=False)


def _normalisation(kind: str, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(channels // 8, channels)


class Residual(nn.Module):
    """Residual block of two 3 x 3 convolutions (He et al. 2016).

    The shortcut downsamples by average pooling (He et al. 2019).

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        stride: factor by which the block downsamples.
        norm: type of the normalisation layers, "batch" or "group".
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        shrink = [nn.AvgPool2d(stride, ceil_mode=True)] if stride > 1 else []
        last = _normalisation(norm, outputs)
        nn.init.zeros_(last.weight)  # before training, the block computes only its shortcut
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
    """Make the stem of the compact trunk, which maps (B, 1, S, S) to (B, 2 * width, S / 4, S / 4).

    Args:
        width: number of channels of the first layer.
        norm: type of the normalisation layers, "batch" or "group".
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False),
        _normalisation(norm, width),
        nn.ReLU(inplace=True),
        Residual(width, 2 * width, 2, norm),
    )


def compact_parts(config: ModelConfig, dims: int) -> TrunkParts:
    """Return functions that make the parts of the compact trunk; see `trunks.trunk_parts`."""
    width, norm = config.width, config.norm
    hidden = (width, max(8, width // 4))

    def body() -> list[nn.Module]:
        return [
            Residual(2 * width, 4 * width, 2, norm),
            Residual(4 * width, 4 * width, 1, norm),
            Residual(4 * width, 8 * width, 2, norm),
            Residual(8 * width, 8 * width, 1, norm),
        ]

    def branch() -> nn.Sequential:
        layers = *body(), nn.AdaptiveAvgPool2d(4), nn.Flatten()  # features of a 4 x 4 grid depend on the position
        return nn.Sequential(*layers, nn.Dropout(config.dropout), nn.Linear(8 * width * 16, dims))

    return TrunkParts(
        stem=lambda: compact_stem(width, norm),
        texture=branch,
        minutia_stem=lambda: nn.Sequential(Residual(2 * width, 2 * width, 1, norm)),
        minutia_map=lambda side: MapDecoder(2 * width, hidden, side),
        minutia=branch,
        body=body,
        channels=8 * width,
        dense_map=lambda side: MapDecoder(4 * width, hidden, side),
        map_after=2,
    )
