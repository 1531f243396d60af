"""From the ridge signal to a master: its exact minutiae, what a finger has besides ridges, and all of it in one byte a
pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fingerprint_accel.random import normal, sample_keys, uniform
from fingerprint_accel.synthesis.geometry import HEIGHT, PIXELS_PER_MM, WIDTH, bell, frame, smooth_field
from fingerprint_accel.synthesis.orientation import make_pattern
from fingerprint_accel.synthesis.ridges import grow, period_field
from fingerprint_accel.synthesis.workers import each, join

CREASES = 4  # at most, per finger
CREASE, CREASE_COUNT, ROUGH, PORES, PORE_DEPTH, INCIPIENT, INCIPIENT_PLACE = range(40, 47)  # random streams
EDGE = 4  # pixels at the border of a master without minutiae: there the noise wraps around
UNIT = 120.0  # grey levels of a master from the middle of a slope to the top of a ridge
PAIR_MM, TWIN_MM = 0.55, 0.4  # a short break, a ridge end counted twice: closer than that nobody sees two minutiae


@dataclass(frozen=True)
class Minutiae:
    """Minutiae of N fingers, padded to the largest number M.

    Attributes:
        rows: (N, M, 3) x to the right and y up in mm, and the angle in radians, counter-clockwise from +x, towards the
            side with one ridge more (ISO/IEC 19794-2: along an ending ridge, into the fork of a bifurcation).
        count: (N,) int64, how many of the M are there.
    """

    rows: torch.Tensor
    count: torch.Tensor


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


def _corners(values: torch.Tensor) -> torch.Tensor:
    """(N, H, W) -> (4, N, H - 1, W - 1): the corners of every 2 x 2 cell, counter-clockwise with y up."""
    return torch.stack([values[:, 1:, :-1], values[:, 1:, 1:], values[:, :-1, 1:], values[:, :-1, :-1]])


def _windings(signal: torch.Tensor, normal_angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns of the phase around every cell (N, H - 1, W - 1), and its four corners with signs that agree.

    The direction of the ridges is known modulo pi only; where it points the other way the signal is conjugated. Cells
    in which no choice of signs fits (cores and deltas) count as 0.
    """
    cosines, sines = _corners(normal_angle.cos()), _corners(normal_angle.sin())
    signs = (cosines[0] * cosines + sines[0] * sines).sign()
    agree = (cosines[1:3] * cosines[2:] + sines[1:3] * sines[2:]) * signs[1:3] * signs[2:]
    fits = (agree > 0).all(dim=0)
    real, imaginary = _corners(signal.real), _corners(signal.imag) * signs
    next_real, next_imaginary = real.roll(-1, 0), imaginary.roll(-1, 0)
    left = real * next_imaginary - next_real * imaginary  # how often the polygon crosses the positive real axis
    up = (imaginary <= 0) & (next_imaginary > 0) & (left > 0)
    down = (imaginary > 0) & (next_imaginary <= 0) & (left < 0)
    return (up.sum(dim=0) - down.sum(dim=0)) * fits, torch.complex(real, imaginary)


def find_minutiae(signal: torch.Tensor, normal_angle: torch.Tensor) -> Minutiae:
    """Lists the zeros of an analytic signal.

    Around a zero the phase of the ridges winds once; there a ridge ends or forks (Larkin and Fletcher 2007, "A coherent
    framework for fingerprint analysis: are fingerprints holograms?", Optics Express 15(14)).

    Args:
        signal: (N, H, W) complex64, see `ridges.grow`.
        normal_angle: (N, H, W) radians, direction along which its phase grows.
    """
    winding, corners = _windings(signal, normal_angle)
    winding[:, :EDGE], winding[:, -EDGE:], winding[:, :, :EDGE], winding[:, :, -EDGE:] = 0, 0, 0, 0
    finger, row, column = winding.nonzero(as_tuple=True)
    sign = winding[finger, row, column]
    count = torch.bincount(finger, minlength=len(signal))
    lower_left, lower_right, upper_right, upper_left = corners[:, finger, row, column]
    # the zero of the plane through the corners: value = mean + slope_x * u + slope_y * v
    mean = (lower_left + lower_right + upper_right + upper_left) / 4
    slope_x = (lower_right + upper_right - lower_left - upper_left) / 2
    slope_y = (upper_left + upper_right - lower_left - lower_right) / 2
    determinant = slope_x.real * slope_y.imag - slope_x.imag * slope_y.real
    u = (-(mean.real * slope_y.imag - mean.imag * slope_y.real) / determinant).clamp(-0.5, 0.5)
    v = (-(slope_x.real * mean.imag - slope_x.imag * mean.real) / determinant).clamp(-0.5, 0.5)
    x = (column + 1 + u - WIDTH / 2) / PIXELS_PER_MM
    y = (HEIGHT / 2 - row - 1 + v) / PIXELS_PER_MM
    along = normal_angle[finger, row + 1, column] - sign * (math.pi / 2)
    slot = torch.arange(len(finger), device=finger.device) - (count.cumsum(0) - count)[finger]
    rows = torch.zeros(len(signal), max(1, int(count.max())), 3, device=signal.device)
    rows[finger, slot] = torch.stack([x, y, torch.remainder(along, 2 * math.pi)], dim=1)
    return Minutiae(rows, count)


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


def packed(rows: torch.Tensor, keep: torch.Tensor, most: int) -> torch.Tensor:
    """rows (N, M, K), keep (N, M) bool -> (N, most, K): those that are kept in front, zeros behind."""
    order = torch.argsort(~keep, dim=1, stable=True)[:, :most, None]
    return torch.take_along_dim(rows * keep[..., None], order, dim=1)
