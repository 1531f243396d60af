"""Define the vision transformer trunks (Dosovitskiy et al. 2021, arXiv 2010.11929).

The paper is "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale". Patch embedding and blocks
come from timm. This module is imported on demand, because importing timm takes seconds.

As in Beyer et al. 2022 ("Better plain ViT baselines for ImageNet-1k", arXiv 2205.01580), position embeddings are fixed
sines and cosines, and the embedding is the mean over tokens. There is no class token. The trunks accept every input
size.
"""

from __future__ import annotations

import math

import torch
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import nn

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.models.backbones import MapDecoder
from fingerprint_accel.models.trunks import TrunkParts

PATCH = 16  # side of a patch, pixels
HEADS = {"vit_small": 6, "vit_base": 12}  # attention heads; each has 2 * width channels


def vit_parts(config: ModelConfig, dims: int) -> TrunkParts:
    """Return functions that make the parts of a vision transformer; see `trunks.trunk_parts`.

    Four of the twelve blocks are in the stem. Each branch has the remaining eight blocks.
    """
    heads = HEADS[config.trunk]
    channels = 2 * config.width * heads  # D, dimension of a token

    def blocks(count: int) -> list[nn.Module]:
        made = [Block(channels, heads, qkv_bias=True) for _ in range(count)]
        for layer in [part for block in made for part in block.modules() if isinstance(part, nn.Linear)]:
            nn.init.normal_(layer.weight, std=0.02)  # trunc_normal_ does not support meta tensors
            nn.init.zeros_(layer.bias)
        return [*made]

    def branch(count: int) -> nn.Sequential:
        tokens = *blocks(count), nn.LayerNorm(channels, eps=1e-6)
        return nn.Sequential(*tokens, Mean(), nn.Dropout(config.dropout), nn.Linear(channels, dims))

    def minutia_map(side: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(channels, eps=1e-6), Grid(), MapDecoder(channels, (128, 32), side))

    return TrunkParts(
        stem=lambda: nn.Sequential(Patches(channels), *blocks(4)),
        texture=lambda: branch(8),
        minutia_stem=lambda: nn.Sequential(*blocks(2)),
        minutia_map=minutia_map,
        minutia=lambda: branch(6),
        body=lambda: [*blocks(8), nn.LayerNorm(channels, eps=1e-6), Grid()],
        channels=channels,
        dense_map=minutia_map,
        map_after=2,
    )


class Patches(nn.Module):
    """Module that embeds the patches of an image and adds position embeddings.

    It maps images (B, 1, S, S) to tokens (B, N, D), where N is the number of patches. Patches are in row-major order.
    Images are padded with zeros to a multiple of the patch size.

    Args:
        channels: dimension of a token, D.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = PatchEmbed(None, PATCH, 1, channels, dynamic_img_pad=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.embed(image)  # (B, N, D)
        side = -(-image.shape[-1] // PATCH)
        return tokens + build_sincos2d_pos_embed([side, side], tokens.shape[-1], device=tokens.device).to(tokens.dtype)


class Grid(nn.Module):
    """Module that reshapes tokens (B, h * h, D) to a feature map (B, D, h, h)."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        side = math.isqrt(tokens.shape[1])
        return tokens.transpose(1, 2).unflatten(2, (side, side))


class Mean(nn.Module):
    """Module that averages over tokens: it maps (B, N, D) to (B, D)."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.mean(dim=1)
