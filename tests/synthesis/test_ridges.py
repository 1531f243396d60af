"""The steered filter filters as it should, and ridges have the direction and period that were asked for."""

import math

import pytest
import torch

from fingerprint_accel.synthesis.geometry import HEIGHT, PIXELS_PER_MM, WIDTH, frame, smooth_field
from fingerprint_accel.synthesis.orientation import make_pattern
from fingerprint_accel.synthesis.ridges import ANGULAR_WIDTH, RADIAL_WIDTH, RidgeFilter, grow, period_field
from fingerprint_accel.synthesis.skin import finger_keys, make_masters


def wave(cycles_right, cycles_down):
    """A plane wave that fits the frame of a master: (1, H, W), its period in mm and the direction of its normal."""
    row, column = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)[None]
    phase = 2 * math.pi * (cycles_right * column / WIDTH + cycles_down * row / HEIGHT)
    right, down = cycles_right / WIDTH, cycles_down / HEIGHT
    return torch.cos(phase)[None], 1 / math.hypot(right, down) / PIXELS_PER_MM, math.atan2(-down, right)


@pytest.mark.parametrize("off_angle", [0.0, 0.3, 0.6, math.pi / 2])
@pytest.mark.parametrize("off_period", [1.0, 1.25])
def test_gain_of_the_filter(off_angle, off_period):
    """A Gaussian in the angle times a Gaussian in the logarithm of the frequency."""
    ridges, period, normal_angle = wave(40, 35)
    field = torch.full((1, HEIGHT, WIDTH), normal_angle - math.pi / 2 + off_angle)
    wanted = torch.full((1, HEIGHT, WIDTH), period * off_period)
    wanted[:, :8] *= 1.0001  # two bands must differ
    bank = RidgeFilter(field, wanted)
    bells = [math.exp(-((off_angle + turn) ** 2) / (2 * ANGULAR_WIDTH**2)) for turn in (-math.pi, 0.0, math.pi)]
    peak = 0.5 * math.pi / (math.sqrt(2 * math.pi) * ANGULAR_WIDTH)  # the sum of the weights of all parts
    expected = sum(bells) * peak * math.exp(-(math.log(off_period) ** 2) / (2 * RADIAL_WIDTH**2))
    gain = bank.real(ridges)[0, 100:200].abs().max().item()
    assert gain == pytest.approx(expected, abs=0.03)


def test_phase_of_the_analytic_signal():
    ridges, period, normal_angle = wave(30, -44)
    field = torch.full((1, HEIGHT, WIDTH), normal_angle - math.pi / 2)
    wanted = torch.full((1, HEIGHT, WIDTH), period)
    wanted[:, :8] *= 1.0001
    signal = RidgeFilter(field, wanted).analytic(ridges)[0, 50:250]
    row, column = torch.arange(50, 250)[:, None], torch.arange(WIDTH)[None]
    phase = 2 * math.pi * (30 * column / WIDTH - 44 * row / HEIGHT)
    error = torch.angle(signal * torch.polar(torch.ones_like(phase), -phase))
    assert error.abs().max() < 0.02


def test_ridges_follow_direction_and_period():
    keys = finger_keys(11, torch.arange(3))
    pattern = make_pattern(keys)
    period = period_field(keys, pattern)
    signal = grow(keys, pattern, period)
    # along the normal the phase grows by 2 pi per period: compare neighbours, away from singular points
    normal_angle = pattern.field + math.pi / 2
    right = torch.angle(signal[:, :, 1:] * signal[:, :, :-1].conj())
    turned = torch.cos(normal_angle[:, :, 1:] - normal_angle[:, :, :-1]) < 0.9  # where the direction jumps by pi
    expected = 2 * math.pi / (period[:, :, :-1] * PIXELS_PER_MM) * torch.cos(normal_angle[:, :, :-1])
    inside = (slice(None), slice(60, 260), slice(50, 200))
    error = (right - expected)[inside][~turned[inside]]
    assert error.abs().median() < 0.12
    assert error.mean().abs() < 0.02


def test_period_statistics():
    keys = finger_keys(1, torch.arange(60))
    centre = period_field(keys, make_pattern(keys))[:, 80:240, 60:200]
    means = centre.mean(dim=(1, 2))
    assert 0.43 < means.mean() < 0.50
    assert 0.02 < means.std() < 0.06
    assert centre.min() > 0.30
    assert centre.max() < 0.75


def test_smooth_field_is_a_cubic_spline():
    values = torch.arange(7.0).view(1, 7).expand(6, 7)
    surface = smooth_field(values, 50, 41)
    torch.testing.assert_close(surface, torch.linspace(1, 5, 41).expand(50, 41))  # reproduces straight lines
    x, y = frame(torch.device("cpu"))
    assert (float(x[0, 0]), float(y[0, 0])) == pytest.approx((-12.75, 15.95))


def test_rounding_does_not_grow(monkeypatch):
    """Another device rounds otherwise, by a tenth of the error that is made here; the master must not notice."""
    exact = make_masters(4, torch.arange(1))
    generator = torch.Generator().manual_seed(0)
    real = RidgeFilter.real

    def master(error):
        def rounded(bank, ridges):
            answer = real(bank, ridges)
            return answer * (1 + error * torch.randn(answer.shape, generator=generator))

        monkeypatch.setattr(RidgeFilter, "real", rounded)
        return make_masters(4, torch.arange(1))

    assert not torch.equal(master(0.1).ridges, exact.ridges), "the filter that masters are made with"
    other = master(1e-6)
    difference = (exact.ridges.int() - other.ridges.int()).abs()
    assert (difference > 8).float().mean() < 0.002
    assert exact.minutiae.count.tolist() == other.minutiae.count.tolist()
    torch.testing.assert_close(other.minutiae.rows[..., :2], exact.minutiae.rows[..., :2], rtol=0, atol=0.02)
