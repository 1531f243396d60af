"""Errors of an alignment network, and the overlap of two touches of a finger.

A pose maps a point of the upright finger to the canvas (`preprocess.geometric.Pose`). The plastic distortion of a
touch, up to about a millimetre, is not part of either pose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fingerprint_accel.preprocess.geometric import Pose, resample, turned_and_shifted

FIELD_MM, CELL_MM = 44.0, 0.25  # side and resolution of the square in which contacts are compared
PERCENTILES = (2, 5, 25, 50, 75, 95, 98)
CLASSES = {"below 50 %": (0.0, 0.5), "50 to 75 %": (0.5, 0.75), "above 75 %": (0.75, math.inf)}
"""Groups of overlap, from the first bound to below the second."""


def true_pose(truth: torch.Tensor, crop: float) -> Pose:
    """Convert the truth (N, 3) of rendered prints to a `Pose`.

    Args:
        truth: Rotation in radians and shift in canvas pixels, as in `synthesis.touch.Touch.pose`.
        crop: Side of the network's view, canvas pixels.
    """
    return turned_and_shifted(torch.cat([truth[:, :1], truth[:, 1:] / (crop / 2)], dim=1), crop)


def degrees(pose: Pose) -> torch.Tensor:
    """Return the rotation (N,) of each pose in degrees, clockwise positive."""
    return torch.rad2deg(torch.atan2(pose.matrix[:, 1, 0], pose.matrix[:, 0, 0]))


def on_finger(skin: torch.Tensor, pose: Pose, mm: float) -> torch.Tensor:
    """Return where on the finger its prints show skin.

    Args:
        skin: (N, canvas, canvas) bool.
        pose: True pose of each print.
        mm: Side of a canvas pixel.

    Returns:
        (N, S, S) bool over a square of `FIELD_MM` around the middle of the finger.
    """
    field = Pose(pose.matrix, pose.shift, None, FIELD_MM / mm)
    return resample(skin[:, None].float(), field, round(FIELD_MM / CELL_MM))[:, 0] > 0.5


def overlaps(contacts: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the common area of two contacts.

    Args:
        contacts: (N, S, S) bool of `on_finger`.
        pairs: (n, 2) rows.

    Returns:
        The common area (n,) as a share of the smaller contact, and its middle (n, 2) in mm from the middle of the
        finger, x and y (down). The middle is NaN for pairs without a common area.
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
    """Return the points of the finger for which the predicted pose mistakes the given points.

    Args:
        points: (N, 2) points of the finger, canvas pixels from its middle.
        truth: True poses.
        predicted: Predicted poses.

    Returns:
        (N, 2) points of the finger, canvas pixels from its middle.
    """
    back = predicted.inverse()
    on_canvas = (truth.matrix @ points[:, :, None])[:, :, 0] + truth.shift
    return (back.matrix @ on_canvas[:, :, None])[:, :, 0] + back.shift


def print_errors(truth: Pose, predicted: Pose, mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distance (N,) in mm between true and predicted middle of the finger, and the turn (N,) in degrees."""
    middle = torch.zeros_like(truth.shift)
    return found_at(middle, truth, predicted).norm(dim=1) * mm, _between(degrees(truth), degrees(predicted))


def pair_errors(
    truth: Pose, predicted: Pose, pairs: torch.Tensor, middles: torch.Tensor, mm: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the errors of the relative pose of two prints of a finger. Errors that both prints share cancel.

    Args:
        truth: True poses of N prints.
        predicted: Predicted poses of N prints.
        pairs: (n, 2) rows.
        middles: (n, 2) mm, point of the finger at which the prints are compared: the middle of their common area.
        mm: Side of a canvas pixel.

    Returns:
        The distance (n,) in mm between the places at which the two aligned prints show that point, and the turn (n,) in
        degrees.
    """
    first, second = pairs.unbind(1)
    points = middles / mm
    apart = found_at(points, rows_of(truth, first), rows_of(predicted, first)) - found_at(
        points, rows_of(truth, second), rows_of(predicted, second)
    )
    missed = degrees(predicted) - degrees(truth)
    return apart.norm(dim=1) * mm, _between(missed[first], missed[second])


def rows_of(pose: Pose, rows: torch.Tensor) -> Pose:
    """Select the poses of some prints."""
    return Pose(pose.matrix[rows], pose.shift[rows], None, pose.crop)


def summary(values: torch.Tensor, percentiles: Sequence[float]) -> list[float]:
    """Return percentiles of (N,) values, or NaN if there are none."""
    found = np.percentile(values.double().numpy(), percentiles) if len(values) else [math.nan] * len(percentiles)
    return [float(value) for value in found]


def _between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the smallest turn between two directions in degrees."""
    return (torch.remainder(first - second + 180, 360) - 180).abs()
