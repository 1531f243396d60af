"""How DeepPrint is trained without this package: one print after the other, on the CPU, in worker processes.

Our own plain implementation of the way of the flx project (fixed-length-fingerprint-extractors), to have something to
compare with on the same machine. Nothing of it is used in training.
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
SIDE = 5  # of a filter, ridge widths
BLUR_KERNEL = 7 * 5  # pixels
BLUR_SIGMA = 0.6 * BLUR_KERNEL
PRINT_THRESHOLD = 0.1  # of blurred ridges and valleys: below it there is no print
CONTRAST = 2.0
RIDGE_THRESHOLD = 0.1
FAINTEST = 1e-3  # a strongest answer below this, in grey range, is rounding and is not stretched
MAP_CHANNELS = 6
MAP_WINDOW = 2.0  # standard deviations to either side
MAP_SPREAD = math.pi / MAP_CHANNELS  # radians


class Pose(NamedTuple):
    """canvas = centre + scale * R(angle) @ (input - its centre) + shift; angle in radians, shift in canvas pixels."""

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
        """Adds what runs inside to `name`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def ridge_bank(ridge_width: float) -> torch.Tensor:
    """(16, 1, side, side) float32: rotated sine waves times a Gaussian, sums 0, sums of magnitudes 2.

    The side is five ridge widths, rounded to an odd number. A filter answers a bright line one ridge width wide along
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
        wave = wave - envelope * (wave.sum() / envelope.sum())  # blind to brightness
        filters.append(2 * wave / wave.abs().sum())
    return torch.stack(filters)[:, None]


BANKS = [ridge_bank(scale * RIDGE_WIDTH) for scale in SCALES]


def strongest_answer(image: torch.Tensor) -> torch.Tensor:
    """image (H, W) in 0..1, lines bright -> (H, W) in 0..1: the strongest answer of the three banks, then stretched."""
    best = torch.zeros_like(image)
    for bank in BANKS:
        half = bank.shape[-1] // 2
        answer = F.conv2d(image[None, None], bank)[0].amax(dim=0)
        best = torch.maximum(best, F.pad(answer, (half, half, half, half)))
    strongest = float(best.max())
    return best / strongest if strongest > FAINTEST else torch.zeros_like(image)


def ridges_and_valleys(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """grey (H, W) in 0..1, ridges dark -> ridges and valleys, (H, W) in 0..1 each."""
    return strongest_answer(1 - grey), strongest_answer(grey)


def enhance(ridges: torch.Tensor, valleys: torch.Tensor) -> torch.Tensor:
    """(H, W) in 0..1: ridges against valleys where there is a print, 0 elsewhere."""
    blurred = gaussian_blur((ridges + valleys)[None], [BLUR_KERNEL, BLUR_KERNEL], [BLUR_SIGMA, BLUR_SIGMA])[0]
    contrast = (CONTRAST * (ridges - valleys)).clamp(0, 1)
    return torch.where((blurred > PRINT_THRESHOLD) & (contrast > RIDGE_THRESHOLD), contrast, 0.0)


def draw_pose(config: PreprocessConfig, generator: np.random.Generator) -> Pose:
    """A random pose with the amplitudes of our augmentation."""
    augment = config.augment
    angle = math.radians(generator.uniform(-augment.rotation_degrees, augment.rotation_degrees))
    scale = math.exp(generator.uniform(-1, 1) * math.log1p(augment.scale))
    return Pose(angle, scale, *generator.uniform(-augment.translation, augment.translation, 2).tolist())


def resample_one(image: torch.Tensor, pose: Pose, crop: int, size: int) -> torch.Tensor:
    """image (H, W) -> (size, size): the posed central `crop` pixels, bilinear."""
    canvas = image.shape[-1]
    cos, sin = math.cos(pose.angle) * pose.scale, math.sin(pose.angle) * pose.scale
    theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]) * (crop / canvas)
    theta[:, 2] = torch.tensor([pose.shift_x, pose.shift_y]) * (2 / canvas)
    grid = F.affine_grid(theta[None], [1, 1, size, size], align_corners=False)
    return F.grid_sample(image[None, None], grid, mode="bilinear", align_corners=False)[0, 0]


def move_minutiae(minutiae: np.ndarray, pose: Pose, canvas: int, crop: int, size: int) -> np.ndarray:
    """minutiae (n, 4) on the canvas -> on the posed input of `size` pixels."""
    moved = minutiae.copy()
    x = minutiae[:, 0] - canvas / 2 - pose.shift_x
    y = minutiae[:, 1] - canvas / 2 - pose.shift_y
    cos, sin = math.cos(pose.angle) / pose.scale, math.sin(pose.angle) / pose.scale
    moved[:, 0] = (cos * x + sin * y + crop / 2) * size / crop
    moved[:, 1] = (-sin * x + cos * y + crop / 2) * size / crop
    moved[:, 2] = minutiae[:, 2] + pose.angle  # y points down, angles count with y up
    return moved


def minutia_map(minutiae: np.ndarray, size: int, map_size: int = 128, sigma: float = 1.5) -> np.ndarray:
    """(6, map_size, map_size) float32 in 0..1, drawn one minutia and one channel after the other.

    Args:
        minutiae: (n, 4) x, y in input pixels (the centre of the first is 0.5), angle in radians, quality.
        size: side of the input, pixels.
        map_size: side of the map.
        sigma: of a minutia's spot, map pixels; nothing is drawn beyond two of them to either side.
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
    """Prints as PNG files, prepared one at a time.

    Args:
        paths: of the files.
        labels: (N,) int64 class label of each.
        minutiae: (n, 4) of each, canvas pixels.
        config: crop, size, amplitudes and map.
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
        """(1, S, S) image, label, (6, M, M) minutia map, and whether the print has minutiae."""
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
