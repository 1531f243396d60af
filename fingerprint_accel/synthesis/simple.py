"""Simple ridge-like prints, enough to try the framework without any data.

Ridges grow from noise under iterated oriented band-pass filters that follow an orientation field with loops and deltas
(Sherlock and Monro 1993; Cappelli et al. 2002). Each impression is the same ridge pattern under another pose, contact
area, pressure and noise.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.shards import Record, ShardWriter

SIDE = 256  # of the ridge pattern, pixels at 300 ppi
PERIOD = 5.6  # of the ridges, pixels at 300 ppi: 0.47 mm
ORIENTATIONS = 16


def _smooth_noise(count: int, cells: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 1, side, side) smooth noise of about unit variance, with `cells` control points along each side."""
    coarse = torch.randn(count, 1, cells, cells, generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)


def orientation_fields(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, SIDE, SIDE) ridge orientation, radians, counter-clockwise from +x with y up: arches, loops and whorls."""
    axis = (torch.arange(SIDE) - SIDE / 2 + 0.5) / SIDE
    y, x = torch.meshgrid(-axis, axis, indexing="ij")

    def uniform(low: float, high: float) -> torch.Tensor:
        return (low + (high - low) * torch.rand(count, 1, 1, generator=generator)).expand(count, 1, 1)

    def turn(centre_x: torch.Tensor, centre_y: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.atan2(y - centre_y, x - centre_x)

    side = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    core_x, core_y = uniform(-0.06, 0.06), uniform(-0.02, 0.12)
    loop = turn(core_x, core_y) - turn(side * uniform(0.2, 0.35), uniform(-0.4, -0.25))
    second_core = turn(core_x + uniform(-0.03, 0.03), core_y - uniform(0.1, 0.25))
    whorl = loop + second_core - turn(-side * uniform(0.2, 0.35), uniform(-0.4, -0.25))
    arch = uniform(0.4, 1.0) * torch.sin(math.pi * x / 0.5) * torch.exp(-(((y + 0.1) / 0.3) ** 2)) * -1.0
    kind = uniform(0, 1)
    field = torch.where(kind < 0.6, loop, torch.where(kind < 0.9, whorl, arch))
    return field + 0.12 * _smooth_noise(count, 5, SIDE, generator)[:, 0]


def _filter_bank() -> torch.Tensor:
    """(ORIENTATIONS, 1, 13, 13) even Gabor filters for ridges that run along orientation k * pi / ORIENTATIONS."""
    axis = torch.arange(-6, 7, dtype=torch.float32)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    filters = []
    for k in range(ORIENTATIONS):
        angle = k * math.pi / ORIENTATIONS
        across = -x * math.sin(angle) + y * math.cos(angle)
        envelope = torch.exp(-(x**2 + y**2) / (2 * 2.6**2))
        even = envelope * torch.cos(2 * math.pi * across / PERIOD)
        even = even - envelope * even.sum() / envelope.sum()
        filters.append(even / even.abs().sum())
    return torch.stack(filters)[:, None]


@torch.no_grad()
def ridge_patterns(fields: torch.Tensor, generator: torch.Generator, rounds: int = 14) -> torch.Tensor:
    """fields (N, SIDE, SIDE) -> (N, 1, SIDE, SIDE) ridge patterns in -1 (valley) to 1 (ridge)."""
    bank = _filter_bank()
    position = (fields / (math.pi / ORIENTATIONS)) % ORIENTATIONS
    below = position.floor().long() % ORIENTATIONS
    share = (position - position.floor())[:, None]
    pattern = torch.randn(len(fields), 1, SIDE, SIDE, generator=generator)
    for _ in range(rounds):
        responses = F.conv2d(F.pad(pattern, (6, 6, 6, 6), mode="reflect"), bank)
        low = responses.gather(1, below[:, None])
        high = responses.gather(1, ((below + 1) % ORIENTATIONS)[:, None])
        pattern = torch.tanh(8 * ((1 - share) * low + share * high))
    return pattern


@torch.no_grad()
def impressions(patterns: torch.Tensor, canvas: int, generator: torch.Generator) -> torch.Tensor:
    """patterns (N, 1, SIDE, SIDE) -> (N, canvas, canvas) uint8, one new impression of each, ridges dark."""
    count = len(patterns)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    axis = torch.arange(canvas) - canvas / 2 + 0.5
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = grid_x[None, None], grid_y[None, None]
    centre_x, centre_y = uniform(-12, 12), uniform(-12, 12)
    inside = 1 - ((x - centre_x) / uniform(75, 100)) ** 2 - ((y - centre_y) / uniform(95, 125)) ** 2
    contact = torch.sigmoid(8 * (inside + 0.12 * _smooth_noise(count, 12, canvas, generator)))
    angle, shift_x, shift_y = uniform(-0.25, 0.25), uniform(-10, 10), uniform(-10, 10)
    x, y = x + shift_x, y + shift_y
    x, y = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
    x = x + 2.0 * _smooth_noise(count, 5, canvas, generator)
    y = y + 2.0 * _smooth_noise(count, 5, canvas, generator)
    grid = torch.stack([x, y], dim=-1)[:, 0] * (2 / SIDE)
    ridges = F.grid_sample(patterns, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    pressure = uniform(-0.35, 0.35) + 0.2 * _smooth_noise(count, 6, canvas, generator)
    ink = torch.sigmoid(5 * (ridges + pressure)) * contact
    grey = 235 - uniform(140, 210) * ink + 10 * torch.randn(count, 1, canvas, canvas, generator=generator)
    return grey.round().clamp(0, 255).to(torch.uint8)[:, 0]


def write_simple_dataset(
    out: Path, fingers: int, impressions_per_finger: int, seed: int = 0, canvas: int = 320, progress: bool = True
) -> None:
    """Writes a dataset folder of ridge-like prints at 300 ppi.

    Args:
        out: folder to make.
        fingers, impressions_per_finger: size of the dataset.
        seed: same seed, same prints.
        canvas: side of a print, pixels.
        progress: shows a progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    order = permutation(fingers * impressions_per_finger, seed, epoch=0)
    prints = np.empty((len(order), canvas, canvas), np.uint8)
    chunk = 16
    with tqdm(total=len(order), desc="making prints", unit="print", disable=not progress) as bar:
        for start in range(0, fingers, chunk):
            here = min(chunk, fingers - start)
            patterns = ridge_patterns(orientation_fields(here, generator), generator)
            for impression in range(impressions_per_finger):
                rows = (start + np.arange(here)) * impressions_per_finger + impression
                prints[rows] = impressions(patterns, canvas, generator).numpy()
                bar.update(here)
    with ShardWriter(out, ppi=300, canvas=canvas) as writer:
        for row in order.tolist():
            finger, impression = divmod(row, impressions_per_finger)
            writer.add(Record(prints[row], f"{finger:06d}", impression, "simple", np.empty((0, 4), np.float32)))
