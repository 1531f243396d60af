"""From uint8 canvases on the device to the network's input."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fingerprint_accel.config import PreprocessConfig
from fingerprint_accel.data.batch import Batch
from fingerprint_accel.errors import UserError
from fingerprint_accel.preprocess.augment import Pose, move_minutiae, random_pose, resample, upright
from fingerprint_accel.preprocess.coarse import chunks
from fingerprint_accel.preprocess.enhance import Enhancer
from fingerprint_accel.preprocess.minutia_map import CHANNELS, minutia_maps
from fingerprint_accel.preprocess.normalize import local_normalize
from fingerprint_accel.preprocess.quality import Quality, degrade, noise_tile, random_quality
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
        self.register_buffer("tile", noise_tile(seed, config.size), persistent=False)
        self.input_ppi = ppi * config.size / config.crop
        self.enhancer = Enhancer(PERIOD * self.input_ppi) if config.enhance else None

    @torch.no_grad()
    def forward(
        self,
        batch: Batch,
        augment: bool,
        maps: bool = False,
        strength: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A batch on the device -> (B, 1, S, S) input, and (B, 6, M, M) minutia maps if asked for.

        The augmentation of a print depends on the seed, its epoch and its index, not on the batch it is in;
        `strength`, 0 to 1, multiplies every amplitude. `dtype` is that of both answers.
        """
        config, device, count = self.config, batch.image.device, len(batch)
        image = torch.empty(count, 1, config.size, config.size, dtype=dtype, device=device)
        drawn = moved = None
        if maps:
            drawn = torch.empty(count, CHANNELS, config.map_size, config.map_size, dtype=dtype, device=device)
        with torch.autocast(device.type, enabled=False):
            pose, quality = upright(count, float(config.crop), device), None
            if augment and config.augment.enabled:
                amplitudes = config.augment.scaled(strength)
                keys = sample_keys(self.seed, batch.epoch, batch.index)
                pose, quality = random_pose(keys, amplitudes, config.crop), random_quality(keys, amplitudes, config.size)
            if maps:
                moved = move_minutiae(batch.minutiae, pose, self.canvas, config.size)
            for rows in self._runs(count, device):
                image[rows] = self._pixels(batch.image[rows], pose[rows], None if quality is None else quality[rows])
                if drawn is not None and moved is not None:
                    drawn[rows] = minutia_maps(
                        moved[rows], batch.minutia_count[rows], config.size, config.map_size, config.map_sigma, dtype
                    )
        return image, drawn

    @torch.no_grad()
    def images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W) uint8 canvases -> (B, 1, S, S) float32 input, without augmentation."""
        config = self.config
        with torch.autocast(images.device.type, enabled=False):
            pose = upright(len(images), float(config.crop), images.device)
            runs = self._runs(len(images), images.device)
            return torch.cat([self._pixels(images[rows], pose[rows], None) for rows in runs])

    def _runs(self, count: int, device: torch.device) -> Iterator[slice]:
        return chunks(count, max(self.config.size**2, self.canvas**2 // 4), device)

    def _pixels(self, images: torch.Tensor, pose: Pose, quality: Quality | None) -> torch.Tensor:
        """(B, H, W) uint8 -> (B, 1, S, S) float32."""
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
