"""Draw the pattern class, the singular points and the orientation field of synthetic fingers.

The orientation field is the ridge direction at each pixel of a master (the complete ridge image of a finger). Its
singular points, cores and deltas, are zeros and poles of a complex function (Sherlock and Monro 1993). Random functions
bend the field around them (Vizcaya and Gerhardt 1996). Arches have no singular points; their field is computed from the
slopes of their ridges (Cappelli, Maio and Maltoni 2002). The probabilities of the pattern classes are those of Wilson,
Candela and Watson 1994, which the generator SFinGe also uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fingerprint_accel.random import normal, uniform
from fingerprint_accel.synthesis.geometry import HEIGHT, WIDTH, frame, smooth_field

CLASSES = ("arch", "tented arch", "left loop", "right loop", "whorl", "double loop")
SHARES = (0.037, 0.029, 0.338, 0.317, 0.209, 0.070)
"""Probability of each class. Whorls and double loops together have 27.9 %, and double loops are a quarter of these."""
ARCH, TENTED, LEFT, RIGHT, WHORL, DOUBLE = range(6)
# identifiers of independent random streams
CLASS, CORE, SECOND, DELTAS, BEND, BEND_PHASE, STRAIGHT, BOW, SLOPE, WAVES, RIPPLES, SIZE, TURN, SPIRAL = range(14)
SINGULARITIES = 4  # two cores, two deltas
STRAIGHTENED = 0.7  # share of the inclination of a loop that is removed near its core
FAR = 1e3  # position in mm of singular points that a class does not have


@dataclass(frozen=True)
class Pattern:
    """Ridge flow of N synthetic fingers.

    Attributes:
        kind: (N,) int64 pattern class, index into `CLASSES`.
        size: (N,) size of the finger relative to an average finger.
        points: (N, 4, 2) x and y of the upper core, lower core, left delta and right delta, mm.
        present: (N, 4) bool, whether the pattern class has each of these four points.
        field: (N, HEIGHT, WIDTH) ridge direction in radians, counter-clockwise from +x, modulo pi.
    """

    kind: torch.Tensor
    size: torch.Tensor
    points: torch.Tensor
    present: torch.Tensor
    field: torch.Tensor


def pattern_classes(keys: torch.Tensor) -> torch.Tensor:
    """Draw the pattern class of each finger with the probabilities `SHARES`.

    Args:
        keys: (N,) int64 random key of each finger.

    Returns:
        (N,) int64 indices into `CLASSES`.
    """
    bounds = torch.tensor(SHARES, device=keys.device).cumsum(0)[:-1]
    return torch.bucketize(uniform(keys, CLASS, 1)[:, 0], bounds, right=True)


def finger_size(keys: torch.Tensor) -> torch.Tensor:
    """Draw the size of each finger relative to an average finger.

    Args:
        keys: (N,) int64 random key of each finger.

    Returns:
        (N,) sizes with the mean 1 and a standard deviation of about 0.09.
    """
    return 1 + 0.09 * normal(keys, SIZE, 1)[:, 0]


def _singular_points(keys: torch.Tensor, kind: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the positions of the cores and deltas of each finger.

    Args:
        keys: (N,) int64 random key of each finger.
        kind: (N,) int64 pattern class of each finger.
        size: (N,) relative size of each finger, which scales the positions.

    Returns:
        Positions (N, 4, 2) of the upper core, lower core, left delta and right delta in mm, and (N, 4) bool, whether
        the pattern class has the point. The coordinates of points that the class does not have are `FAR`.
    """
    core = normal(keys, CORE, 2) * torch.tensor([0.7, 1.0], device=keys.device) + torch.tensor(
        [0.0, 1.2], device=keys.device
    )
    second = uniform(keys, SECOND, 4)
    side = torch.where(second[:, 3] < 0.5, -1.0, 1.0)
    double = kind == DOUBLE
    apart = torch.where(double, 2.5 + 4.0 * second[:, 0], 0.7 + 3.0 * second[:, 0] ** 2)
    aside = torch.where(double, side * (1.2 + 1.6 * second[:, 1]), side * 0.8 * second[:, 1])
    lower = core + torch.stack([aside, -apart], dim=1)
    draw = uniform(keys, DELTAS, 4)
    loop = (kind == LEFT) | (kind == RIGHT)
    out = torch.where(loop[:, None], 3.2 + 4.6 * draw[:, :2], 4.2 + 4.2 * draw[:, :2])
    down = torch.where(loop[:, None], 6.2 + 5.2 * draw[:, 2:], 5.4 + 4.8 * draw[:, 2:])
    tented = kind == TENTED
    right_x = torch.where(tented, 1.2 * draw[:, 0] - 0.6, out[:, 0])
    right_y = torch.where(tented, 2.6 + 3.6 * draw[:, 2], down[:, 0])
    base_y = torch.where(loop | tented, core[:, 1], lower[:, 1] + 0.5 * apart)
    right = torch.stack([core[:, 0] + right_x, base_y - right_y], dim=1)
    left = torch.stack([core[:, 0] - out[:, 1], base_y - down[:, 1]], dim=1)
    left = torch.where((kind == RIGHT)[:, None], torch.stack([core[:, 0] - out[:, 0], base_y - down[:, 0]], 1), left)
    points = torch.stack([core, lower, left, right], dim=1) * size[:, None, None]
    whorl = (kind == WHORL) | double
    some = kind != ARCH
    present = torch.stack([some, whorl, whorl | (kind == RIGHT), whorl | (kind == LEFT) | tented], dim=1)
    return torch.where(present[:, :, None], points, FAR), present


