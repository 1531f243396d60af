"""Rotate, shift, scale and distort prints with a single resampling from the canvas to the network input.

The canvas is the square image on which a print is stored. Minutiae are transformed like pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from fingerprint_accel.config import AugmentConfig
from fingerprint_accel.preprocess.coarse import cell_means
from fingerprint_accel.random import between, steady, uniforms

CONTROL_POINTS = 6  # number of control points of the elastic distortion along each side
ROTATION, TRANSLATION, SCALE, ELASTIC, ELASTIC_SIZE = range(5)  # random streams
DRAWN = ((ROTATION, 1), (TRANSLATION, 2), (SCALE, 1), (ELASTIC, 2 * CONTROL_POINTS**2), (ELASTIC_SIZE, 1))


@dataclass(frozen=True)
class Pose:
    """Map from positions on the network input to positions on the canvas, for each print of a batch.

    The canvas is the square image on which a print is stored. The map is canvas = centre + matrix @ u + shift +
    elastic(u). Here, `u` is the position relative to the centre of the input, in units of a canvas pixel, and `centre`
    is the centre of the canvas.

    Attributes:
        matrix: (B, 2, 2) rotation and scale.
        shift: (B, 2) translation along x and y, canvas pixels.
        elastic: (B, 2, CONTROL_POINTS, CONTROL_POINTS) displacement along x and y of a grid of control points, in
            canvas pixels, or None. Displacements between control points are interpolated bicubically.
        crop: side of the input, in units of a canvas pixel.
    """

    matrix: torch.Tensor
    shift: torch.Tensor
    elastic: torch.Tensor | None
    crop: float

    def __getitem__(self, rows: slice) -> Pose:
        elastic = None if self.elastic is None else self.elastic[rows]
        return Pose(self.matrix[rows], self.shift[rows], elastic, self.crop)

    def repeated(self, count: int) -> Pose:
        """Expand the pose of one print to `count` prints, without a copy."""
        elastic = None if self.elastic is None else self.elastic.expand(count, -1, -1, -1)
        return Pose(self.matrix.expand(count, -1, -1), self.shift.expand(count, -1), elastic, self.crop)

    def within(self, outer: Pose) -> Pose:
        """Return the map that applies this pose and then `outer`. Both poses must have no elastic part."""
        shift = (outer.matrix @ self.shift[:, :, None])[:, :, 0] + outer.shift
        return Pose(outer.matrix @ self.matrix, shift, None, self.crop)

    def inverse(self) -> Pose:
        """Return the inverse map. The pose must have no elastic part."""
        back = _inverse(self.matrix)
        return Pose(back, -(back @ self.shift[:, :, None])[:, :, 0], None, self.crop)


def upright(count: int, crop: float, device: torch.device) -> Pose:
    """Return the pose that crops the centre of the canvas without rotation or shift.

    Args:
        count: number of prints.
        crop: side of the crop, canvas pixels.
        device: device of the pose.
    """
    matrix = torch.eye(2, device=device).expand(count, 2, 2)
    return Pose(matrix, torch.zeros(count, 2, device=device), None, crop)


def turned_and_shifted(transform: torch.Tensor, crop: float) -> Pose:
    """Make a pose from a rotation and a shift of each print.

    Args:
        transform: (B, 3) rotation in radians, and shift along x and y in units of half the input side.
        crop: side of the input, canvas pixels.
    """
    cos, sin = transform[:, 0].cos(), transform[:, 0].sin()
    matrix = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    return Pose(matrix, transform[:, 1:] * (crop / 2), None, crop)


def pose_left(pose: Pose, truth: torch.Tensor) -> torch.Tensor:
    """Return the transform that still has to be applied to align a finger on a network input.

    The input is a part of the canvas, taken in the given pose. The result is the training target of the alignment
    network.

    Args:
        pose: pose of the input on the canvas. Its elastic part is ignored.
        truth: (B, 3) pose of the finger on the canvas: rotation in radians, shift along x and y in canvas pixels.

    Returns:
        (B, 3) transform in the format of `turned_and_shifted`.
    """
    angle = truth[:, 0] - torch.atan2(pose.matrix[:, 1, 0], pose.matrix[:, 0, 0])
    shift = (_inverse(pose.matrix) @ (truth[:, 1:] - pose.shift)[:, :, None])[:, :, 0] / (pose.crop / 2)
    return torch.cat([angle[:, None], shift], dim=1)


def random_pose(keys: torch.Tensor, config: AugmentConfig, crop: int) -> Pose:
    """Draw a random rotation, shift, scale and elastic distortion for each print.

    Args:
        keys: (B,) int64 random key of each print.
        config: largest amplitudes of the augmentation.
        crop: side of the input, canvas pixels.
    """
    limit = math.radians(config.rotation_degrees)
    drawn = uniforms(keys, DRAWN)
    angle = between(drawn[ROTATION][:, 0], -limit, limit)
    factor = steady(torch.exp, between(drawn[SCALE][:, 0], -1, 1) * math.log1p(config.scale))
    cos, sin = steady(torch.cos, angle) * factor, steady(torch.sin, angle) * factor
    matrix = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    shift = between(drawn[TRANSLATION], -config.translation, config.translation)
    elastic = None
    if config.elastic > 0:
        points = between(drawn[ELASTIC], -1, 1).view(-1, 2, CONTROL_POINTS, CONTROL_POINTS)
        elastic = points * between(drawn[ELASTIC_SIZE], 0, config.elastic)[:, :, None, None]
    return Pose(matrix, shift, elastic, float(crop))


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the cached tensor may later be used in autograd or export
def _bicubic(size: int, device: torch.device) -> torch.Tensor:
    """Return the weights that interpolate CONTROL_POINTS values along one axis bicubically.

    Args:
        size: number of pixels along the axis.
        device: device of the result.

    Returns:
        (size, CONTROL_POINTS) weight of each control point for each pixel.
    """
    points = torch.eye(CONTROL_POINTS, device=device)[None, :, :, None]  # one image with one channel per control point
    along = F.interpolate(points, size=(size, 1), mode="bicubic", align_corners=True)
    return along[0, :, :, 0].T.contiguous()


def _sources(pose: Pose, size: int, unit: float) -> torch.Tensor:
    """Return the position on the canvas of each pixel of the input.

    Args:
        pose: map from the input to the canvas.
        size: side of the input in pixels, S.
        unit: unit of the result, in canvas pixels.

    Returns:
        (B, 2, S, S) x and y relative to the centre of the canvas.
    """
    axis = (torch.arange(size, device=pose.shift.device) + 0.5) * (pose.crop / size) - pose.crop / 2
    along_x = (pose.matrix[:, :, :1] * axis + pose.shift[:, :, None]) / unit  # (B, 2, S)
    along_y = pose.matrix[:, :, 1:] * axis / unit
    source = along_x[:, :, None, :] + along_y[:, :, :, None]
    if pose.elastic is not None:  # bicubic interpolation is separable, so two matrix products replace it
        weights = _bicubic(size, source.device)
        rows = (pose.elastic / unit @ weights.T).flatten(0, 1)  # (B * 2, CONTROL_POINTS, S)
        source.flatten(0, 1).baddbmm_(weights.expand(len(rows), -1, -1), rows)
    return source


def resample(ink: torch.Tensor, pose: Pose, size: int) -> torch.Tensor:
    """Resample canvases to network inputs in the given poses, with one bilinear `grid_sample`.

    If the input is much coarser than the canvas, the canvas is first downsampled by averaging, so that ridges do not
    alias.

    Args:
        ink: (B, 1, H, W) canvases, 0 for background.
        pose: map from input to canvas.
        size: side of the result, pixels.

    Returns:
        (B, 1, size, size), 0 outside the canvas.
    """
    canvas = ink.shape[-1]
    factor = max(1, int(pose.crop / size + 0.25))
    ink = cell_means(ink, factor)
    covered = ink.shape[-1] * factor  # canvas pixels covered by the averaged image
    grid = _sources(pose, size, covered / 2)
    if covered > canvas:
        grid += canvas / covered - 1
    return F.grid_sample(ink, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False)


def middle(ink: torch.Tensor, crop: int, size: int) -> torch.Tensor:
    """Resample the upright centre of canvases, as `resample` does for the pose `upright`.

    The result differs from that of `resample` only by rounding. Exported models use this function, because runtimes
    interpolate at regular positions ten times as fast as at positions that are data.

    Args:
        ink: (B, 1, H, W) canvases, 0 for background.
        crop: side of the crop, canvas pixels.
        size: side of the result, pixels.

    Returns:
        (B, 1, size, size).
    """
    edge, odd = divmod(ink.shape[-1] - crop, 2)
    if odd or not size <= crop < 1.75 * size:  # needs pixels between the pixels of the crop, outside of it, or averages
        return resample(ink, upright(1, float(crop), ink.device).repeated(ink.shape[0]), size)
    inside = ink[..., edge : edge + crop, edge : edge + crop]
    return F.interpolate(inside, size=(size, size), mode="bilinear", align_corners=False)


def _displacement(position: torch.Tensor, pose: Pose, size: int) -> torch.Tensor:
    """Return the elastic displacement of a pose at the given positions.

    Args:
        position: (B, M, 2) x and y relative to the centre of the input, in units of a canvas pixel.
        pose: pose with an elastic part.
        size: side of the input, pixels.

    Returns:
        (B, M, 2) displacement along x and y, canvas pixels.
    """
    assert pose.elastic is not None
    place = ((position / pose.crop + 0.5) * size - 0.5).clamp(0, size - 1)
    low = place.floor().clamp_max(size - 2)
    table, index = _bicubic(size, position.device), low.long()
    weights = torch.lerp(table[index], table[index + 1], (place - low)[..., None])  # (B, M, 2, CONTROL_POINTS)
    along_x = weights[:, :, 0] @ pose.elastic.flatten(1, 2).mT  # (B, M, 2 * CONTROL_POINTS)
    return (along_x.unflatten(2, (2, CONTROL_POINTS)) * weights[:, :, 1:]).sum(dim=3)


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Invert matrices (B, 2, 2) by a formula, because `torch.linalg.inv` synchronises the host with the device."""
    (a, b), (c, d) = (row.unbind(1) for row in matrix.unbind(1))
    adjugate = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2)
    return adjugate / (a * d - b * c)[:, None, None]


