"""How far an alignment network is from the truth, and how much of the finger two touches share.

A pose says where a point of the upright finger lies on the canvas (`preprocess.augment.Pose`). The plastic distortion
of a touch, up to about a millimetre, is left out of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fingerprint_accel.preprocess.geometric import Pose, resample, turned_and_shifted

FIELD_MM, CELL_MM = 44.0, 0.25  # of the square around the finger's middle in which contacts are compared
PERCENTILES = (2, 5, 25, 50, 75, 95, 98)
CLASSES = {"below 50 %": (0.0, 0.5), "50 to 75 %": (0.5, 0.75), "above 75 %": (0.75, math.inf)}
"""Of overlap, from the first bound to below the second."""


def true_pose(truth: torch.Tensor, crop: float) -> Pose:
    """truth (N, 3) as of `synthesis.touch.Touch.pose`, radians and canvas pixels -> the same as a pose."""
    return turned_and_shifted(torch.cat([truth[:, :1], truth[:, 1:] / (crop / 2)], dim=1), crop)


def degrees(pose: Pose) -> torch.Tensor:
    """(N,) rotation, clockwise positive."""
    return torch.rad2deg(torch.atan2(pose.matrix[:, 1, 0], pose.matrix[:, 0, 0]))


def on_finger(skin: torch.Tensor, pose: Pose, mm: float) -> torch.Tensor:
    """Where on the finger its prints show skin.

    Args:
        skin: (N, canvas, canvas) bool.
        pose: true pose of each print.
        mm: side of a canvas pixel.

    Returns:
        (N, S, S) bool over a square of `FIELD_MM` around the middle of the finger.
    """
    field = Pose(pose.matrix, pose.shift, None, FIELD_MM / mm)
    return resample(skin[:, None].float(), field, round(FIELD_MM / CELL_MM))[:, 0] > 0.5


def overlaps(contacts: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What two contacts share, as a share of the smaller one, and where its middle is.

    Args:
        contacts: (N, S, S) of `on_finger`.
        pairs: (n, 2) rows.

    Returns:
        (n,) share, and (n, 2) middle in mm from that of the finger, x and y (down); NaN where nothing is shared.
    """
    axis = (torch.arange(contacts.shape[-1]) + 0.5) * CELL_MM - FIELD_MM / 2
    area = contacts.sum(dim=(1, 2))
    shares, middles = [], []
    for first, second in pairs.tolist():
        both = (contacts[first] & contacts[second]).float()
        shared = both.sum()
        shares.append(shared / torch.minimum(area[first], area[second]).clamp_min(1))
        middles.append(torch.stack([(both.sum(0) * axis).sum(), (both.sum(1) * axis).sum()]) / shared)
    return torch.stack(shares), torch.stack(middles)


def found_at(points: torch.Tensor, truth: Pose, predicted: Pose) -> torch.Tensor:
    """points (N, 2) of the finger, canvas pixels from its middle -> (N, 2): which points of the finger the predicted
    pose takes them for."""
    back = predicted.inverse()
    on_canvas = (truth.matrix @ points[:, :, None])[:, :, 0] + truth.shift
    return (back.matrix @ on_canvas[:, :, None])[:, :, 0] + back.shift


def print_errors(truth: Pose, predicted: Pose, mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) mm by which the middle of the finger is missed, and (N,) degrees."""
    middle = torch.zeros_like(truth.shift)
    return found_at(middle, truth, predicted).norm(dim=1) * mm, _between(degrees(truth), degrees(predicted))


def pair_errors(
    truth: Pose, predicted: Pose, pairs: torch.Tensor, middles: torch.Tensor, mm: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of the relative pose of two prints of a finger; what both miss alike does not count.

    Args:
        truth, predicted: poses of N prints.
        pairs: (n, 2) rows.
        middles: (n, 2) mm, the point of the finger at which they are compared: the middle of what they share.
        mm: side of a canvas pixel.

    Returns:
        (n,) mm between the places where the two aligned prints show that point, and (n,) degrees.
    """
    first, second = pairs.unbind(1)
    points = middles / mm
    apart = found_at(points, rows_of(truth, first), rows_of(predicted, first)) - found_at(
        points, rows_of(truth, second), rows_of(predicted, second)
    )
    missed = degrees(predicted) - degrees(truth)
    return apart.norm(dim=1) * mm, _between(missed[first], missed[second])


def rows_of(pose: Pose, rows: torch.Tensor) -> Pose:
    """The poses of some prints."""
    return Pose(pose.matrix[rows], pose.shift[rows], None, pose.crop)


def summary(values: torch.Tensor, percentiles: Sequence[float]) -> list[float]:
    """Percentiles of (N,) values; NaN where there are none."""
    found = np.percentile(values.double().numpy(), percentiles) if len(values) else [math.nan] * len(percentiles)
    return [float(value) for value in found]


def _between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Smallest turn between two directions in degrees."""
    return (torch.remainder(first - second + 180, 360) - 180).abs()
