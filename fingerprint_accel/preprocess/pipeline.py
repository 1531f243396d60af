"""From uint8 canvases on the device to the network's input."""

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
from fingerprint_accel.preprocess.geometric import Pose, move_minutiae, pose_left, random_pose, resample, upright
from fingerprint_accel.preprocess.minutia_map import minutia_maps
from fingerprint_accel.preprocess.photometric import Quality, degrade, noise_tile, random_quality
from fingerprint_accel.random import sample_keys
from fingerprint_accel.synthesis.geometry import cell_shares

MM_PER_INCH = 25.4
WINDOW = 0.11  # inch: six ridges
CELLS = 32  # along each side of the input, of the contact that a network learns from
SHARE = 0.35  # of the usual darkness of a print's cells, that a cell in contact has at least
DARKNESS = 0.02  # that it has at least in any print, 0 for white and 1 for black
CELL = 4  # pixels; statistics vary slowly, so they are computed on a coarser grid
LIMIT = 3.0


def local_normalize(ink: torch.Tensor, window: int, floor: float = 0.06) -> torch.Tensor:
    """Subtracts the local mean and divides by the local standard deviation.

    Args:
        ink: (B, 1, S, S) in 0..1.
        window: side of the neighbourhood, pixels.
        floor: standard deviation that is always added, so that an empty background stays near 0.

    Returns:
        (B, 1, S, S) between -1 and 1, ridges positive.
    """
    cells = max(1, round(window / CELL)) | 1
    mean, square = (local_means(values, CELL, cells) for values in (ink, ink * ink))
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    slope = 1 / (LIMIT * (deviation + floor))
    size = ink.shape[-1]
    return torch.addcmul(grow(-mean * slope, CELL, size), ink, grow(slope, CELL, size)).clamp_(-1, 1)


@torch.no_grad()
def contact_grid(contact: torch.Tensor, pose: Pose, cells: int, canvas: int) -> torch.Tensor:
    """How much of each cell of the network's input is in contact.

    Args:
        contact: (B, GRID, GRID) bool or 0..1, over the canvas (`Batch.contact`, `ink_contact`).
        pose: in which the input is taken; its elastic part is left out.
        cells: along each side of the input.
        canvas: side of the canvas, pixels.

    Returns:
        (B, cells, cells) float32 in 0..1; 0 beyond the canvas.
    """
    unit = canvas / GRID  # of the contact's cells, canvas pixels
    in_cells = Pose(pose.matrix, pose.shift / unit, None, pose.crop / unit)
    samples = max(1, math.ceil(2 * in_cells.crop / cells))  # along a cell: two for each cell of the contact
    with torch.autocast(contact.device.type, enabled=False):
        taken = resample(contact[:, None].float(), in_cells, cells * samples)
        return cell_means(taken, samples)[:, 0].clamp_(0, 1)


@torch.no_grad()
def ink_contact(images: torch.Tensor) -> torch.Tensor:
    """The contact of prints without truth, read from their ink: an import leaves white beyond the print.

    A cell counts where its mean darkness is above a share of what cells of this print have, so that faint prints count
    and what a sensor leaves beside the skin does not; gaps of a cell are closed. On 48 synthetic prints of each kind
    (`optical` clean and default, all sensors default, poor and mixed) the mean intersection over union with the truth
    is 0.96, 0.95, 0.94, 0.92 and 0.94.

    Args:
        images: (B, S, S) uint8 canvases, ridges dark.

    Returns:
        (B, GRID, GRID) bool.
    """
    size = images.shape[-1]
    shares = cell_shares(size, images.device) / size
    with torch.autocast(images.device.type, enabled=False):
        darkness = shares @ (images.bitwise_not().float() / 255) @ shares.T
        usual = darkness.square().sum(dim=(1, 2)) / darkness.sum(dim=(1, 2)).clamp_min(1e-6)  # dark cells count most
        there = darkness > (SHARE * usual).clamp_min(DARKNESS)[:, None, None]
        grown = F.max_pool2d(F.pad(there[:, None].float(), (1, 1, 1, 1)), 3, 1, 1)
        return -F.max_pool2d(-grown, 3, 1)[:, 0] > 0


class Preprocessor(nn.Module):
    """Crops, augments, enhances and normalises whole batches on their device. It has no parameters.

    Args:
        config: Crop, size, normalisation and augmentation.
        canvas: Side of the canvases in pixels, `open_dataset(folder).info.canvas`.
        seed: Seed of the augmentation.
        ppi: Resolution of the canvases in pixels per inch, `open_dataset(folder).info.ppi`.

    Raises:
        UserError: The crop is larger than the canvas.
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
        """Compiles what is done per pixel; call it when the module is on its device.

        On a CPU it stays as it is: there the compiled chain takes 1.5 to 1.9 times as long, and the end of a batch may
        get other bits than its middle.
        """
        if self.tile.device.type == "cpu":
            return
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        self.pixels = torch.compile(self.pixels, dynamic=False)  # type: ignore[method-assign]

    @property
    def compiled(self) -> bool:
        """Whether `compile` has been called, on a GPU."""
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
        """Prepare a batch for the network.

        The augmentation of a print depends on the seed, its epoch and its index, not on the batch that it is in.

        Args:
            batch: Batch of a loader, on the device of this module.
            augment: Whether to augment.
            maps: Whether to draw minutia maps, which `DeepPrintLoss` compares with those of the network.
            strength: Factor of every amplitude of the augmentation, 0 to 1.
            dtype: Type of the results.

        Returns:
            (B, 1, S, S) input of the network, and (B, 6, M, M) minutia maps or None.
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
        """Compute the pose and contact of the prints on the input that `forward` makes of them.

        Args:
            batch: Batch of a loader that was made with `truth=True`.
            augment: As in `forward`.
            strength: As in `forward`.

        Returns:
            (B, 3) rotation in radians and shift in half sides of the input that would put the finger upright in the
            middle, NaN where unknown; and (B, CELLS, CELLS) share of each part of the input that is in contact.
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
        """(B, H, W) uint8 canvases -> (B, 1, S, S) float32 input; upright, or in `pose`; as they are, or degraded."""
        with torch.autocast(images.device.type, enabled=False):
            if pose is None:
                pose = upright(len(images), float(self.config.crop), images.device)
            return self._inputs(images, pose, quality, torch.float32)

    def _inputs(self, images: torch.Tensor, pose: Pose, quality: Quality | None, dtype: torch.dtype) -> torch.Tensor:
        """(B, H, W) uint8 -> (B, 1, S, S), a few prints at a time where that is faster."""
        size = self.config.size
        inputs = torch.empty(len(images), 1, size, size, dtype=dtype, device=images.device)
        for rows in chunks(len(images), max(size**2, self.canvas**2 // 4), images.device):
            inputs[rows] = self.pixels(images[rows], pose[rows], None if quality is None else quality[rows])
        return inputs

    def pixels(self, images: torch.Tensor, pose: Pose, quality: Quality | None = None) -> torch.Tensor:
        """(B, H, W) uint8 -> (B, 1, S, S) float32, all prints at once: what is compiled and exported."""
        ink = resample(_ink(images), pose, self.config.size)
        if quality is not None:
            ink = degrade(ink, quality, self.tile)
        if self.enhancer is not None:
            ink = self.enhancer(ink)
        if self.config.normalize == "local":
            return local_normalize(ink, round(WINDOW * self.input_ppi))
        return ink


def _ink(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W) uint8, ridges dark -> (B, 1, H, W) float32, 0 for white and 1 for black."""
    return images.bitwise_not()[:, None].float().mul_(1 / 255)
