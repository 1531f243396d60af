"""DeepPrint in its six variants (Engelsma, Cao and Jain 2019, arXiv 1909.09901)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.models import backbones
from fingerprint_accel.models.localization import Localization
from fingerprint_accel.models.output import Output


class DeepPrint(nn.Module):
    """Prints to unit-length embeddings.

    A shared stem feeds a texture branch and a minutia branch; the minutia branch also learns to draw the minutia map.
    `Loc` variants align the print first.

    Args:
        config: variant, trunk and sizes.
        map_size: side of the minutia map, pixels.
    """

    def __init__(self, config: ModelConfig, map_size: int = 128) -> None:
        super().__init__()
        self.config = config
        name = config.variant
        texture, minutia = "Tex" in name, "Minu" in name
        dims = config.embedding_dim // (texture + minutia)
        self.branch_dims = {branch: dims for branch, on in (("texture", texture), ("minutia", minutia)) if on}
        self.localization = (
            Localization(config.localization_max_degrees, config.localization_max_translation, config.trunk == "flx")
            if name.startswith("Loc")
            else None
        )
        width, norm = config.width, config.norm
        inception, plain = config.trunk != "compact", config.trunk == "flx"
        self.stem = backbones.inception_stem() if inception else backbones.compact_stem(width, norm)
        self.texture_branch = self.minutia_stem = self.minutia_map = self.minutia_branch = None
        if texture:
            self.texture_branch = (
                backbones.inception_texture(config.dropout, dims)
                if inception
                else backbones.compact_texture(width, norm, config.dropout, dims)
            )
        if minutia and inception:
            self.minutia_stem = backbones.inception_minutia_stem()
            self.minutia_map = backbones.MapDecoder(384, (128, 32), map_size, plain)
            self.minutia_branch = backbones.inception_minutia(config.dropout, dims, plain)
        elif minutia:
            self.minutia_stem = backbones.compact_minutia_stem(width, norm)
            self.minutia_map = backbones.MapDecoder(2 * width, (width, max(8, width // 4)), map_size)
            self.minutia_branch = backbones.compact_minutia(width, norm, config.dropout, dims)

    @property
    def needs_minutia_maps(self) -> bool:
        """Whether training wants minutia maps as targets."""
        return self.minutia_map is not None

    def forward(self, image: torch.Tensor) -> Output:
        """image (B, 1, S, S) float32 -> embeddings; in training mode the minutia map, else the embeddings' length."""
        if self.localization is not None:
            image = self.localization(image)
        features = self.stem(image)
        texture = minutia = maps = None
        norms = []
        if self.texture_branch is not None:
            texture, norm = _unit(self.texture_branch(features))
            norms.append(norm)
        if self.minutia_stem is not None and self.minutia_branch is not None and self.minutia_map is not None:
            deeper = self.minutia_stem(features)
            minutia, norm = _unit(self.minutia_branch(deeper))
            norms.append(norm)
            maps = self.minutia_map(deeper) if self.training else None
        return Output(texture, minutia, maps, None if self.training else torch.stack(norms).mean(dim=0))


def _unit(embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, D) -> (B, D) float32 of unit length, and (B,) the length before."""
    with torch.autocast(embedding.device.type, enabled=False):
        embedding = embedding.float()
        return F.normalize(embedding, dim=1), embedding.detach().norm(dim=1)
