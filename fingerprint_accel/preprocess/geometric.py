"""Pose: one resampling from canvas to network input, for pixels and minutiae alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from fingerprint_accel.config import AugmentConfig
from fingerprint_accel.preprocess.coarse import cell_means
from fingerprint_accel.random import between, steady, uniforms

CONTROL_POINTS = 6  # along each side, of the elastic distortion
ROTATION, TRANSLATION, SCALE, ELASTIC, ELASTIC_SIZE = range(5)  # random streams
DRAWN = ((ROTATION, 1), (TRANSLATION, 2), (SCALE, 1), (ELASTIC, 2 * CONTROL_POINTS**2), (ELASTIC_SIZE, 1))


@dataclass(frozen=True)
class Pose:
    """Where each input pixel comes from: canvas = centre + matrix @ u + shift + elastic(u), in canvas pixels.

    `u` is the position in the input, scaled to canvas pixels, from its centre.

    Attributes:
        matrix: (B, 2, 2).
        shift: (B, 2), x and y.
        elastic: (B, 2, CONTROL_POINTS, CONTROL_POINTS) displacement of the control points, or None; it is bicubic
            between them.
        crop: side of the input in canvas pixels.
    """

    matrix: torch.Tensor
    shift: torch.Tensor
    elastic: torch.Tensor | None
    crop: float

    def __getitem__(self, rows: slice) -> Pose:
        elastic = None if self.elastic is None else self.elastic[rows]
        return Pose(self.matrix[rows], self.shift[rows], elastic, self.crop)

    def repeated(self, count: int) -> Pose:
        """The pose of one print for `count` prints; views."""
        elastic = None if self.elastic is None else self.elastic.expand(count, -1, -1, -1)
        return Pose(self.matrix.expand(count, -1, -1), self.shift.expand(count, -1), elastic, self.crop)

    def within(self, outer: Pose) -> Pose:
        """This pose of a picture that is itself taken in another pose; neither elastic."""
        shift = (outer.matrix @ self.shift[:, :, None])[:, :, 0] + outer.shift
        return Pose(outer.matrix @ self.matrix, shift, None, self.crop)

    def inverse(self) -> Pose:
        """What undoes this pose; not elastic."""
        back = _inverse(self.matrix)
        return Pose(back, -(back @ self.shift[:, :, None])[:, :, 0], None, self.crop)


def upright(count: int, crop: float, device: torch.device) -> Pose:
    """The pose that only crops the centre of the canvas."""
    matrix = torch.eye(2, device=device).expand(count, 2, 2)
    return Pose(matrix, torch.zeros(count, 2, device=device), None, crop)


def turned_and_shifted(transform: torch.Tensor, crop: float) -> Pose:
    """transform (B, 3), rotation in radians and shift in half sides of the input -> the pose that does it."""
    cos, sin = transform[:, 0].cos(), transform[:, 0].sin()
    matrix = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    return Pose(matrix, transform[:, 1:] * (crop / 2), None, crop)


def pose_left(pose: Pose, truth: torch.Tensor) -> torch.Tensor:
    """What is left to be turned and shifted on an input that was itself taken in a pose.

    Args:
        pose: of the input on the canvas; its elastic part is left out.
        truth: (B, 3) rotation in radians, shift in canvas pixels: of the upright finger on the canvas.

    Returns:
        (B, 3) rotation in radians, shift in half sides of the input, as of `turned_and_shifted`.
    """
    angle = truth[:, 0] - torch.atan2(pose.matrix[:, 1, 0], pose.matrix[:, 0, 0])
    shift = (_inverse(pose.matrix) @ (truth[:, 1:] - pose.shift)[:, :, None])[:, :, 0] / (pose.crop / 2)
    return torch.cat([angle[:, None], shift], dim=1)


def random_pose(keys: torch.Tensor, config: AugmentConfig, crop: int) -> Pose:
    """One random pose per key (B,)."""
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
@torch.inference_mode(False)  # whoever asks first: others may differentiate or export
def _bicubic(size: int, device: torch.device) -> torch.Tensor:
    """(size, CONTROL_POINTS): shares of the control points along one side in each pixel along it."""
    points = torch.eye(CONTROL_POINTS, device=device)[None, :, :, None]  # one picture, a channel per point
    along = F.interpolate(points, size=(size, 1), mode="bicubic", align_corners=True)
    return along[0, :, :, 0].T.contiguous()


def _sources(pose: Pose, size: int, unit: float) -> torch.Tensor:
    """(B, 2, S, S): x and y on the canvas of every input pixel, from its centre, in units of `unit` canvas pixels."""
    axis = (torch.arange(size, device=pose.shift.device) + 0.5) * (pose.crop / size) - pose.crop / 2
    along_x = (pose.matrix[:, :, :1] * axis + pose.shift[:, :, None]) / unit  # (B, 2, S)
    along_y = pose.matrix[:, :, 1:] * axis / unit
    source = along_x[:, :, None, :] + along_y[:, :, :, None]
    if pose.elastic is not None:  # the map from control points to pixels is the same along x and y, and linear
        weights = _bicubic(size, source.device)
        rows = (pose.elastic / unit @ weights.T).flatten(0, 1)  # (B * 2, CONTROL_POINTS, S)
        source.flatten(0, 1).baddbmm_(weights.expand(len(rows), -1, -1), rows)
    return source


def resample(ink: torch.Tensor, pose: Pose, size: int) -> torch.Tensor:
    """ink (B, 1, H, W), 0 where there is none -> (B, 1, size, size), in one bilinear `grid_sample`.

    Inputs much coarser than the canvas are averaged down first, so that ridges do not alias.
    """
    canvas = ink.shape[-1]
    factor = max(1, int(pose.crop / size + 0.25))
    ink = cell_means(ink, factor)
    covered = ink.shape[-1] * factor  # canvas pixels that the averaged picture covers
    grid = _sources(pose, size, covered / 2)
    if covered > canvas:
        grid += canvas / covered - 1
    return F.grid_sample(ink, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False)


def _displacement(position: torch.Tensor, pose: Pose, size: int) -> torch.Tensor:
    """position (B, M, 2) in canvas pixels from the input's centre -> (B, M, 2) elastic displacement there."""
    assert pose.elastic is not None
    place = ((position / pose.crop + 0.5) * size - 0.5).clamp(0, size - 1)
    low = place.floor().clamp_max(size - 2)
    table, index = _bicubic(size, position.device), low.long()
    weights = torch.lerp(table[index], table[index + 1], (place - low)[..., None])  # (B, M, 2, CONTROL_POINTS)
    along_x = weights[:, :, 0] @ pose.elastic.flatten(1, 2).mT  # (B, M, 2 * CONTROL_POINTS)
    return (along_x.unflatten(2, (2, CONTROL_POINTS)) * weights[:, :, 1:]).sum(dim=3)


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    """matrix (B, 2, 2) -> (B, 2, 2), written out: the library's inverse makes the host wait for the device."""
    (a, b), (c, d) = (row.unbind(1) for row in matrix.unbind(1))
    adjugate = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2)
    return adjugate / (a * d - b * c)[:, None, None]


