"""Where a finger lies on the canvas of its synthetic prints: the exact truth that an aligning network learns from."""

from __future__ import annotations

import torch

from fingerprint_accel.synthesis.impressions import impression_keys
from fingerprint_accel.synthesis.orientation import finger_size
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import flow_keys
from fingerprint_accel.synthesis.touch import Touch

MIDDLE_MM = (0.0, 0.3)  # of the mean contact, in the frame of the finger


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
    touch = Touch(size, impression_keys(seed, fingers, impressions), style)
    cos, sin = touch.angle.cos(), touch.angle.sin()
    across, up = MIDDLE_MM[0] - touch.spot_x, MIDDLE_MM[1] - touch.spot_y
    x = across * cos - up * sin - touch.shift_x
    y = across * sin + up * cos - touch.shift_y
    return torch.stack([-touch.angle, x / touch.mm, -y / touch.mm], dim=1).flatten(1).float()