def _turned(point: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply the points (B, M, 2) of each print by its matrix (B, 2, 2) in full float32 precision.

    The function avoids matrix products, because the rounding of TF32 would change angles by degrees.
    """
    return (matrix[:, None] * point[:, :, None]).sum(dim=-1)


def _to_input(point: torch.Tensor, pose: Pose, canvas: int, size: int) -> torch.Tensor:
    """Map points from canvas pixels to input pixels.

    The elastic part has no closed inverse, so it is inverted by fixed-point iteration.

    Args:
        point: (B, M, 2) x and y in canvas pixels.
        pose: map from input to canvas.
        canvas: side of the canvas, pixels.
        size: side of the input, pixels.

    Returns:
        (B, M, 2) x and y in input pixels.
    """
    target = point - canvas / 2 - pose.shift[:, None]
    inverse = _inverse(pose.matrix)
    position = _turned(target, inverse)
    if pose.elastic is not None:
        for _ in range(4):
            position = _turned(target - _displacement(position, pose, size), inverse)
    return (position + pose.crop / 2) * (size / pose.crop)


def move_minutiae(minutiae: torch.Tensor, pose: Pose, canvas: int, size: int) -> torch.Tensor:
    """Apply to minutiae the transform that `resample` applies to pixels.

    Args:
        minutiae: (B, M, 4) x and y in canvas pixels (the centre of the first pixel is 0.5), angle in radians, quality.
        pose: map from input to canvas.
        canvas: side of the canvas, pixels.
        size: side of the input, pixels.

    Returns:
        (B, M, 4) minutiae with x and y in input pixels. To obtain the new angle, a short step along the old angle is
        transformed.
    """
    point, angle = minutiae[..., :2], minutiae[..., 2]
    step = torch.stack([steady(torch.cos, angle), -steady(torch.sin, angle)], dim=-1)
    start, end = _to_input(torch.cat([point, point + step], dim=1), pose, canvas, size).chunk(2, dim=1)
    moved = end - start
    turned = steady(lambda step: torch.atan2(-step[..., 1:], step[..., :1]), moved)
    return torch.cat([start, turned, minutiae[..., 3:]], dim=-1)
