"""Train DeepPrint without this package: one print after the other, on the CPU, in worker processes.

This is a plain implementation of the way of flx (fixed-length-fingerprint-extractors), for comparison on the same
machine. Training does not use it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.functional import gaussian_blur

from fingerprint_accel.config import PreprocessConfig

RIDGE_WIDTH = 5.0  # pixels: half a ridge period
SCALES = (0.6, 1.0, 1 / 0.6)
ORIENTATIONS = 16
SIDE = 5  # side of a filter, ridge widths
BLUR_KERNEL = 7 * 5  # pixels
BLUR_SIGMA = 0.6 * BLUR_KERNEL
PRINT_THRESHOLD = 0.1  # least value of blurred ridges and valleys inside the print
CONTRAST = 2.0
RIDGE_THRESHOLD = 0.1
FAINTEST = 1e-3  # weaker responses, as a share of the grey range, are rounding errors and are not stretched
MAP_CHANNELS = 6
MAP_WINDOW = 2.0  # standard deviations to either side
MAP_SPREAD = math.pi / MAP_CHANNELS  # radians


class Pose(NamedTuple):
    """A pose: canvas = centre + scale * R(angle) @ (input - its centre) + shift, in radians and canvas pixels."""

    angle: float
    scale: float
    shift_x: float
    shift_y: float


class Clock:
    """Seconds by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the duration of the block to the part `name`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def ridge_bank(ridge_width: float) -> torch.Tensor:
    """Return filters (16, 1, side, side) float32: rotated sine waves times a Gaussian.

    The sum of each filter is 0, and the sum of its magnitudes is 2.

    The side is five ridge widths, rounded to an odd number. A filter responds to a bright line of one ridge width along
    its direction.
    """
    half = round((SIDE * ridge_width - 1) / 2)
    axis = torch.arange(-half, half + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    envelope = torch.exp(-(x.square() + y.square()) / (2 * ridge_width**2))
    filters = []
    for k in range(ORIENTATIONS):
        angle = k * math.pi / ORIENTATIONS
        across = y * math.cos(angle) - x * math.sin(angle)
        wave = envelope * torch.sin(math.pi * across / ridge_width + math.pi / 2)
        wave = wave - envelope * (wave.sum() / envelope.sum())  # no response to brightness
        filters.append(2 * wave / wave.abs().sum())
    return torch.stack(filters)[:, None]


BANKS = [ridge_bank(scale * RIDGE_WIDTH) for scale in SCALES]


def strongest_answer(image: torch.Tensor) -> torch.Tensor:
    """Return the strongest response of the three filter banks to bright lines: (H, W) to (H, W) in 0..1."""
    best = torch.zeros_like(image)
    for bank in BANKS:
        half = bank.shape[-1] // 2
        answer = F.conv2d(image[None, None], bank)[0].amax(dim=0)
        best = torch.maximum(best, F.pad(answer, (half, half, half, half)))
    strongest = float(best.max())
    return best / strongest if strongest > FAINTEST else torch.zeros_like(image)


def ridges_and_valleys(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ridges and valleys, (H, W) in 0..1 each, of grey (H, W) in 0..1 with dark ridges."""
    return strongest_answer(1 - grey), strongest_answer(grey)


def enhance(ridges: torch.Tensor, valleys: torch.Tensor) -> torch.Tensor:
    """Return ridges against valleys (H, W) in 0..1 inside the print, and 0 elsewhere."""
    blurred = gaussian_blur((ridges + valleys)[None], [BLUR_KERNEL, BLUR_KERNEL], [BLUR_SIGMA, BLUR_SIGMA])[0]
    contrast = (CONTRAST * (ridges - valleys)).clamp(0, 1)
    return torch.where((blurred > PRINT_THRESHOLD) & (contrast > RIDGE_THRESHOLD), contrast, 0.0)


def draw_pose(config: PreprocessConfig, generator: np.random.Generator) -> Pose:
    """Draw a random pose with the amplitudes of our augmentation."""
    augment = config.augment
    angle = math.radians(generator.uniform(-augment.rotation_degrees, augment.rotation_degrees))
    scale = math.exp(generator.uniform(-1, 1) * math.log1p(augment.scale))
    return Pose(angle, scale, *generator.uniform(-augment.translation, augment.translation, 2).tolist())


def resample_one(image: torch.Tensor, pose: Pose, crop: int, size: int) -> torch.Tensor:
    """Resample the posed central `crop` pixels of an image (H, W) to (size, size), bilinear."""
    canvas = image.shape[-1]
    cos, sin = math.cos(pose.angle) * pose.scale, math.sin(pose.angle) * pose.scale
    theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]) * (crop / canvas)
    theta[:, 2] = torch.tensor([pose.shift_x, pose.shift_y]) * (2 / canvas)
    grid = F.affine_grid(theta[None], [1, 1, size, size], align_corners=False)
    return F.grid_sample(image[None, None], grid, mode="bilinear", align_corners=False)[0, 0]


def move_minutiae(minutiae: np.ndarray, pose: Pose, canvas: int, crop: int, size: int) -> np.ndarray:
    """Move minutiae (n, 4) from the canvas to the posed input of `size` pixels."""
    moved = minutiae.copy()
    x = minutiae[:, 0] - canvas / 2 - pose.shift_x
    y = minutiae[:, 1] - canvas / 2 - pose.shift_y
    cos, sin = math.cos(pose.angle) / pose.scale, math.sin(pose.angle) / pose.scale
    moved[:, 0] = (cos * x + sin * y + crop / 2) * size / crop
    moved[:, 1] = (-sin * x + cos * y + crop / 2) * size / crop
    moved[:, 2] = minutiae[:, 2] + pose.angle  # y points down, angles count with y up
    return moved


def minutia_map(minutiae: np.ndarray, size: int, map_size: int = 128, sigma: float = 1.5) -> np.ndarray:
    """Draw a minutia map (6, map_size, map_size) float32 in 0..1, one minutia and one channel after the other.

    Args:
        minutiae: (n, 4) x, y in input pixels (the centre of the first pixel is 0.5), angle in radians, quality.
        size: Side of the input, pixels.
        map_size: Side of the map.
        sigma: Standard deviation of a minutia's spot, map pixels. Spots end at two standard deviations.
    """
    drawn = np.zeros((MAP_CHANNELS, map_size, map_size), np.float32)
    window = math.ceil(MAP_WINDOW * sigma)
    for x, y, angle in minutiae[:, :3] * (map_size / size, map_size / size, 1):
        left, top = max(0, math.floor(x) - window), max(0, math.floor(y) - window)
        right, bottom = min(map_size, math.floor(x) + window + 1), min(map_size, math.floor(y) + window + 1)
        if right <= left or bottom <= top:
            continue
        columns, rows = np.arange(left, right) + 0.5 - x, np.arange(top, bottom) + 0.5 - y
        spot = np.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * sigma**2))
        for channel in range(MAP_CHANNELS):
            turn = abs((angle - channel * 2 * math.pi / MAP_CHANNELS + math.pi) % (2 * math.pi) - math.pi)
            drawn[channel, top:bottom, left:right] += math.exp(-turn / (2 * MAP_SPREAD**2)) * spot
    return np.clip(drawn, 0, 1)


class PrintFiles(Dataset):
    """A dataset of PNG files that are prepared one at a time.

    Args:
        paths: The files.
        labels: (N,) int64 class label of each.
        minutiae: (n, 4) minutiae of each, canvas pixels.
        config: Crop, size, amplitudes and map.
    """

    def __init__(
        self, paths: list[Path], labels: np.ndarray, minutiae: list[np.ndarray], config: PreprocessConfig
    ) -> None:
        self.paths, self.labels, self.minutiae, self.config = paths, labels, minutiae, config

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, torch.Tensor, bool]:
        return self.prepare(index, Clock())

    def prepare(self, index: int, clock: Clock) -> tuple[torch.Tensor, int, torch.Tensor, bool]:
        """Return image (1, S, S), label, minutia map (6, M, M), and whether the print has minutiae."""
        config = self.config
        with clock.part("decode"):
            grey = torch.from_numpy(np.array(Image.open(self.paths[index]))).float() / 255
        with clock.part("ridge filter bank"):
            ridges, valleys = ridges_and_valleys(grey)
        with clock.part("segment"):
            enhanced = enhance(ridges, valleys)
        with clock.part("pose"):
            pose = draw_pose(config, np.random.default_rng(int(torch.randint(2**62, ()))))
            image = resample_one(enhanced, pose, config.crop, config.size)
        with clock.part("minutia map"):
            moved = move_minutiae(self.minutiae[index], pose, grey.shape[-1], config.crop, config.size)
            drawn = minutia_map(moved, config.size)
        return image[None], int(self.labels[index]), torch.from_numpy(drawn), len(moved) > 0
