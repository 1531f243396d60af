"""Convert uint8 canvases to the input of the network, on the device.

A canvas is the square image on which a print is stored.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.config import PreprocessConfig
from fingerprint_accel.data.batch import Batch
from fingerprint_accel.data.truth import GRID
from fingerprint_accel.errors import require
from fingerprint_accel.preprocess.coarse import cell_means, chunks, grow, local_means
from fingerprint_accel.preprocess.enhance import PERIOD, Enhancer
from fingerprint_accel.preprocess.geometric import (
    Pose,
    middle,
    move_minutiae,
    pose_left,
    random_pose,
    resample,
    upright,
)
from fingerprint_accel.preprocess.minutia_map import minutia_maps
from fingerprint_accel.preprocess.photometric import Quality, degrade, noise_tile, random_quality
from fingerprint_accel.random import sample_keys
from fingerprint_accel.synthesis.geometry import cell_shares

MM_PER_INCH = 25.4
WINDOW = 0.11  # side of the normalisation window, inches; about six ridges
CELLS = 32  # cells along each side of the contact mask that the network is trained with
SHARE = 0.35  # a cell is classified as contact if its darkness exceeds this share of the typical darkness of the print
DARKNESS = 0.02  # a cell below this mean darkness is never classified as contact; 0 is white, 1 is black
CELL = 4  # side in pixels of the cells on which local statistics are computed
LIMIT = 3.0  # standard deviations at which normalised values are clipped


def local_normalize(ink: torch.Tensor, window: int, floor: float = 0.06) -> torch.Tensor:
    """Subtract the local mean, divide by the local standard deviation, and clip.

    Args:
        ink: (B, 1, S, S) in 0..1, ridges bright.
        window: side of the neighbourhood, pixels.
        floor: value added to the standard deviation, so that the background stays near 0.

    Returns:
        (B, 1, S, S) between -1 and 1, ridges positive. A difference of `LIMIT` standard deviations gives 1.
    """
    cells = max(1, round(window / CELL)) | 1
    mean, square = (local_means(values, CELL, cells) for values in (ink, ink * ink))
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    slope = 1 / (LIMIT * (deviation + floor))
    size = ink.shape[-1]
    return torch.addcmul(grow(-mean * slope, CELL, size), ink, grow(slope, CELL, size)).clamp_(-1, 1)


@torch.no_grad()
def contact_grid(contact: torch.Tensor, pose: Pose, cells: int, canvas: int) -> torch.Tensor:
    """Compute how much of each cell of the network input is in contact with the finger.

    Args:
        contact: (B, GRID, GRID) bool or 0..1, cells of the canvas that are in contact with the finger (see
            `Batch.contact` and `ink_contact`).
        pose: map from the input to the canvas. Its elastic part is ignored.
        cells: number of cells along each side of the input.
        canvas: side of the canvas, pixels.

    Returns:
        (B, cells, cells) float32 in 0..1; 0 outside the canvas.
    """
    unit = canvas / GRID  # side of a cell of `contact`, canvas pixels
    in_cells = Pose(pose.matrix, pose.shift / unit, None, pose.crop / unit)
    samples = max(1, math.ceil(2 * in_cells.crop / cells))  # points along a cell side; two per cell of `contact`
    with torch.autocast(contact.device.type, enabled=False):
        taken = resample(contact[:, None].float(), in_cells, cells * samples)
        return cell_means(taken, samples)[:, 0].clamp_(0, 1)


@torch.no_grad()
def ink_contact(images: torch.Tensor) -> torch.Tensor:
    """Estimate from the ink which cells of the canvas are in contact with the finger.

    Imported prints have a white background. A cell is classified as contact if its mean darkness exceeds a share of the
    typical darkness of the print. The threshold is relative, so that it works for faint prints and excludes the sensor
    background. Gaps of one cell are closed. The mean intersection over union with the true contact is 0.92 to 0.96 on
    synthetic prints (48 prints for each quality).

    Args:
        images: (B, S, S) uint8 canvases, ridges dark.

    Returns:
        (B, GRID, GRID) bool.
    """
    size = images.shape[-1]
    shares = cell_shares(size, images.device) / size
    with torch.autocast(images.device.type, enabled=False):
        darkness = shares @ (images.bitwise_not().float() / 255) @ shares.T
        # mean darkness of the cells, weighted by darkness
        usual = darkness.square().sum(dim=(1, 2)) / darkness.sum(dim=(1, 2)).clamp_min(1e-6)
        there = darkness > (SHARE * usual).clamp_min(DARKNESS)[:, None, None]
        grown = F.max_pool2d(F.pad(there[:, None].float(), (1, 1, 1, 1)), 3, 1, 1)
        return -F.max_pool2d(-grown, 3, 1)[:, 0] > 0


class Preprocessor(nn.Module):
    """Module that crops, augments, enhances and normalises batches of canvases on the device.

    The module has no parameters, and checkpoints contain none of its tensors.

    Args:
        config: options of the preprocessing and the augmentation.
        canvas: side of the canvases, pixels.
        seed: random seed of the augmentation.
        ppi: resolution of the canvases, pixels per inch.

    Raises:
        UserError: if the crop is larger than the canvas.
    """

    tile: torch.Tensor

    def __init__(self, config: PreprocessConfig, canvas: int, seed: int = 0, ppi: int = 300) -> None:
        super().__init__()
        fits = config.crop <= canvas
        require(fits, f"preprocess.crop {config.crop} is larger than the canvas {canvas}; lower it, or re-import")
        self.config, self.canvas, self.seed = config, canvas, seed
        self.register_buffer("tile", noise_tile(seed, config.size), persistent=False)
        self.input_ppi = ppi * config.size / config.crop
        self.enhancer = Enhancer(PERIOD * self.input_ppi) if config.enhance else None

    def compile(self) -> None:
        """Compile the per-pixel operations. Call this method after moving the module to its device.

        On a CPU, the method does nothing, because compiled code takes 1.5 to 1.9 times as long as uncompiled code. The
        results of compiled code also depend on the position of a print in the batch.
        """
        if self.tile.device.type == "cpu":
            return
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        self.pixels = torch.compile(self.pixels, dynamic=False)  # type: ignore[method-assign]

    @property
    def compiled(self) -> bool:
        """Whether the per-pixel operations are compiled."""
        return "pixels" in vars(self)

    @torch.no_grad()
    def forward(
        self,
        batch: Batch,
        augment: bool,
        maps: bool = False,
        strength: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Convert a batch to the input of the network.

        The augmentation of a print depends on the seed, the epoch and the index of the print, not on the batch.

        Args:
            batch: batch on the device.
            augment: whether to apply the augmentation.
            maps: whether to draw minutia maps, too.
            strength: factor in 0..1 applied to every augmentation amplitude.
            dtype: data type of the result.

        Returns:
            Network input (B, 1, S, S), where S is `config.size`, and minutia maps (B, 6, M, M), where M is
            `minutia_map.MAP_SIZE`, or None.
        """
        config, device = self.config, batch.image.device
        with torch.autocast(device.type, enabled=False):
            pose, quality = self._pose(batch, augment, strength), None
            if augment and config.augment.enabled:
                keys = sample_keys(self.seed, batch.epoch, batch.index)
                quality = random_quality(keys, config.augment.scaled(strength), config.size)
            inputs = self._inputs(batch.image, pose, quality, dtype)
            if not maps:
                return inputs, None
            moved = move_minutiae(batch.minutiae, pose, self.canvas, config.size)
            return inputs, minutia_maps(moved, batch.minutia_count, config.size, dtype=dtype)

    @torch.no_grad()
    def truth(self, batch: Batch, augment: bool, strength: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the true alignment and contact of the network input that `forward` returns, as training targets.

        Args:
            batch: batch on the device.
            augment, strength: the same as in the call of `forward`.

        Returns:
            Transforms (B, 3) that align the finger: rotation in radians, and shift along x and y in units of half the
            input side; NaN where unknown. Contact (B, CELLS, CELLS): share of each cell of the input that is in contact
            with the finger.
        """
        with torch.autocast(batch.image.device.type, enabled=False):
            pose, contact = self._pose(batch, augment, strength), ink_contact(batch.image)
            left = pose.shift.new_full((len(batch), 3), math.nan)
            if batch.pose is not None and batch.contact is not None:
                left = pose_left(pose, batch.pose)
                contact = torch.where(batch.pose[:, :1, None].isnan(), contact, batch.contact)
            return left, contact_grid(contact, pose, CELLS, self.canvas)

    def _pose(self, batch: Batch, augment: bool, strength: float) -> Pose:
        config = self.config
        if not (augment and config.augment.enabled):
            return upright(len(batch), float(config.crop), batch.image.device)
        keys = sample_keys(self.seed, batch.epoch, batch.index)
        return random_pose(keys, config.augment.scaled(strength), config.crop)

    @torch.no_grad()
    def images(self, images: torch.Tensor, pose: Pose | None = None, quality: Quality | None = None) -> torch.Tensor:
        """Convert canvases to the input of the network, without a `Batch`.

        Args:
            images: (B, H, W) uint8 canvases, ridges dark.
            pose: map from the input to the canvas. The default is the upright centre of the canvas.
            quality: parameters of the degradation. By default, the canvases are not degraded.

        Returns:
            (B, 1, S, S) float32, where S is `config.size`.
        """
        with torch.autocast(images.device.type, enabled=False):
            if pose is None:
                pose = upright(len(images), float(self.config.crop), images.device)
            return self._inputs(images, pose, quality, torch.float32)

    def _inputs(self, images: torch.Tensor, pose: Pose, quality: Quality | None, dtype: torch.dtype) -> torch.Tensor:
        """Convert canvases to the input of the network, in chunks that fit into the CPU caches.

        Args:
            images: (B, H, W) uint8 canvases, ridges dark.
            pose: map from the input to the canvas.
            quality: parameters of the degradation, or None for no degradation.
            dtype: data type of the result.

        Returns:
            (B, 1, S, S), where S is `config.size`.
        """
        size = self.config.size
        inputs = torch.empty(len(images), 1, size, size, dtype=dtype, device=images.device)
        for rows in chunks(len(images), max(size**2, self.canvas**2 // 4), images.device):
            inputs[rows] = self.pixels(images[rows], pose[rows], None if quality is None else quality[rows])
        return inputs

    def pixels(self, images: torch.Tensor, pose: Pose | None, quality: Quality | None = None) -> torch.Tensor:
        """Apply all per-pixel operations: resample, degrade, enhance and normalise.

        This method is compiled and exported.

        Args:
            images: (B, H, W) uint8 canvases, ridges dark.
            pose: map from the input to the canvas; None for the upright centre of the canvas, see `middle`.
            quality: parameters of the degradation, or None for no degradation.

        Returns:
            (B, 1, S, S) float32, where S is `config.size`.
        """
        ink, size = _ink(images), self.config.size
        ink = middle(ink, self.config.crop, size) if pose is None else resample(ink, pose, size)
        if quality is not None:
            ink = degrade(ink, quality, self.tile)
        if self.enhancer is not None:
            ink = self.enhancer(ink)
        if self.config.normalize == "local":
            return local_normalize(ink, round(WINDOW * self.input_ppi))
        return ink


def _ink(images: torch.Tensor) -> torch.Tensor:
    """Convert canvases (B, H, W) uint8 with dark ridges to ink (B, 1, H, W) float32, 0 for white and 1 for black."""
    return images.bitwise_not()[:, None].float().mul_(1 / 255)
