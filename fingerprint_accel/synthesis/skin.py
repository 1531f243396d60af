"""From the ridge signal to a master: what a finger has besides its ridges, and all of it in one byte a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fingerprint_accel.random import normal, sample_keys, uniform
from fingerprint_accel.synthesis.geometry import HEIGHT, PIXELS_PER_MM, WIDTH, bell, frame, smooth_field
from fingerprint_accel.synthesis.minutiae import Minutiae, find_minutiae, packed
from fingerprint_accel.synthesis.orientation import make_pattern
from fingerprint_accel.synthesis.ridges import grow, period_field
from fingerprint_accel.synthesis.workers import each, join

CREASES = 4  # at most, per finger
CREASE, CREASE_COUNT, ROUGH, PORES, PORE_DEPTH, INCIPIENT, INCIPIENT_PLACE = range(40, 47)  # random streams
UNIT = 120.0  # grey levels of a master from the middle of a slope to the top of a ridge
PAIR_MM, TWIN_MM = 0.55, 0.4  # a short break, a ridge end counted twice: closer than that nobody sees two minutiae


@dataclass(frozen=True)
class Masters:
    """Fingers, ready to leave impressions.

    Attributes:
        ridges: (N, H, W) uint8, height of the skin: 7 in a valley, 247 on a ridge; in the frame of `geometry`.
        minutiae: what a person would mark; those under a crease are left out.
        kind: (N,) int64, index into `orientation.CLASSES`.
        size: (N,) relative size of the finger.
    """

    ridges: torch.Tensor
    minutiae: Minutiae
    kind: torch.Tensor
    size: torch.Tensor

    def __len__(self) -> int:
        return len(self.ridges)

    def __getitem__(self, fingers: slice | torch.Tensor) -> Masters:
        """Some of them; views for a slice, copies for (B,) indices."""
        minutiae = Minutiae(self.minutiae.rows[fingers], self.minutiae.count[fingers])
        return Masters(self.ridges[fingers], minutiae, self.kind[fingers], self.size[fingers])


def finger_keys(seed: int, fingers: torch.Tensor) -> torch.Tensor:
    """fingers (N,) int64 -> (N,) int64 key of each: all that a finger depends on."""
    return sample_keys(seed, torch.full_like(fingers, -1), fingers)


def finger_name(seed: int, number: int, siblings: int = 1) -> str:
    """Under which a finger is stored: the same name, the same finger. Names sort like numbers.

    The first of a family is the finger that the number means alone; the others say whose siblings they are.
    """
    return f"synthetic-{seed}-{number:06d}" + (f"s{siblings}" if number % siblings else "")


def make_masters(seed: int, fingers: torch.Tensor, siblings: int = 1) -> Masters:
    """fingers (N,) int64 numbers -> their masters, on the same device.

    A GPU makes them together; on a CPU each has the same bits in any batch.

    Args:
        seed: with the number it decides all about a finger.
        fingers: the numbers.
        siblings: of so many numbers in a row, all have the class, ridge flow, ridge period and creases of the first.
    """
    both = torch.stack([finger_keys(seed, fingers), finger_keys(seed, fingers // siblings * siblings)], dim=1)
    if fingers.device.type == "cpu":
        return join(each(_make, both.split(1)))
    return _make(both)


@torch.no_grad()
def _make(both: torch.Tensor) -> Masters:
    keys, flow = both.unbind(1)
    pattern = make_pattern(flow)
    period = period_field(flow, pattern)
    signal = grow(keys, pattern, period)
    magnitude = signal.abs().square()
    height = signal.real * torch.rsqrt(magnitude + 0.02 * magnitude.mean(dim=(1, 2), keepdim=True))
    height = _with_incipient_ridges(flow, height)
    height = height - _pores(keys, height)
    crease = _creases(flow)
    height = torch.lerp(height, torch.full_like(height, -1.0), crease)
    minutiae = _seen(find_minutiae(signal, pattern.field + math.pi / 2), crease)
    ridges = (127.0 + UNIT * height).round().clamp(0, 255).to(torch.uint8)
    return Masters(ridges, minutiae, pattern.kind, pattern.size)


def _pores(keys: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
    """(N, H, W): how much sweat pores take from the ridges."""
    depth = uniform(keys, PORE_DEPTH, 1, 0.0, 0.9)[:, :, None]
    there = uniform(keys, PORES, HEIGHT * WIDTH).view_as(height) > 0.955
    return depth * there * (height - 0.5).clamp_min(0) * 2


def _with_incipient_ridges(keys: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
    """Thin, broken ridges in the valleys of some places on some fingers."""
    draw = uniform(keys, INCIPIENT, 2)[:, :, None]
    strength = 1.1 * (draw[:, :1] > 0.8) * (0.4 + 0.6 * draw[:, 1:])
    place = smooth_field(normal(keys, INCIPIENT_PLACE, 99).view(-1, 11, 9), HEIGHT, WIDTH)
    broken = smooth_field(normal(keys, INCIPIENT_PLACE + 100, 100 * 80).view(-1, 100, 80), HEIGHT, WIDTH)
    local = strength * torch.sigmoid(6 * (place - 0.3)) * torch.sigmoid(6 * (broken + 0.1))
    return height + local * ((-height - 0.75) * 4).clamp(0, 1)


def _creases(keys: torch.Tensor) -> torch.Tensor:
    """(N, H, W) in 0..1: folds of the skin, most of them across the finger."""
    x, y = frame(keys.device)
    number = uniform(keys, CREASE_COUNT, 1)[:, 0]
    rough = 0.16 * smooth_field(normal(keys, ROUGH, 64 * 52).view(-1, 64, 52), HEIGHT, WIDTH)
    total = torch.zeros(len(keys), HEIGHT, WIDTH, device=keys.device)
    for line in range(CREASES):
        draw = uniform(keys, CREASE * 1000 + line, 7)[:, :, None, None]
        there = (number > (0.45, 0.7, 0.85, 0.94)[line]).view(-1, 1, 1)
        angle = math.radians(70) * (2 * draw[:, 0] - 1) * draw[:, 1]
        from_x, from_y = x - (14 * draw[:, 2] - 7), y - (18 * draw[:, 3] - 9)
        along = from_x * angle.cos() + from_y * angle.sin()
        across = from_y * angle.cos() - from_x * angle.sin() + 0.02 * (draw[:, 4] - 0.5) * along.square() + rough
        half, width = 1.5 + 5 * draw[:, 5], 0.10 + 0.26 * draw[:, 6].square()
        fold = bell(across / width) * torch.sigmoid((half - along.abs()) / 0.4)
        total = torch.maximum(total, there * fold * (0.55 + 0.45 * draw[:, 1]))
    return total


def _seen(minutiae: Minutiae, crease: torch.Tensor) -> Minutiae:
    """Drops what a person would not mark: minutiae in a crease, short breaks, and one of two that coincide."""
    position, (x, y, direction) = minutiae.rows[..., :2], minutiae.rows.unbind(-1)
    there = torch.arange(x.shape[1], device=x.device) < minutiae.count[:, None]
    column = (x * PIXELS_PER_MM + WIDTH / 2).long().clamp(0, WIDTH - 1)
    row = (HEIGHT / 2 - y * PIXELS_PER_MM).long().clamp(0, HEIGHT - 1)
    finger = torch.arange(len(x), device=x.device)[:, None]
    keep = there & (crease[finger, row, column] < 0.4)
    distance = (position[:, :, None] - position[:, None]).square().sum(-1)  # (N, M, M)
    alike = torch.cos(direction[:, :, None] - direction[:, None])
    both = there[:, :, None] & there[:, None] & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    broken = both & (distance < PAIR_MM**2) & (alike < -0.5)
    twin = (both & (distance < TWIN_MM**2) & (alike > 0.5)).tril()
    keep &= ~broken.any(dim=2) & ~twin.any(dim=2)
    count = keep.sum(dim=1)
    return Minutiae(packed(minutiae.rows, keep, max(1, int(count.max()))), count)
