"""Counter-based random numbers: hashes of (seed, epoch, index, stream, element).

There is no generator state. The augmentation of a print therefore does not depend on its batch, process or rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _shift(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift int64 values right without sign extension."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(values: torch.Tensor) -> torch.Tensor:
    """Hash int64 values of any shape with the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def sample_keys(seed: int, epoch: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the random key of each print in its epoch.

    Args:
        seed: random seed.
        epoch: (B,) int64.
        index: (B,) int64 index of the print in the dataset.

    Returns:
        (B,) int64.
    """
    key = mix(torch.full_like(index, seed) + _GOLDEN)
    key = mix((key ^ epoch) + _GOLDEN)
    return mix((key ^ index) + _GOLDEN)


def uniform(keys: torch.Tensor, stream: int, count: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Draw uniform numbers in [low, high): keys (B,) -> (B, count) float32. Different streams are independent."""
    return between(_uniform(keys, _elements(stream, count, keys.device)), low, high)


def uniforms(keys: torch.Tensor, counts: tuple[tuple[int, int], ...]) -> dict[int, torch.Tensor]:
    """Draw uniform numbers in [0, 1) for several streams with the number of operations of one.

    Args:
        keys: (B,) int64.
        counts: pairs (stream, count).

    Returns:
        Tensors (B, count) by stream.
    """
    drawn = _uniform(keys, _table(counts, keys.device)).split([count for _, count in counts], dim=1)
    return dict(zip((stream for stream, _ in counts), drawn, strict=True))


def between(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Scale values in [0, 1) to [low, high)."""
    return low + (high - low) * values


def _uniform(keys: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
    bits = mix(mix(keys)[:, None] + elements)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _elements(stream: int, count: int, device: torch.device) -> torch.Tensor:
    """Return offsets that distinguish the numbers of a key, (count,) int64."""
    return (torch.arange(count, device=device) + (stream << 32)) * _GOLDEN


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the cached tensor may later be used in autograd or export
def _table(counts: tuple[tuple[int, int], ...], device: torch.device) -> torch.Tensor:
    return torch.cat([_elements(stream, count, device) for stream, count in counts])


def steady(function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """Compute an elementwise function in float32 with bits that do not depend on the position in the tensor.

    CPU kernels use different code for the vectorised part and the end of a tensor, which can differ in the last bit.
    Computing in float64 and rounding removes the difference.
    """
    if values.device.type != "cpu":
        return function(values)
    return function(values.double()).float()


def steady_mean(values: torch.Tensor) -> torch.Tensor:
    """Compute means (B, C, H, W) -> (B, C, 1, 1) with bits that do not depend on threads or batches."""
    return steady(lambda rows: rows.mean(dim=-2, keepdim=True), values.mean(dim=-1, keepdim=True))


def normal(keys: torch.Tensor, stream: int, count: int, limit: float = 3.0) -> torch.Tensor:
    """Draw standard normal numbers truncated at +-limit: keys (B,) -> (B, count) float32."""
    inside = math.erf(limit / math.sqrt(2))
    return math.sqrt(2) * steady(torch.erfinv, uniform(keys, stream, count, -inside, inside))