def _turned(point: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """point (B, M, 2), matrix (B, 2, 2) -> (B, M, 2); never in TF32, which would turn directions by degrees."""
    return (matrix[:, None] * point[:, :, None]).sum(dim=-1)


def _to_input(point: torch.Tensor, pose: Pose, canvas: int, size: int) -> torch.Tensor:
    """point (B, M, 2) canvas pixels -> (B, M, 2) input pixels: inverts the pose by fixed-point iteration."""
    target = point - canvas / 2 - pose.shift[:, None]
    inverse = _inverse(pose.matrix)
    position = _turned(target, inverse)
    if pose.elastic is not None:
        for _ in range(4):
            position = _turned(target - _displacement(position, pose, size), inverse)
    return (position + pose.crop / 2) * (size / pose.crop)


def move_minutiae(minutiae: torch.Tensor, pose: Pose, canvas: int, size: int) -> torch.Tensor:
    """Carries minutiae through the transform that `resample` applies to the pixels.

    Args:
        minutiae: (B, M, 4) x, y in canvas pixels (the centre of the first pixel is 0.5), angle, quality.
        pose: the transform.
        canvas: side of the canvas, pixels.
        size: side of the input, pixels.

    Returns:
        (B, M, 4) in input pixels; the angle follows a short step along the minutia's direction.
    """
    point, angle = minutiae[..., :2], minutiae[..., 2]
    step = torch.stack([steady(torch.cos, angle), -steady(torch.sin, angle)], dim=-1)
    start, end = _to_input(torch.cat([point, point + step], dim=1), pose, canvas, size).chunk(2, dim=1)
    moved = end - start
    turned = steady(lambda step: torch.atan2(-step[..., 1:], step[..., :1]), moved)
    return torch.cat([start, turned, minutiae[..., 3:]], dim=-1)