def _openings(points: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return the direction in which the loop around each core opens.

    A ridge that leaves the core in this direction is straight.

    Args:
        points: (N, 4, 2) positions of two cores and two deltas, mm.
        present: (N, 4) bool, whether the finger has the point.

    Returns:
        (N, 2) directions in radians, one for each core.
    """
    weight = torch.tensor([0.5, 0.5, -0.5, -0.5], device=points.device) * present
    openings = []
    for core in range(2):
        apart = points[:, core, None] - points  # (N, 4, 2)
        turned = weight * torch.atan2(apart[..., 1], apart[..., 0])
        turned[:, core] = 0
        openings.append(2 * turned.sum(dim=1))
    return torch.stack(openings, dim=1)


def _bends(keys: torch.Tensor, points: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the waves that bend the orientation field around each singular point.

    Wave k = 1, 2 adds amplitude * sin(k * angle + phase) to the angle around the point. Around a core, the first wave
    straightens the loop, so that ridges inside the loop become parallel.

    Args:
        keys: (N,) int64 random key of each finger.
        points: (N, 4, 2) positions of two cores and two deltas, mm.
        present: (N, 4) bool, whether the finger has the point.

    Returns:
        Amplitudes and phases in radians, both (N, 4, 2): two waves for each of the four points.
    """
    size = uniform(keys, BEND, 2 * SINGULARITIES, -1, 1).view(-1, SINGULARITIES, 2)
    size = size * torch.tensor([0.18, 0.12], device=keys.device)
    phase = uniform(keys, BEND_PHASE, 2 * SINGULARITIES, 0, 2 * math.pi).view(-1, SINGULARITIES, 2)
    apart = (points[:, 0] - points[:, 1]).norm(dim=1, keepdim=True)  # loops between two close cores cannot be straight
    size[:, :2, 0] = uniform(keys, STRAIGHT, 2, 0.30, 0.65) * apart / (apart + 1.5)
    phase[:, :2, 0] = math.pi - _openings(points, present) + 0.3 * phase[:, :2, 0].cos()
    return size, phase


def _turns(points: torch.Tensor, present: torch.Tensor, size: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
    """Compute the orientation field that results from the cores and deltas.

    The direction is half the sum of the angles around the cores minus half the sum of the angles around the deltas.
    Each angle includes the waves of `_bends`.

    Args:
        points: (N, 4, 2) positions of two cores and two deltas, mm.
        present: (N, 4) bool, whether the finger has the point.
        size: (N, 4, 2) amplitudes of the two waves of each point.
        phase: (N, 4, 2) phases of the waves, radians.

    Returns:
        (N, HEIGHT, WIDTH) ridge direction, radians.
    """
    x, y = frame(points.device)
    total = torch.zeros(len(points), HEIGHT, WIDTH, device=points.device)
    for number in range(SINGULARITIES):
        at = points[:, number, :, None, None]
        angle = torch.atan2(y - at[:, 1], x - at[:, 0])
        bent = angle
        for wave in range(2):
            bent = bent + size[:, number, wave, None, None] * torch.sin(
                (wave + 1) * angle + phase[:, number, wave, None, None]
            )
        sign = 0.5 if number < 2 else -0.5
        total = total + sign * bent * present[:, number, None, None]
    return total


def _unwinding(keys: torch.Tensor, kind: torch.Tensor, points: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return the rotation of the orientation field that turns spirals around the cores of whorls into rings.

    For double loops, only a smaller share of the rotation is applied. A small random rotation is added, so that some
    whorls keep a slight spiral.

    Args:
        keys: (N,) int64 random key of each finger.
        kind: (N,) int64 pattern class of each finger.
        points: (N, 4, 2) positions of two cores and two deltas, mm.
        present: (N, 4) bool, whether the finger has the point.

    Returns:
        (N, HEIGHT, WIDTH) rotation in radians; 0 for fingers without a lower core.
    """
    x, y = frame(points.device)
    middle = points[:, :2].mean(dim=1)
    apart = middle[:, None] - points[:, 2:]
    wound = -0.5 * torch.atan2(apart[..., 1], apart[..., 0]).sum(dim=1) - math.pi / 2
    wound = torch.remainder(wound + math.pi / 2, math.pi) - math.pi / 2
    share = torch.where(kind == DOUBLE, 0.4, 1.0) * present[:, 1]
    left = 0.10 * normal(keys, SPIRAL, 1)[:, 0] * present[:, 1]
    distance = (x - middle[:, 0, None, None]).square() + (y - middle[:, 1, None, None]).square()
    return (left - share * wound)[:, None, None] * torch.exp(-distance / (2 * 5.0**2))


def _straightening(kind: torch.Tensor, points: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return the rotation of the orientation field that makes a loop leave its core nearly straight down.

    Args:
        kind: (N,) int64 pattern class of each finger.
        points: (N, 4, 2) positions of two cores and two deltas, mm.
        present: (N, 4) bool, whether the finger has the point.

    Returns:
        (N, HEIGHT, WIDTH) rotation in radians; 0 for classes other than left and right loops.
    """
    x, y = frame(points.device)
    loop = (kind == LEFT) | (kind == RIGHT)
    lean = torch.where(loop, _openings(points, present)[:, 0] + math.pi / 2, 0.0)[:, None, None]
    lean = torch.remainder(lean + math.pi, 2 * math.pi) - math.pi
    core = points[:, 0, :, None, None]
    distance = (x - core[:, 0]).square() + (y - core[:, 1]).square()
    return -0.5 * STRAIGHTENED * lean * torch.exp(-distance / (2 * 5.0**2))  # the loop turns by twice the angle


def _slopes(keys: torch.Tensor) -> torch.Tensor:
    """Draw the orientation field of arches, whose ridges rise towards the middle of the finger and then descend.

    Args:
        keys: (N,) int64 random key of each finger. The key also determines the height at which ridges are steepest.

    Returns:
        (N, HEIGHT, WIDTH) ridge direction, radians.
    """
    x, y = frame(keys.device)
    draw = uniform(keys, SLOPE, 5)[:, :, None, None]
    top, steep = 2.5 * draw[:, 0] - 1.0, 0.9 + 0.9 * draw[:, 1]
    above, below = 6.5 + 4 * draw[:, 2], 3.5 + 2 * draw[:, 2]
    spread = torch.where(y > top, above, below)
    height = torch.exp(-((y - top) / spread).square())
    middle, width = 1.6 * draw[:, 3] - 0.8, 6.5 + 2.5 * draw[:, 4]
    across = ((x - middle) / width).clamp(-1, 1)
    return torch.atan(-steep * height * torch.sin(math.pi * across))


def make_pattern(keys: torch.Tensor) -> Pattern:
    """Draw the pattern class, the singular points and the orientation field of each finger.

    Args:
        keys: (N,) int64 random key of each finger. Equal keys give equal patterns.
    """
    kind = pattern_classes(keys)
    size = finger_size(keys)
    points, present = _singular_points(keys, kind, size)
    bends = _bends(keys, points, present)
    x, y = frame(keys.device)
    core_x = torch.where(present[:, 0], points[:, 0, 0], 0.0)[:, None, None]
    core_y = torch.where(present[:, 0], points[:, 0, 1], 1.0)[:, None, None]
    bow = uniform(keys, BOW, 1, 0.35, 0.65)[:, :, None]
    arched = -bow * torch.tanh((x - core_x) / 5.0) * torch.sigmoid((y - core_y + 3.0) / 2.0)
    flow = torch.where((kind == ARCH)[:, None, None], _slopes(keys), _turns(points, present, *bends))
    flow = flow + _unwinding(keys, kind, points, present) + _straightening(kind, points, present)
    waves = smooth_field(normal(keys, WAVES, 7 * 8).view(-1, 8, 7), HEIGHT, WIDTH)
    ripples = smooth_field(normal(keys, RIPPLES, 18 * 22).view(-1, 22, 18), HEIGHT, WIDTH)
    turn = 0.05 * normal(keys, TURN, 1)[:, :, None]
    return Pattern(kind, size, points, present, flow + arched + 0.16 * waves + 0.07 * ripples + turn)
