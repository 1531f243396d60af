"""Exact minutiae: the zeros of the analytic signal that the ridges are made of.

Around a zero the phase of the ridges winds once; there a ridge ends or forks (Larkin and Fletcher 2007, "A coherent
framework for fingerprint analysis: are fingerprints holograms?", Optics Express 15(14)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fingerprint_accel.synthesis.geometry import HEIGHT, PIXELS_PER_MM, WIDTH

EDGE = 4  # pixels at the border of a master in which none are looked for: there the noise wraps around


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


def _corners(values: torch.Tensor) -> list[torch.Tensor]:
    """(N, H, W) -> the four corners of every 2 x 2 cell, counter-clockwise with y up, each (N, H-1, W-1)."""
    return [values[:, 1:, :-1], values[:, 1:, 1:], values[:, :-1, 1:], values[:, :-1, :-1]]


def _winding(real: list[torch.Tensor], imaginary: list[torch.Tensor]) -> torch.Tensor:
    """Turns around 0 of the polygon through four complex numbers: how often it crosses the positive real axis."""
    turns = torch.zeros_like(real[0])
    for here in range(4):
        there = (here + 1) % 4
        left = real[here] * imaginary[there] - real[there] * imaginary[here]
        up = (imaginary[here] <= 0) & (imaginary[there] > 0) & (left > 0)
        down = (imaginary[here] > 0) & (imaginary[there] <= 0) & (left < 0)
        turns += up.to(turns.dtype) - down.to(turns.dtype)
    return turns


def _windings(signal: torch.Tensor, normal_angle: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Turns of the phase around every cell (N, H-1, W-1), and its four corners with signs that agree.

    The direction of the ridges is known modulo pi only; where it points the other way the signal is conjugated. Cells
    in which no choice of signs fits (cores and deltas) count as 0.
    """
    cosines, sines = _corners(normal_angle.cos()), _corners(normal_angle.sin())
    signs = [(cosines[0] * cosines[i] + sines[0] * sines[i]).sign() for i in range(4)]
    real = _corners(signal.real)
    imaginary = [part * sign for part, sign in zip(_corners(signal.imag), signs, strict=True)]
    fits = torch.ones_like(real[0], dtype=torch.bool)
    for here, there in ((1, 2), (2, 3)):
        agree = cosines[here] * cosines[there] + sines[here] * sines[there]
        fits &= agree * signs[here] * signs[there] > 0
    corners = [torch.complex(*parts) for parts in zip(real, imaginary, strict=True)]
    return _winding(real, imaginary) * fits, corners


def find_minutiae(signal: torch.Tensor, normal_angle: torch.Tensor) -> Minutiae:
    """Lists the zeros of an analytic signal.

    Args:
        signal: (N, H, W) complex64, see `ridges.grow`.
        normal_angle: (N, H, W) radians, direction along which its phase grows.
    """
    winding, corners = _windings(signal, normal_angle)
    winding[:, :EDGE], winding[:, -EDGE:], winding[:, :, :EDGE], winding[:, :, -EDGE:] = 0, 0, 0, 0
    finger, row, column = winding.nonzero(as_tuple=True)
    sign = winding[finger, row, column]
    count = torch.bincount(finger, minlength=len(signal))
    lower_left, lower_right, upper_right, upper_left = (corner[finger, row, column] for corner in corners)
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


def packed(rows: torch.Tensor, keep: torch.Tensor, most: int) -> torch.Tensor:
    """rows (N, M, K), keep (N, M) bool -> (N, most, K): those that are kept in front, zeros behind."""
    order = torch.argsort(~keep, dim=1, stable=True)[:, :most, None]
    return torch.take_along_dim(rows * keep[..., None], order, dim=1)
