"""The alignment network in front of the `Loc` variants: where on its canvas a finger lies, and how it is turned.

DeepPrint regresses one pose (Jaderberg et al. 2015; Engelsma, Cao and Jain 2019). Here the network answers with a
probability for each place and each angle, so that an unclear print can name two places.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.models.backbones import Residual, compact_stem

PLACES, REACH = 24, 1.2  # bins along each axis, and how far they reach from the middle, in half sides of the input
ANGLES, TURN = 36, math.pi / 2  # bins, and the largest rotation to either side, radians
SPREAD = 0.8  # bins, standard deviation of the target around the truth
NEAR = 2  # bins around the best one that its mean is taken over
APART = 3  # bins by which two hypotheses differ at least


class PoseLogits(NamedTuple):
    """What the alignment network says of a batch.

    Attributes:
        place: (B, PLACES, PLACES) logits of the shift: rows along y, columns along x.
        angle: (B, ANGLES) logits of the rotation.
    """

    place: torch.Tensor
    angle: torch.Tensor


def bin_centres(count: int, reach: float, device: torch.device) -> torch.Tensor:
    """(count,) centres of `count` bins between -reach and reach."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * (2 * reach / count) - reach


class AlignmentNetwork(nn.Module):
    """Predicts rotation and shift of each print and resamples the print accordingly. Starts as the identity.

    Args:
        norm: "batch" or "group".
    """

    WIDTH, SIDE = 24, 160

    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        width = self.WIDTH
        self.features = nn.Sequential(
            compact_stem(width, norm),
            Residual(2 * width, 64, 2, norm),
            Residual(64, 96, 2, norm),
            nn.Conv2d(96, 48, 1),
            nn.AdaptiveAvgPool2d(10),
            nn.Flatten(),
        )
        last = nn.Linear(256, PLACES**2 + ANGLES)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(48 * 100, 256), nn.ReLU(inplace=True), last)

    def logits(self, image: torch.Tensor) -> PoseLogits:
        """image (B, 1, S, S) -> logits over shifts and rotations, float32."""
        if image.shape[-1] > self.SIDE:
            image = _smaller(image, self.SIDE)
        place, angle = self.head(self.features(image)).float().split([PLACES**2, ANGLES], dim=1)
        return PoseLogits(place.unflatten(1, (PLACES, PLACES)), angle)

    def transform(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 1, S, S) -> (B, 3): rotation in radians, shift along x and y in half sides.

        The best hypothesis; in training mode with the gradient of `expected`.
        """
        return best_or_mean(self.logits(image), self.training)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 1, S, S) -> the same, aligned."""
        return aligned(image, self.transform(image), "bicubic")  # ridges are 3 pixels wide: bilinear would blur them


