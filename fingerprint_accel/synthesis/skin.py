"""Generate masters, the complete ridge images of synthetic fingers, and their exact minutiae.

The ridges have pores, incipient ridges (thin, broken ridges in the valleys) and creases (folds of the skin).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fingerprint_accel.random import normal, sample_keys, uniform
from fingerprint_accel.synthesis.geometry import HEIGHT, PIXELS_PER_MM, WIDTH, bell, frame, smooth_field
from fingerprint_accel.synthesis.orientation import make_pattern
from fingerprint_accel.synthesis.ridges import grow, period_field
from fingerprint_accel.synthesis.workers import each, join

CREASES = 4  # largest number of creases per finger
CREASE, CREASE_COUNT, ROUGH, PORES, PORE_DEPTH, INCIPIENT, INCIPIENT_PLACE = range(40, 47)  # random streams
EDGE = 4  # width in pixels of a border without minutiae, because the filters wrap around at the border
UNIT = 120.0  # grey levels between the mean height and the top of a ridge
# Two minutiae of opposite directions that are closer than PAIR_MM mark a short break of a ridge. Two minutiae of equal
# directions that are closer than TWIN_MM are the same minutia.
PAIR_MM, TWIN_MM = 0.55, 0.4


@dataclass(frozen=True)
class Minutiae:
    """Minutiae of N fingers. Each finger has M rows, where M is the largest number of minutiae of a finger.

    Attributes:
        rows: (N, M, 3) x (to the right) and y (up) in mm from the centre of the master, and angle in radians,
            counter-clockwise from +x. The angle follows ISO/IEC 19794-2: along an ending ridge, and into the fork of a
            bifurcation. Rows from `count` on are padding.
        count: (N,) int64 number of minutiae of each finger.
    """

    rows: torch.Tensor
    count: torch.Tensor


@dataclass(frozen=True)
class Masters:
    """Complete ridge images of N fingers, from which impressions are rendered.

    Attributes:
        ridges: (N, HEIGHT, WIDTH) uint8 height of the skin, 7 in a valley and 247 on a ridge. `geometry` defines the
            coordinates.
        minutiae: minutiae of the fingers, without those that creases hide.
        kind: (N,) int64 pattern class, index into `orientation.CLASSES`.
        size: (N,) size of the finger relative to an average finger.
    """

    ridges: torch.Tensor
    minutiae: Minutiae
    kind: torch.Tensor
    size: torch.Tensor

    def __len__(self) -> int:
        return len(self.ridges)

    def __getitem__(self, fingers: slice | torch.Tensor) -> Masters:
        """Select fingers by a slice or by indices (B,). A slice gives views, and indices give copies."""
        minutiae = Minutiae(self.minutiae.rows[fingers], self.minutiae.count[fingers])
        return Masters(self.ridges[fingers], minutiae, self.kind[fingers], self.size[fingers])


def finger_keys(seed: int, fingers: torch.Tensor) -> torch.Tensor:
    """Return the random key of each finger. The key determines all random numbers of the finger.

    Args:
        seed: random seed.
        fingers: (N,) int64 finger indices.

    Returns:
        (N,) int64 keys.
    """
    return sample_keys(seed, torch.full_like(fingers, -1), fingers)


def finger_name(seed: int, number: int, siblings: int = 1, persons: bool = False) -> str:
    """Return the name of a synthetic finger in a dataset. Equal names mean equal fingers.

    With `persons`, every ten consecutive fingers belong to a person, and the name ends in the finger position: finger
    12 of seed 7 is `synthetic-7-p00001_03`, the right middle finger of the second person.

    Indices are padded to six digits, so that names sort in the order of the indices. If `siblings` is above 1, all
    fingers of a family except the first get a suffix: they differ from the fingers that have the same indices in a
    dataset without families.

    Args:
        seed: random seed of the fingers.
        number: index of the finger.
        siblings: number of fingers in a family, see `Style.siblings`.
        persons: whether the name states a person and a finger position.
    """
    if persons:
        family = f"s{siblings}" if siblings > 1 else ""
        return f"synthetic-{seed}-p{number // 10:05d}{family}_{number % 10 + 1:02d}"
    return f"synthetic-{seed}-{number:06d}" + (f"s{siblings}" if number % siblings else "")


def make_masters(seed: int, fingers: torch.Tensor, siblings: int = 1) -> Masters:
    """Generate the masters (complete ridge images with minutiae) of fingers on the device of `fingers`.

    A GPU generates the masters as one batch. A CPU generates them one by one, so that the bits of a finger do not
    depend on the batch.

    Args:
        seed: random seed. Seed, index and `siblings` determine a finger.
        fingers: (N,) int64 finger indices.
        siblings: number of consecutive fingers that form a family. All fingers of a family have the pattern class,
            ridge flow, ridge period and creases of the first finger.
    """
    both = torch.stack([finger_keys(seed, fingers), finger_keys(seed, fingers // siblings * siblings)], dim=1)
    if fingers.device.type == "cpu":
        return join(each(_make, both.split(1)))
    return _make(both)


@torch.no_grad()
def _make(both: torch.Tensor) -> Masters:
    """Generate the masters of N fingers as one batch.

    Args:
        both: (N, 2) int64 random key of each finger, and random key of the first finger of its family.
    """
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
    """Draw sweat pores in the ridges, and return by how much they lower the height of the skin.

    Args:
        keys: (N,) int64 random key of each finger.
        height: (N, HEIGHT, WIDTH) height of the skin, -1 in a valley and 1 on a ridge.

    Returns:
        (N, HEIGHT, WIDTH) depth in the unit of `height`; 0 outside the pores.
    """
    depth = uniform(keys, PORE_DEPTH, 1, 0.0, 0.9)[:, :, None]
    there = uniform(keys, PORES, HEIGHT * WIDTH).view_as(height) > 0.955
    return depth * there * (height - 0.5).clamp_min(0) * 2


def _with_incipient_ridges(keys: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
    """Add incipient ridges to some fingers: thin, broken ridges in the valleys of some regions.

    Args:
        keys: (N,) int64 random keys that determine the incipient ridges.
        height: (N, HEIGHT, WIDTH) height of the skin, -1 in a valley and 1 on a ridge.

    Returns:
        (N, HEIGHT, WIDTH) new height.
    """
    draw = uniform(keys, INCIPIENT, 2)[:, :, None]
    strength = 1.1 * (draw[:, :1] > 0.8) * (0.4 + 0.6 * draw[:, 1:])
    place = smooth_field(normal(keys, INCIPIENT_PLACE, 99).view(-1, 11, 9), HEIGHT, WIDTH)
    broken = smooth_field(normal(keys, INCIPIENT_PLACE + 100, 100 * 80).view(-1, 100, 80), HEIGHT, WIDTH)
    local = strength * torch.sigmoid(6 * (place - 0.3)) * torch.sigmoid(6 * (broken + 0.1))
    return height + local * ((-height - 0.75) * 4).clamp(0, 1)


def _creases(keys: torch.Tensor) -> torch.Tensor:
    """Draw creases (folds of the skin). Most of them are roughly horizontal.

    Args:
        keys: (N,) int64 random keys that determine the creases.

    Returns:
        (N, HEIGHT, WIDTH) strength of the crease at each pixel, from 0 (none) to 1.
    """
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
    """Return the four corner values of every cell of 2 x 2 neighbouring pixels.

    Args:
        values: (N, H, W) images.

    Returns:
        (4, N, H - 1, W - 1) values of the lower left, lower right, upper right and upper left corners.
    """
    return torch.stack([values[:, 1:, :-1], values[:, 1:, 1:], values[:, :-1, 1:], values[:, :-1, :-1]])


def _windings(signal: torch.Tensor, normal_angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Count how often the ridge phase winds around each cell of 2 x 2 neighbouring pixels.

    The ridge direction is only defined modulo pi, so `normal_angle` can point in opposite directions at two corners of
    a cell. The signal of a corner with the opposite direction is conjugated. If no choice of directions is consistent,
    the cell contains a core or delta, and its winding number is set to 0.

    Args:
        signal: (N, H, W) complex64 analytic signal of the ridges.
        normal_angle: (N, H, W) direction perpendicular to the ridges, radians.

    Returns:
        Winding numbers (N, H - 1, W - 1), counted counter-clockwise, and the complex values (4, N, H - 1, W - 1) of the
        corners of each cell, conjugated where necessary.
    """
    cosines, sines = _corners(normal_angle.cos()), _corners(normal_angle.sin())
    signs = (cosines[0] * cosines + sines[0] * sines).sign()
    agree = (cosines[1:3] * cosines[2:] + sines[1:3] * sines[2:]) * signs[1:3] * signs[2:]
    fits = (agree > 0).all(dim=0)
    real, imaginary = _corners(signal.real), _corners(signal.imag) * signs
    next_real, next_imaginary = real.roll(-1, 0), imaginary.roll(-1, 0)
    left = real * next_imaginary - next_real * imaginary  # count crossings of the positive real axis
    up = (imaginary <= 0) & (next_imaginary > 0) & (left > 0)
    down = (imaginary > 0) & (next_imaginary <= 0) & (left < 0)
    return (up.sum(dim=0) - down.sum(dim=0)) * fits, torch.complex(real, imaginary)


