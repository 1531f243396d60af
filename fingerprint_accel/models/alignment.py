"""Define the alignment networks, which predict the position and rotation of the finger and align the print.

Model variants with `Loc` in their name have an alignment network. DeepPrint regresses one position and rotation
(Jaderberg et al. 2015; Engelsma, Cao and Jain 2019). `AlignmentNetwork` predicts a probability for each position and
each rotation instead, so that it can return several hypotheses for an ambiguous print.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.models.backbones import Residual, compact_stem

PLACES, REACH = 24, 1.2  # number of bins of the shift along each axis; largest shift in units of half the input side
ANGLES, TURN = 36, math.pi / 2  # number of bins of the rotation; largest rotation to either side in radians
SPREAD = 0.8  # standard deviation of the training target, bins
NEAR = 2  # a hypothesis is the mean over the bins up to this distance from a peak
APART = 3  # bins up to this distance from a peak cannot be the next peak


class PoseLogits(NamedTuple):
    """Output of the alignment network for B prints: logits of the bins of shift and rotation.

    Attributes:
        place: (B, PLACES, PLACES) logits of the shift; rows are y, columns are x.
        angle: (B, ANGLES) logits of the rotation.
    """

    place: torch.Tensor
    angle: torch.Tensor


def bin_centres(count: int, reach: float, device: torch.device) -> torch.Tensor:
    """Return the centres of `count` equal bins between -reach and reach, as a tensor (count,)."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * (2 * reach / count) - reach


class AlignmentNetwork(nn.Module):
    """Network that predicts the rotation and shift of each finger, and resamples the print so that it is aligned.

    An untrained network predicts no rotation and no shift.

    Args:
        norm: type of the normalisation layers, "batch" or "group".
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
        """Return the logits of all shifts and rotations in float32.

        Args:
            image: (B, 1, S, S) images. Images with a side above `SIDE` are downsampled.
        """
        if image.shape[-1] > self.SIDE:
            image = _smaller(image, self.SIDE)
        place, angle = self.head(self.features(image)).float().split([PLACES**2, ANGLES], dim=1)
        return PoseLogits(place.unflatten(1, (PLACES, PLACES)), angle)

    def transform(self, image: torch.Tensor) -> torch.Tensor:
        """Return the most probable rotation and shift of each image.

        In training mode, the gradient is that of the mean over all bins, see `best_or_mean`.

        Args:
            image: (B, 1, S, S) images.

        Returns:
            (B, 3): rotation in radians, and shift along x and y in units of half the input side.
        """
        return best_or_mean(self.logits(image), self.training)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Resample images (B, 1, S, S) so that their fingers are upright and centred."""
        return aligned(image, self.transform(image), "bicubic")  # bilinear blurs ridges, which are 3 pixels wide


class FlxAlignmentNetwork(nn.Module):
    """Alignment network of flx: four convolutions without activations that regress one unbounded rotation and shift.

    flx (fixed-length-fingerprint-extractors) is an implementation of DeepPrint.
    """

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
        """Resample images (B, 1, S, S) so that their fingers are upright and centred."""
        small = _smaller(image, self.SIDE)
        return aligned(image, self.head(self.features(small).flatten(1)).float(), "bilinear")


def _smaller(image: torch.Tensor, side: int) -> torch.Tensor:
    # on a CPU, antialiased interpolation supports only float32
    return F.interpolate(image.float(), size=(side, side), mode="bilinear", antialias=True).to(image.dtype)


def aligned(image: torch.Tensor, transform: torch.Tensor, mode: str) -> torch.Tensor:
    """Resample images by the given rotations and shifts.

    Args:
        image: (B, 1, S, S) images.
        transform: (B, 3) in the format of `AlignmentNetwork.transform`.
        mode: interpolation mode of `grid_sample`, such as "bilinear".

    Returns:
        (B, 1, S, S) float32, 0 outside the images.
    """
    angle, shift_x, shift_y = transform.unbind(1)
    with torch.autocast(image.device.type, enabled=False):
        rows = [
            torch.stack([angle.cos(), -angle.sin(), shift_x], dim=1),
            torch.stack([angle.sin(), angle.cos(), shift_y], dim=1),
        ]
        grid = F.affine_grid(torch.stack(rows, dim=1), list(image.shape), align_corners=False)
        return F.grid_sample(image.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)


def expected(found: PoseLogits) -> torch.Tensor:
    """Return the mean rotation and shift over all bins, weighted by their probabilities.

    Args:
        found: output of the alignment network for B prints.

    Returns:
        (B, 3) in the format of `AlignmentNetwork.transform`.
    """
    place, angle = found.place.flatten(1).softmax(1).view_as(found.place), found.angle.softmax(1)
    centres = bin_centres(PLACES, REACH, place.device)
    x, y = place.sum(dim=1) @ centres, place.sum(dim=2) @ centres
    return torch.stack([angle @ bin_centres(ANGLES, TURN, angle.device), x, y], dim=1)


def best_or_mean(found: PoseLogits, training: bool) -> torch.Tensor:
    """Return the most probable rotation and shift, in training mode with the gradient of the mean over all bins.

    The gradient of the most probable values would reach only the bins around the peak.

    Args:
        found: output of the alignment network for B prints.
        training: whether the network is in training mode.

    Returns:
        (B, 3) in the format of `AlignmentNetwork.transform`.
    """
    best = hypotheses(found, 1)[0][:, 0]
    if not training:
        return best
    mean = expected(found)
    return best.detach() + mean - mean.detach()


def hypotheses(found: PoseLogits, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable transforms of each print: the highest peaks of the shift at the most probable rotation.

    A peak is the mean over the bins around the most probable bin. The next peak is searched more than `APART` bins
    away. For an untrained network, whose bins are equally probable, the result is no rotation and no shift.

    Args:
        found: output of the alignment network for B prints.
        count: number of transforms per print, H.

    Returns:
        Transforms (B, H, 3) in the format of `AlignmentNetwork.transform`, and the total probability (B, H) of the bins
        around each peak.
    """
    place, angle = found.place.flatten(1).softmax(1).view_as(found.place), found.angle.softmax(1)
    flat = place.flatten(1).amax(1) * PLACES**2 < 1.5  # (B,) whether the distribution has no peak
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
    """Compute the loss of the alignment network, averaged over the batch.

    The loss of a print is the cross-entropy between the predicted bins and a Gaussian around the true rotation and
    shift.

    Args:
        found: output of the alignment network for B prints.
        truth: (B, 3) in the format of `AlignmentNetwork.transform`. Values outside the bins are clamped to the border.
            A row with NaN means that the truth is unknown; the loss of this print is 0.

    Returns:
        Scalar float32 tensor.
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
    """Return a Gaussian target distribution over bins for each true value.

    Args:
        value: (B,) true values, the means of the Gaussians.
        count: number of bins.
        reach: end of the last bin; the bins cover -reach to reach.

    Returns:
        (B, count); each row has the sum 1.
    """
    step = 2 * reach / count
    value = value.clamp(-reach + step / 2, reach - step / 2)
    off = (bin_centres(count, reach, value.device) - value[:, None]) / (step * SPREAD)
    return (-0.5 * off.square()).softmax(1)
