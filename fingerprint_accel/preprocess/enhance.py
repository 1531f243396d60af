"""Ridge enhancement by a bank of oriented filters at several ridge widths, one convolution for the whole batch.

The idea is that of the flx project: the strongest answer of the bank marks ridges, the strongest answer of its negative
marks valleys, and where neither answers there is no print.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

ORIENTATIONS = 16
SCALES = (0.6, 1.0, 1 / 0.6)


class Enhancer(nn.Module):
    """Multi-scale Gabor ridge/valley filter bank (Gabor filters on prints: Hong, Wan and Jain 1998).

    Args:
        period: usual distance between ridges, pixels of the input.
    """

    bank: torch.Tensor

    def __init__(self, period: float) -> None:
        super().__init__()
        half = math.ceil(period * max(SCALES) * 1.2)
        axis = torch.arange(-half, half + 1, dtype=torch.float32)
        y, x = torch.meshgrid(-axis, axis, indexing="ij")
        filters = []
        for scale in SCALES:
            for k in range(ORIENTATIONS):
                angle = k * math.pi / ORIENTATIONS
                along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
                envelope = torch.exp(
                    -0.5 * ((along / (0.7 * scale * period)) ** 2 + (across / (0.45 * scale * period)) ** 2)
                )
                even = envelope * torch.cos(2 * math.pi * across / (scale * period))
                even = even - envelope * even.sum() / envelope.sum()  # blind to brightness
                filters.append(even / even.square().sum().sqrt())
        self.register_buffer("bank", torch.stack(filters)[:, None], persistent=False)
        self.cell = max(3, round(period)) | 1

    def forward(self, ink: torch.Tensor) -> torch.Tensor:
        """ink (B, 1, S, S) in 0..1 -> (B, 1, S, S) in 0..1: ridges bright, valleys and background dark."""
        half = self.bank.shape[-1] // 2
        padded = F.pad(ink, (half, half, half, half), mode="replicate")
        answer = F.conv2d(padded, self.bank)  # (B, 48, S, S)
        ridge = answer.amax(dim=1, keepdim=True).clamp_min(0)
        valley = (-answer.amin(dim=1, keepdim=True)).clamp_min(0)
        strength = _blur(ridge + valley, self.cell)
        usual = strength.mean(dim=(2, 3), keepdim=True)
        print_mask = torch.sigmoid(8 * (strength / (usual + 1e-3) - 0.6))
        return (0.5 + 0.5 * torch.tanh(3 * (ridge - valley) / (strength + 1e-2))) * print_mask


def _blur(values: torch.Tensor, cell: int) -> torch.Tensor:
    for _ in range(2):
        values = F.avg_pool2d(values, (1, cell), 1, (0, cell // 2), count_include_pad=False)
        values = F.avg_pool2d(values, (cell, 1), 1, (cell // 2, 0), count_include_pad=False)
    return values