def find_minutiae(signal: torch.Tensor, normal_angle: torch.Tensor) -> Minutiae:
    """Find the minutiae of N fingers, which are the zeros of the analytic signals of their ridges.

    The ridge phase winds once around a zero, where a ridge ends or forks (Larkin and Fletcher 2007, "A coherent
    framework for fingerprint analysis: are fingerprints holograms?", Optics Express 15(14)).

    Args:
        signal: (N, HEIGHT, WIDTH) complex64, see `ridges.grow`.
        normal_angle: (N, HEIGHT, WIDTH) direction in radians along which the ridge phase increases.
    """
    winding, corners = _windings(signal, normal_angle)
    winding[:, :EDGE], winding[:, -EDGE:], winding[:, :, :EDGE], winding[:, :, -EDGE:] = 0, 0, 0, 0
    finger, row, column = winding.nonzero(as_tuple=True)
    sign = winding[finger, row, column]
    count = torch.bincount(finger, minlength=len(signal))
    lower_left, lower_right, upper_right, upper_left = corners[:, finger, row, column]
    # fit a plane to the corners, value = mean + slope_x * u + slope_y * v, and solve for its zero
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
    """Drop minutiae that a human examiner would not mark: in creases, at short breaks of a ridge, and duplicates.

    Args:
        minutiae: minutiae of N fingers.
        crease: (N, HEIGHT, WIDTH) strength of creases, 0 to 1.
    """
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
    """Move the rows marked in `keep` to the front, and fill the remaining rows with zeros.

    Args:
        rows: (N, M, K), M rows for each of N fingers or impressions.
        keep: (N, M) bool, rows to keep.
        most: number of rows in the result, at least the largest number of kept rows.

    Returns:
        (N, most, K).
    """
    order = torch.argsort(~keep, dim=1, stable=True)[:, :most, None]
    return torch.take_along_dim(rows * keep[..., None], order, dim=1)
