"""The aligning network in front of the `Loc` variants (Jaderberg et al. 2015; Engelsma, Cao and Jain 2019)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.models.backbones import Residual, compact_stem


class Localization(nn.Module):
    """Predicts one rotation and shift per print and resamples the print accordingly.

    Starts as the identity. Bounds keep it from turning prints out of the picture early in training.

    Args:
        max_degrees: largest rotation to either side.
        max_translation: largest shift along each axis, as a share of the side.
        plain: without bounds, and without activations after the convolutions, as in flx.
    """

    SIDE = 128

    def __init__(self, max_degrees: float, max_translation: float, plain: bool = False) -> None:
        super().__init__()
        self.max_angle, self.max_shift, self.plain = math.radians(max_degrees), 2 * max_translation, plain
        layers: list[nn.Module] = []
        channels = [1, 24, 32, 48, 64]
        for depth in range(4):
            size = 5 if depth == 0 else 3
            layers += [
                nn.Conv2d(channels[depth], channels[depth + 1], size, padding=size // 2),
                nn.MaxPool2d(2),
                *([] if plain else [nn.ReLU(inplace=True)]),
            ]
        self.localization = nn.Sequential(*layers)
        self.fc_loc = _regression(64 * (self.SIDE // 16) ** 2, 64)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 1, S, S) -> (B, F)."""
        small = F.interpolate(image, size=(self.SIDE, self.SIDE), mode="bilinear", antialias=self.plain)
        return self.localization(small).flatten(1)

    def transform(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 1, S, S) -> (B, 3): rotation in radians, shift along x and y in half sides."""
        raw = self.fc_loc(self.features(image)).float()
        if self.plain:
            return raw
        raw = torch.tanh(raw)
        return torch.cat([raw[:, :1] * self.max_angle, raw[:, 1:] * self.max_shift], dim=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 1, S, S) -> the same, aligned."""
        angle, shift_x, shift_y = self.transform(image).unbind(1)
        with torch.autocast(image.device.type, enabled=False):
            rows = [
                torch.stack([angle.cos(), -angle.sin(), shift_x], dim=1),
                torch.stack([angle.sin(), angle.cos(), shift_y], dim=1),
            ]
            grid = F.affine_grid(torch.stack(rows, dim=1), list(image.shape), align_corners=False)
            mode = "bilinear" if self.plain else "bicubic"  # ridges are three pixels wide: bilinear would blur them
            return F.grid_sample(image.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)


class CompactLocalization(Localization):
    """The aligning network of the compact trunk: a small residual network on the whole input, at most 160 pixels wide.

    Args:
        max_degrees: largest rotation to either side.
        max_translation: largest shift along each axis, as a share of the side.
        norm: "batch" or "group".
    """

    WIDTH, SIDE = 24, 160

    def __init__(self, max_degrees: float, max_translation: float, norm: str) -> None:
        super().__init__(max_degrees, max_translation)
        width = self.WIDTH
        self.localization = nn.Sequential(
            compact_stem(width, norm),
            Residual(2 * width, 64, 2, norm),
            Residual(64, 96, 2, norm),
            nn.AdaptiveAvgPool2d(6),
        )
        self.fc_loc = _regression(96 * 36, 128)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 1, S, S) -> (B, F)."""
        if image.shape[-1] > self.SIDE:
            image = F.interpolate(image, size=(self.SIDE, self.SIDE), mode="bilinear", antialias=True)
        return self.localization(image).flatten(1)


def _regression(inputs: int, hidden: int) -> nn.Sequential:
    """(B, inputs) -> (B, 3), at first 0."""
    last = nn.Linear(hidden, 3)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), last)
