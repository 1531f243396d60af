"""Zeros of the signal are found where they are, with their direction; masters list what a person would mark."""

import math

import pytest
import torch

from fingerprint_accel.synthesis.geometry import HEIGHT, WIDTH, frame
from fingerprint_accel.synthesis.skin import PAIR_MM, find_minutiae, make_masters

CPU = torch.device("cpu")


def spiral(at, turns, normal_angle, offset, period=0.5):
    """Straight ridges with one dislocation: (1, H, W) signal."""
    x, y = frame(CPU)
    x, y = x - at[0], y - at[1]
    along_normal = x * math.cos(normal_angle) + y * math.sin(normal_angle)
    phase = 2 * math.pi * along_normal / period + turns * torch.atan2(y, x) + offset
    size = torch.hypot(x, y).expand(HEIGHT, WIDTH).clamp(max=0.3)
    return torch.polar(size, phase.expand(HEIGHT, WIDTH))[None]


@pytest.mark.parametrize("turns", [1, -1])
@pytest.mark.parametrize("normal_angle", [0.4, 2.0, 3.6, 5.5])
def test_one_dislocation(turns, normal_angle):
    at = (1.23, -2.57)
    field = torch.full((1, HEIGHT, WIDTH), normal_angle)
    for offset in (0.0, math.pi):
        # the phase straight ahead, on the side with one ridge more
        ahead = normal_angle - turns * math.pi / 2
        signal = spiral(at, turns, normal_angle, offset - turns * ahead)
        found = find_minutiae(signal, field)
        assert found.count.tolist() == [1]
        assert found.rows[0, 0, :2].tolist() == pytest.approx(at, abs=0.05), "half a pixel"
        assert math.cos(float(found.rows[0, 0, 2]) - ahead) > 0.999


def test_more_ridges_ahead():
    """Counts ridges on both sides of a minutia: the direction points to where there is one more."""
    at, normal_angle = (0.0, 0.0), math.pi / 2
    for turns in (1, -1):
        signal = spiral(at, turns, normal_angle, 0.7)
        angle = float(find_minutiae(signal, torch.full((1, HEIGHT, WIDTH), normal_angle)).rows[0, 0, 2])
        crossings = {}
        for side in (-1, 1):
            column = WIDTH // 2 + side * 100
            ridges = signal.real[0, :, column] > 0
            crossings[side] = int((ridges[1:] != ridges[:-1]).sum())
        towards = 1 if math.cos(angle) > 0 else -1
        assert crossings[towards] > crossings[-towards]


def test_a_direction_that_jumps_by_pi_makes_no_minutiae():
    x, _ = frame(CPU)
    normal_angle = torch.where(x > 0.7, math.pi, 0.0).expand(1, HEIGHT, WIDTH)
    phase = (2 * math.pi * x / 0.47).expand(1, HEIGHT, WIDTH)
    signal = torch.polar(torch.ones_like(phase), torch.where(x > 0.7, -phase, phase))
    assert find_minutiae(signal, normal_angle).count.tolist() == [0]


def test_masters_list_no_pairs_and_plausible_numbers():
    masters = make_masters(2, torch.arange(12))
    own = masters.minutiae
    densities = []
    for finger in range(12):
        count = int(own.count[finger])
        position, angle = own.rows[finger, :count, :2], own.rows[finger, :count, 2]
        distance = torch.cdist(position, position) + 9 * torch.eye(count)
        against = torch.cos(angle[:, None] - angle[None]) < -0.5
        assert not (against & (distance < PAIR_MM - 1e-3)).any()
        inside = (position[:, 0] / 8).square() + (position[:, 1] / 10).square() < 1
        densities.append(float(inside.sum()) / (math.pi * 0.8 * 1.0))
        assert (own.rows[finger, count:] == 0).all(), "padding"
    assert 18 < sum(densities) / 12 < 25, "minutiae per square centimetre"
