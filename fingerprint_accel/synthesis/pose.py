"""Where a finger lies on the canvas of its synthetic prints: the exact truth that an alignment network learns from."""

from __future__ import annotations

import torch

from fingerprint_accel.synthesis.impressions import impression_keys
from fingerprint_accel.synthesis.orientation import finger_size
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import flow_keys
from fingerprint_accel.synthesis.touch import Touch


@torch.no_grad()
def finger_pose(seed: int, fingers: torch.Tensor, impressions: torch.Tensor, style: Style) -> torch.Tensor:
    """How each print has to be turned and shifted so that its finger stands upright in the middle of the canvas.

    Args:
        seed: of the fingers.
        fingers: (N,) int64 numbers.
        impressions: (N,) int64 from 0.
        style: of the impressions.

    Returns:
        (N, 3) float32, rotation in radians and shift along x and y in canvas pixels, as in `preprocess.augment.Pose`:
        the pixel at u from the centre of the upright picture is at rotation @ u + shift from the centre of the canvas.
    """
    size = finger_size(flow_keys(seed, fingers, style.siblings))
    return Touch(size, impression_keys(seed, fingers, impressions), style).pose()
