"""From uint8 canvases on the device to the network's input."""

from __future__ import annotations

import torch
from torch import nn

from fingerprint_accel.config import PreprocessConfig
from fingerprint_accel.data.batch import Batch
from fingerprint_accel.errors import UserError
from fingerprint_accel.preprocess.augment import move_minutiae, random_pose, resample, upright
from fingerprint_accel.preprocess.enhance import Enhancer
from fingerprint_accel.preprocess.minutia_map import minutia_maps
from fingerprint_accel.preprocess.normalize import local_normalize
from fingerprint_accel.preprocess.quality import degrade, noise_tile
from fingerprint_accel.random import sample_keys

PERIOD = 0.0187  # inch: usual distance between ridges, 5.6 pixels at 300 ppi
WINDOW = 0.11  # inch: six ridges


class Preprocessor(nn.Module):
    """Crops, augments, enhances and normalises whole batches. Has no parameters and no state worth saving.

    Args:
        config: what to do.
        canvas: side of the canvases, pixels.
        seed: of the augmentation.
        ppi: resolution of the canvases, pixels per inch.

    Raises:
        UserError: the crop is larger than the canvas.
    """

    tile: torch.Tensor

    def __init__(self, config: PreprocessConfig, canvas: int, seed: int = 0, ppi: int = 300) -> None:
        super().__init__()
        if config.crop > canvas:
            raise UserError(f"preprocess.crop {config.crop} is larger than the canvas {canvas}; lower it, or re-import")
        self.config, self.canvas, self.seed = config, canvas, seed
        self.register_buffer("tile", noise_tile(seed), persistent=False)
        self.input_ppi = ppi * config.size / config.crop
        self.enhancer = Enhancer(PERIOD * self.input_ppi) if config.enhance else None

    @torch.no_grad()
    def forward(
        self, batch: Batch, augment: bool, maps: bool = False, strength: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A batch on the device -> (B, 1, S, S) float32 input, and (B, 6, M, M) minutia maps if asked for.

        The augmentation of a print depends on the seed, its epoch and its index, not on the batch it is in;
        `strength`, 0 to 1, multiplies every amplitude.
        """
        config = self.config
        amplitudes = config.augment.scaled(strength)
        with torch.autocast(batch.image.device.type, enabled=False):
            ink = _ink(batch.image)
            augment = augment and config.augment.enabled
            keys = sample_keys(self.seed, batch.epoch, batch.index)
            if augment:
                pose = random_pose(keys, amplitudes, config.crop, config.size)
            else:
                pose = upright(len(batch), float(config.crop), ink.device)
            ink = resample(ink, pose, config.size)
            if augment:
                ink = degrade(ink, keys, amplitudes, self.tile)
            drawn = None
            if maps:
                moved = move_minutiae(batch.minutiae, pose, self.canvas, config.size)
                drawn = minutia_maps(moved, batch.minutia_count, config.size, config.map_size, config.map_sigma)
            return self._finish(ink), drawn

    @torch.no_grad()
    def images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W) uint8 canvases -> (B, 1, S, S) float32 input, without augmentation."""
        with torch.autocast(images.device.type, enabled=False):
            pose = upright(len(images), float(self.config.crop), images.device)
            return self._finish(resample(_ink(images), pose, self.config.size))

    def _finish(self, ink: torch.Tensor) -> torch.Tensor:
        if self.enhancer is not None:
            ink = self.enhancer(ink)
        if self.config.normalize == "local":
            return local_normalize(ink, round(WINDOW * self.input_ppi))
        return ink


def _ink(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W) uint8, ridges dark -> (B, 1, H, W) float32, 0 for white and 1 for black."""
    return (255 - images)[:, None].float() / 255
