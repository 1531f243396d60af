"""Enhance ridges with a bank of oriented Gabor filters for several ridge widths.

The method follows flx (fixed-length-fingerprint-extractors, an implementation of DeepPrint). The largest response of
the bank marks ridges. The largest response of the negated bank marks valleys. Pixels where both responses are small are
background.

Wide ridges need fewer pixels. For each ridge width, the image is first downsampled so that the ridge period is GRID
pixels, and the responses are upsampled again. The filters therefore stay small at every resolution. This takes a sixth
of the time of filtering at full resolution.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.preprocess.coarse import chunks, grow, local_means
from fingerprint_accel.random import steady, steady_mean

PERIOD = 0.0187  # usual distance between ridges in inches: 5.6 pixels at 300 ppi
ORIENTATIONS = 16
SCALES = (0.6, 1.0, 1 / 0.6)
GRID = 4.67  # ridge period of the downsampled image, pixels; bicubic resampling preserves waves of this length
REACH = 1.2  # half side of a filter, in ridge periods
LOSS = 1.08  # factor by which down- and upsampling damp a wave with a period of GRID pixels


class Enhancer(nn.Module):
    """Module that enhances ridges with a multi-scale Gabor filter bank (Hong, Wan and Jain 1998).

    Args:
        period: typical distance between neighbouring ridges, input pixels.
    """

    def __init__(self, period: float) -> None:
        super().__init__()
        self.rates = [min(1.0, GRID / (scale * period)) for scale in SCALES]
        for i, scale in enumerate(SCALES):
            gain = 1.0 if self.rates[i] == 1 else LOSS / self.rates[i]  # matches the response at full resolution
            bank = gain * gabor_bank(scale * period * self.rates[i])
            self.register_buffer(f"bank{i}", bank, persistent=False)
        self.cell = max(1, round(period / 2.8))

    def forward(self, ink: torch.Tensor) -> torch.Tensor:
        """Enhance the ridges of a batch of prints.

        Args:
            ink: (B, 1, S, S) in 0..1, ridges bright.

        Returns:
            (B, 1, S, S) in 0..1, ridges bright, valleys and background dark.
        """
        runs = chunks(ink.shape[0], 8 * ink.shape[-1] ** 2, ink.device)
        return torch.cat([self._enhanced(ink[rows]) for rows in runs])

    def _enhanced(self, ink: torch.Tensor) -> torch.Tensor:
        size = ink.shape[-1]
        ridge, valley = self._strongest(ink).split(1, dim=1)
        coarse = local_means(ridge + valley, self.cell, cells=3, rounds=2)
        usual = steady_mean(coarse)
        print_mask = grow(steady(torch.sigmoid, 8 * (coarse / (usual + 1e-3) - 0.6)), self.cell, size)
        slope = grow(6 / (coarse + 1e-2), self.cell, size)
        return steady(torch.sigmoid, (ridge - valley).mul_(slope)).mul_(print_mask)

    def _strongest(self, ink: torch.Tensor) -> torch.Tensor:
        """Return the largest response to ridges and the largest response to valleys over all filters, at each pixel.

        Args:
            ink: (B, 1, S, S) in 0..1, ridges bright.

        Returns:
            (B, 2, S, S), at least 0: ridges, then valleys.
        """
        size = ink.shape[-1]
        best = ink.new_zeros(ink.shape[0], 2, size, size)
        for i, rate in enumerate(self.rates):
            bank = self.get_buffer(f"bank{i}")
            picture = ink if rate == 1 else _resize(ink, math.ceil(rate * size))
            answers = _extremes(picture, bank)
            best = torch.maximum(best, answers if rate == 1 else _resize(answers, size))
        return best


def _extremes(picture: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Apply a filter bank, and return the largest response and the negated smallest response at each pixel.

    Args:
        picture: (B, 1, s, s) images.
        bank: (ORIENTATIONS, 1, K, K) filters.

    Returns:
        (B, 2, s, s).
    """
    side, taps = picture.shape[-1], bank.shape[-1]
    padded = F.pad(picture, (taps // 2,) * 4, mode="replicate")
    strips = []
    for rows in chunks(side, 24 * side, picture.device):  # strips fit into the CPU caches
        answer = F.conv2d(padded[:, :, rows.start : rows.stop + taps - 1], bank)  # (B, ORIENTATIONS, rows, s)
        strips.append(torch.stack([answer.amax(dim=1), -answer.amin(dim=1)], dim=1))
    return torch.cat(strips, dim=2)


def gabor_bank(period: float) -> torch.Tensor:
    """Return even Gabor filters of unit norm for one ridge period, one filter for each of ORIENTATIONS directions.

    Args:
        period: ridge period, pixels.

    Returns:
        (ORIENTATIONS, 1, K, K). The side K grows with the period.
    """
    half = max(1, int(period * REACH))
    axis = torch.arange(-half, half + 1, dtype=torch.float32)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    filters = []
    for k in range(ORIENTATIONS):
        angle = k * math.pi / ORIENTATIONS
        along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
        envelope = torch.exp(-0.5 * ((along / (0.7 * period)) ** 2 + (across / (0.45 * period)) ** 2))
        even = envelope * torch.cos(2 * math.pi * across / period)
        even = even - envelope * even.sum() / envelope.sum()  # zero mean: a constant image gives no response
        filters.append(even / even.square().sum().sqrt())
    return torch.stack(filters)[:, None]


def _resize(picture: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(picture, size=(size, size), mode="bicubic", antialias=True)


def enhance_canvas(image: np.ndarray, ppi: int) -> np.ndarray:
    """Enhance the ridges of one print before it is stored, so that they need not be enhanced during training.

    The function processes one print on one thread, so that the result does not depend on other prints.

    Args:
        image: (S, S) uint8 canvas (the square image on which the print is placed), ridges dark.
        ppi: resolution of the image, pixels per inch.

    Returns:
        (S, S) uint8, ridges dark.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            ink = (255 - torch.from_numpy(image.copy()))[None, None].float() / 255  # (1, 1, S, S)
            enhanced = _enhancer(ppi)(ink)[0, 0]
            return (255 * (1 - enhanced)).round().clamp(0, 255).byte().numpy()
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=4)
def _enhancer(ppi: int) -> Enhancer:
    return Enhancer(PERIOD * ppi).eval()
