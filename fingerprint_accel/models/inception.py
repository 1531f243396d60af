"""Define the Inception v4 trunk of DeepPrint (Engelsma, Cao and Jain 2019, arXiv 1909.09901; Szegedy et al. 2016).

The blocks come from timm, and the weights have the names that timm uses. This module is imported on demand, because
importing timm takes seconds.

Two changes make the blocks faster. They change the result only by rounding. The 1 x 1 convolutions at the start of the
branches run as one convolution, which reads the features once instead of four times. The average pooling runs after its
1 x 1 convolution, where there are four to eight times fewer channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.models.backbones import MapDecoder
from fingerprint_accel.models.compilable import AvgPool3x3, ReLU, StemConv, StridedMaxPool, layout_of
from fingerprint_accel.models.trunks import TrunkParts

try:
    from timm.layers import ConvNormAct
    from timm.models.inception_v4 import (
        InceptionA,
        InceptionB,
        InceptionC,
        Mixed3a,
        Mixed4a,
        Mixed5a,
        ReductionA,
        ReductionB,
    )
except RuntimeError as error:  # timm imports torchvision
    if "torchvision::" not in str(error):
        raise
    raise UserError(
        f"torch {torch.__version__} and the installed torchvision do not fit each other ({error}); "
        "install both from one place: pip install --force-reinstall torch torchvision"
    ) from error


def _steps(branch: Iterable[Any]) -> list[nn.Module]:
    """Return the layers of a branch of an Inception block as a list, in which the first block of the branch is split.

    The list begins with a 1 x 1 convolution and its batch normalisation, which contains the activation.
    """
    first, *behind = branch
    return [first.conv, first.bn, *behind]


def _branches(features: torch.Tensor, *branches: list[nn.Module]) -> list[torch.Tensor]:
    """Apply the branches of an Inception block to its input, and return one result per branch.

    The first layer of each branch must be a 1 x 1 convolution. All first layers run as one convolution.

    Args:
        features: (B, C, h, w) input of the block.
        branches: the layers of each branch.
    """
    convolutions: list[Any] = [branch[0] for branch in branches]
    biases = [convolution.bias for convolution in convolutions]  # None unless batch normalisations are folded
    bias = None if biases[0] is None else torch.cat(biases)
    together = F.conv2d(features, torch.cat([convolution.weight for convolution in convolutions]), bias)
    found = []
    parts = together.split([convolution.out_channels for convolution in convolutions], dim=1)
    for part, (_, *behind) in zip(parts, branches, strict=True):
        part = part if torch.compiler.is_dynamo_compiling() else part.contiguous(memory_format=layout_of(features))
        for layer in behind:
            part = layer(part)
        found.append(part)
    return found


def _averaged(branch: Iterable[Any]) -> list[nn.Module]:
    """Return the layers of a pooling branch as a list, with the average pooling behind the 1 x 1 convolution.

    Both layers are linear, so their order does not change the result.
    """
    average, block = branch
    return [block.conv, average, block.bn]


def _tuned(blocks: nn.Sequential) -> nn.Sequential:
    """Replace pooling layers by equivalent layers that read memory fewer times, and return the blocks."""
    for parent in list(blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, StridedMaxPool())
            elif isinstance(child, nn.AvgPool2d):
                setattr(parent, name, AvgPool3x3())
    return blocks


class StemB(Mixed4a):
    """Second block of the Inception v4 stem, which maps (B, 160, 73, 73) to (B, 192, 71, 71)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat(_branches(features, _steps(self.branch0), _steps(self.branch1)), dim=1)


class BlockA(InceptionA):
    """Inception-A block, which keeps the shape (B, 384, h, w)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        branches = [_steps(branch) for branch in ([self.branch0], self.branch1, self.branch2)]
        return torch.cat(_branches(features, *branches, _averaged(self.branch3)), dim=1)


class BlockB(InceptionB):
    """Inception-B block, which keeps the shape (B, 1024, h, w)."""

    forward = BlockA.forward


class ShrinkB(ReductionB):
    """Reduction-B block, which maps (B, 1024, 17, 17) to (B, 1536, 8, 8)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found = _branches(features, _steps(self.branch0), _steps(self.branch1))
        return torch.cat([*found, self.branch2(features)], dim=1)


class BlockC(InceptionC):
    """Inception-C block, which keeps the shape (B, 1536, h, w)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        third = [self.branch2_0, self.branch2_1, self.branch2_2]
        branches = [_steps(branch) for branch in ([self.branch0], [self.branch1_0], third)]
        first, second, last, fourth = _branches(features, *branches, _averaged(self.branch3))
        ends = self.branch1_1a(second), self.branch1_1b(second), self.branch2_3a(last), self.branch2_3b(last)
        return torch.cat([first, *ends, fourth], dim=1)


_block: Any = partial(ConvNormAct, padding=0, norm_kwargs={"eps": 1e-3}, act_layer=ReLU, act_kwargs={"inplace": True})


def inception_stem() -> nn.Sequential:
    """Make the stem of Inception v4, which maps (B, 1, 299, 299) to (B, 384, 35, 35)."""
    first = _block(1, 32, kernel_size=3, stride=2)
    first.conv = StemConv(32)
    second, third = _block(32, 32, kernel_size=3), _block(32, 64, kernel_size=3, padding=1)
    return _tuned(nn.Sequential(first, second, third, Mixed3a(_block), StemB(_block), Mixed5a(_block)))


def inception_body() -> list[nn.Module]:
    """Make the blocks of Inception v4 after the stem. Together they map (B, 384, 35, 35) to (B, 1536, 8, 8)."""
    blocks = [
        *[BlockA(_block) for _ in range(4)],
        ReductionA(_block),
        *[BlockB(_block) for _ in range(7)],
        ShrinkB(_block),
        *[BlockC(_block) for _ in range(3)],
    ]
    return list(_tuned(nn.Sequential(*blocks)))


def inception_parts(config: ModelConfig, dims: int) -> TrunkParts:
    """Return functions that make the parts of the Inception v4 trunk; see `trunks.trunk_parts`.

    The trunk `flx` has no activations in the minutia branch and the map decoder, like the networks of flx, an
    implementation of DeepPrint.
    """
    plain = config.trunk == "flx"

    def texture() -> nn.Sequential:
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(1536, dims)
        return nn.Sequential(*inception_body(), *head)

    def minutia() -> nn.Sequential:
        block = nn.Conv2d if plain else _block
        return nn.Sequential(
            block(384, 768, kernel_size=3, stride=1, padding=1),
            block(768, 768, kernel_size=3, stride=2, padding=1),
            block(768, 896, kernel_size=3, stride=1, padding=1),
            block(896, 1024, kernel_size=3, stride=2, padding=1),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(1024, dims),
        )

    def minutia_map(side: int) -> MapDecoder:
        return MapDecoder(384, (128, 32), side, plain)

    return TrunkParts(
        stem=inception_stem,
        texture=texture,
        minutia_stem=lambda: _tuned(nn.Sequential(*[BlockA(_block) for _ in range(6)])),
        minutia_map=minutia_map,
        minutia=minutia,
        body=inception_body,
        channels=1536,
        dense_map=minutia_map,
        map_after=4,
    )
