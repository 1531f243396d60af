"""Fold batch normalisations into the preceding convolutions, which makes inference faster."""

from __future__ import annotations

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """Return a copy of a network in which batch normalisations are folded into the preceding convolutions.

    The outputs of both networks differ only by rounding. Modules without a batch normalisation behind a convolution are
    shared with `network`, not copied.

    Args:
        network: network in evaluation mode. Modules that contain a batch normalisation must run their children in the
            order in which they are registered.
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
    """Return the names of all pairs of consecutive children that are a convolution and a batch normalisation."""
    children = list(parent.named_children())
    return [
        (name, following)
        for (name, child), (following, behind) in itertools.pairwise(children)
        if isinstance(child, nn.Conv2d) and isinstance(behind, nn.BatchNorm2d)
    ]


def _after(normalisation: nn.BatchNorm2d) -> nn.Module:
    """Return the module that replaces a batch normalisation after folding.

    A batch normalisation of timm contains an activation, which is kept. All other batch normalisations are replaced by
    the identity.
    """
    behind = [child for _, child in normalisation.named_children()]
    return nn.Sequential(*behind) if behind else nn.Identity()
