"""Trunk of DeepPrint: Inception v4 (Engelsma, Cao and Jain 2019, "Learning a Fixed-Length Fingerprint Representation",
arXiv 1909.09901), with modules (Szegedy et al. 2016) from timm. Imported only where it is used: timm takes seconds.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from fingerprint_accel.errors import UserError

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

_block: Any = partial(ConvNormAct, padding=0, norm_kwargs={"eps": 1e-3}, act_kwargs={"inplace": True})


def inception_stem() -> nn.Sequential:
    """(B, 1, 299, 299) -> (B, 384, 35, 35)."""
    return nn.Sequential(
        _block(1, 32, kernel_size=3, stride=2),
        _block(32, 32, kernel_size=3, stride=1),
        _block(32, 64, kernel_size=3, stride=1, padding=1),
        Mixed3a(_block),
        Mixed4a(_block),
        Mixed5a(_block),
    )


def inception_texture(dropout: float, dims: int) -> nn.Sequential:
    """(B, 384, 35, 35) -> (B, dims): rest of Inception v4, averaged over space."""
    return nn.Sequential(
        *[InceptionA(_block) for _ in range(4)],
        ReductionA(_block),
        *[InceptionB(_block) for _ in range(7)],
        ReductionB(_block),
        *[InceptionC(_block) for _ in range(3)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(1536, dims),
    )


def inception_minutia_stem() -> nn.Sequential:
    """(B, 384, 35, 35) -> (B, 384, 35, 35)."""
    return nn.Sequential(*[InceptionA(_block) for _ in range(6)])


def inception_minutia(dropout: float, dims: int, plain: bool = False) -> nn.Sequential:
    """(B, 384, 35, 35) -> (B, dims): four convolutions, the maximum over space; `plain` without activations, as flx."""
    block = nn.Conv2d if plain else _block
    return nn.Sequential(
        block(384, 768, kernel_size=3, stride=1, padding=1),
        block(768, 768, kernel_size=3, stride=2, padding=1),
        block(768, 896, kernel_size=3, stride=1, padding=1),
        block(896, 1024, kernel_size=3, stride=2, padding=1),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(1024, dims),
    )
