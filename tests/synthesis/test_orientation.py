"""Pattern classes have natural shares, and the flow turns around cores and deltas as it must."""

import math

import pytest
import torch

from fingerprint_accel.synthesis.geometry import HEIGHT, PIXELS_PER_MM, WIDTH
from fingerprint_accel.synthesis.orientation import ARCH, CLASSES, SHARES, make_pattern, pattern_classes
from fingerprint_accel.synthesis.skin import finger_keys


def test_class_shares():
    kinds = pattern_classes(finger_keys(0, torch.arange(200_000)))
    found = torch.bincount(kinds, minlength=len(CLASSES)) / len(kinds)
    torch.testing.assert_close(found, torch.tensor(SHARES), rtol=0, atol=0.004)
    assert sum(SHARES) == pytest.approx(1)
    assert SHARES[-1] + SHARES[-2] == pytest.approx(0.279)


def winding(field, row, column, radius=8):
    """How often the orientation turns on the way around a pixel, counter-clockwise."""
    steps = torch.linspace(0, 2 * math.pi, 361)
    rows = (row - radius * torch.sin(steps)).round().long()
    columns = (column + radius * torch.cos(steps)).round().long()
    along = field[rows, columns]
    turn = torch.remainder(along.diff() + math.pi / 2, math.pi) - math.pi / 2
    return float(turn.sum() / (2 * math.pi))


def test_cores_and_deltas_are_where_they_are_said_to_be():
    pattern = make_pattern(finger_keys(3, torch.arange(40)))
    seen = set()
    for finger in range(40):
        points = pattern.points[finger]
        for number in range(4):
            x, y = points[number].tolist()
            others = [o for o in range(4) if o != number and (points[o] - points[number]).norm() < 2]
            if not pattern.present[finger, number] or others or abs(x) > 11 or abs(y) > 14:
                continue
            place = HEIGHT / 2 - y * PIXELS_PER_MM - 0.5, WIDTH / 2 + x * PIXELS_PER_MM - 0.5
            assert winding(pattern.field[finger], *place) == pytest.approx(0.5 if number < 2 else -0.5, abs=1e-3)
            seen.add(number)
    assert seen == {0, 1, 2, 3}


def test_arches_have_neither():
    keys = finger_keys(0, torch.arange(400))
    arches = keys[pattern_classes(keys) == ARCH][:5]
    pattern = make_pattern(arches)
    assert len(arches) == 5
    assert not pattern.present.any()
    for field in pattern.field:
        assert winding(field, HEIGHT / 2, WIDTH / 2, radius=90) == pytest.approx(0, abs=1e-3)


def test_a_finger_does_not_depend_on_its_batch():
    keys = finger_keys(5, torch.arange(9))
    assert torch.equal(make_pattern(keys[3:4]).points[0], make_pattern(keys).points[3])