class FlxAlignmentNetwork(nn.Module):
    """The alignment network of flx: four convolutions without activations, and one pose without bounds."""

    SIDE = 128

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = [1, 24, 32, 48, 64]
        for depth in range(4):
            size = 5 if depth == 0 else 3
            layers += [nn.Conv2d(channels[depth], channels[depth + 1], size, padding=size // 2), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        last = nn.Linear(64, 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(64 * (self.SIDE // 16) ** 2, 64), nn.ReLU(inplace=True), last)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 1, S, S) -> the same, aligned."""
        small = _smaller(image, self.SIDE)
        return aligned(image, self.head(self.features(small).flatten(1)).float(), "bilinear")


def _smaller(image: torch.Tensor, side: int) -> torch.Tensor:
    # on a CPU, torch scales with antialiasing in float32 only
    return F.interpolate(image.float(), size=(side, side), mode="bilinear", antialias=True).to(image.dtype)


def aligned(image: torch.Tensor, transform: torch.Tensor, mode: str) -> torch.Tensor:
    """image (B, 1, S, S), transform (B, 3) as of `AlignmentNetwork.transform` -> (B, 1, S, S), resampled."""
    angle, shift_x, shift_y = transform.unbind(1)
    with torch.autocast(image.device.type, enabled=False):
        rows = [
            torch.stack([angle.cos(), -angle.sin(), shift_x], dim=1),
            torch.stack([angle.sin(), angle.cos(), shift_y], dim=1),
        ]
        grid = F.affine_grid(torch.stack(rows, dim=1), list(image.shape), align_corners=False)
        return F.grid_sample(image.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)


def expected(found: PoseLogits) -> torch.Tensor:
    """Mean pose over all bins, (B, 3) as of `AlignmentNetwork.transform`."""
    place, angle = found.place.flatten(1).softmax(1).view_as(found.place), found.angle.softmax(1)
    centres = bin_centres(PLACES, REACH, place.device)
    x, y = place.sum(dim=1) @ centres, place.sum(dim=2) @ centres
    return torch.stack([angle @ bin_centres(ANGLES, TURN, angle.device), x, y], dim=1)


def best_or_mean(found: PoseLogits, training: bool) -> torch.Tensor:
    """The best hypothesis, (B, 3); in training mode with the gradient of the mean over all bins, since that of a peak
    does not reach beyond the bins around it."""
    best = hypotheses(found, 1)[0][:, 0]
    if not training:
        return best
    mean = expected(found)
    return best.detach() + mean - mean.detach()


def hypotheses(found: PoseLogits, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable poses: peaks of the place at the most probable angle.

    A peak is the mean over the bins around the most probable bin. The next peak is looked for elsewhere. An untrained
    network, for which all bins are alike, answers with the identity.

    Args:
        found: of the network.
        count: H, how many.

    Returns:
        (B, H, 3) as of `AlignmentNetwork.transform`, and (B, H) the probability around each.
    """
    place, angle = found.place.flatten(1).softmax(1).view_as(found.place), found.angle.softmax(1)
    flat = place.flatten(1).amax(1) * PLACES**2 < 1.5  # (B,) no peak
    index = torch.arange(PLACES, device=place.device)
    near_angle = (torch.arange(ANGLES, device=angle.device) - angle.argmax(1)[:, None]).abs() <= NEAR
    turn = (angle * near_angle) @ bin_centres(ANGLES, TURN, angle.device) / (angle * near_angle).sum(dim=1)
    mean, centres = expected(found), bin_centres(PLACES, REACH, place.device)
    poses, confidence, left = [], [], place
    for _ in range(count):
        best = left.flatten(1).argmax(1)
        row, column = best // PLACES, best % PLACES
        off_y, off_x = (index - row[:, None]).abs(), (index - column[:, None]).abs()
        window = (off_y <= NEAR)[:, :, None] * (off_x <= NEAR)[:, None] * place
        mass = window.sum(dim=(1, 2))
        x, y = window.sum(dim=1) @ centres / mass, window.sum(dim=2) @ centres / mass
        poses.append(torch.where(flat[:, None], mean, torch.stack([turn, x, y], dim=1)))
        confidence.append(mass)
        left = left.masked_fill((off_y <= APART)[:, :, None] & (off_x <= APART)[:, None], 0.0)
    return torch.stack(poses, dim=1), torch.stack(confidence, dim=1)


def pose_loss(found: PoseLogits, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the bins against a bell around the true pose, mean over the batch.

    Args:
        found: of the network.
        truth: (B, 3) as of `AlignmentNetwork.transform`; what lies beyond the bins counts at their edge. Prints with
            NaN count as 0.

    Returns:
        () float32.
    """
    known = truth.isfinite().all(dim=1)
    truth = truth.nan_to_num()
    angle = _bell(truth[:, 0], ANGLES, TURN)
    x, y = _bell(truth[:, 1], PLACES, REACH), _bell(truth[:, 2], PLACES, REACH)
    place = (y[:, :, None] * x[:, None, :]).flatten(1)
    by_place = -(place * found.place.flatten(1).log_softmax(1)).sum(dim=1)
    by_angle = -(angle * found.angle.log_softmax(1)).sum(dim=1)
    return ((by_place + by_angle) * known).mean()


def _bell(value: torch.Tensor, count: int, reach: float) -> torch.Tensor:
    """value (B,) -> (B, count), shares of the bins around it."""
    step = 2 * reach / count
    value = value.clamp(-reach + step / 2, reach - step / 2)
    off = (bin_centres(count, reach, value.device) - value[:, None]) / (step * SPREAD)
    return (-0.5 * off.square()).softmax(1)
