"""Margins on the cosine between an embedding and its class (float32)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def arcface_logits(cosine: torch.Tensor, finger: torch.Tensor, scale: float, margin: float) -> torch.Tensor:
    """Additive angular margin (Deng et al. 2019, "ArcFace", CVPR).

    Where the angle plus the margin would pass pi, the logit falls linearly instead, so that it stays monotonic.

    Args:
        cosine: (B, C), cosine of the angle to each class.
        finger: (B,) own class.
        scale: of the logits.
        margin: added to the angle of the own class, radians.

    Returns:
        (B, C) logits.
    """
    own = cosine.gather(1, finger[:, None])
    clamped = own.clamp(-1 + 1e-6, 1 - 1e-6)  # the sine's slope is infinite at the ends
    sine = (1 - clamped.square()).sqrt()
    turned = clamped * math.cos(margin) - sine * math.sin(margin)
    turned = torch.where(clamped > math.cos(math.pi - margin), turned, own - math.sin(margin) * margin)
    return scale * cosine.scatter(1, finger[:, None], turned)


def cosface_logits(cosine: torch.Tensor, finger: torch.Tensor, scale: float, margin: float) -> torch.Tensor:
    """Additive cosine margin (Wang et al. 2018, "CosFace", CVPR).

    Args:
        cosine: (B, C), cosine of the angle to each class.
        finger: (B,) own class.
        scale: of the logits.
        margin: taken from the cosine of the own class.

    Returns:
        (B, C) logits.
    """
    return scale * (cosine - margin * F.one_hot(finger, cosine.shape[1]))
