"""Batch normalisations folded into the convolutions before them: the same network for inference, in less time."""

from __future__ import annotations

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """A network in evaluation mode without the batch normalisations that follow a convolution.

    Outputs differ by rounding. What is not folded is shared with `network`, not copied.

    Args:
        network: whose children run in the order in which they are listed, wherever a batch normalisation is among them.
    """
    assert not network.training, "statistics of a batch cannot be folded"
    shared = {id(part): part for part in network.modules() if not any(_pairs(module) for module in part.modules())}
    copied = copy.deepcopy(network, shared)
    for parent in list(copied.modules()):
        for convolution, normalisation in _pairs(parent):
            pair = getattr(parent, convolution), getattr(parent, normalisation)
            setattr(parent, convolution, fuse_conv_bn_eval(*pair))
            setattr(parent, normalisation, _after(pair[1]))
    return copied


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Names of children that are a convolution and of those right behind, where that is its batch normalisation."""
    children = list(parent.named_children())
    return [
        (name, following)
        for (name, child), (following, behind) in itertools.pairwise(children)
        if isinstance(child, nn.Conv2d) and isinstance(behind, nn.BatchNorm2d)
    ]


def _after(normalisation: nn.BatchNorm2d) -> nn.Module:
    """What a batch normalisation does besides: timm's have the activation within."""
    behind = [child for _, child in normalisation.named_children()]
    return nn.Sequential(*behind) if behind else nn.Identity()
