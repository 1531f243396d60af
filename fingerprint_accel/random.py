"""Generate random numbers without a generator state.

Each number is a hash of (seed, epoch, index, stream, element). The random numbers of a print are determined by its key,
a hash of the seed, the epoch and the index of the print. A stream is an integer that identifies one use of random
numbers, such as rotation. The augmentation of a print therefore does not depend on its batch, process or rank.
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
    """Shift int64 values to the right by `bits` bits, without sign extension."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(values: torch.Tensor) -> torch.Tensor:
    """Hash int64 values of any shape with the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def sample_keys(seed: int, epoch: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the random key of each print in the given epoch. The key determines all random numbers of the print.

    Args:
        seed: random seed.
        epoch: (B,) int64 epoch of each print.
        index: (B,) int64 index of each print in the dataset.

    Returns:
        (B,) int64 keys.
    """
    key = mix(torch.full_like(index, seed) + _GOLDEN)
    key = mix((key ^ epoch) + _GOLDEN)
    return mix((key ^ index) + _GOLDEN)


def uniform(keys: torch.Tensor, stream: int, count: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Draw uniform random numbers in [low, high) for each key.

    Args:
        keys: (B,) int64 random keys, see `sample_keys`.
        stream: identifier of the random stream. Different streams are independent.
        count: number of random numbers per key.
        low, high: bounds of the random numbers.

    Returns:
        (B, count) float32.
    """
    return between(_uniform(keys, _elements(stream, count, keys.device)), low, high)


def uniforms(keys: torch.Tensor, counts: tuple[tuple[int, int], ...]) -> dict[int, torch.Tensor]:
    """Draw uniform random numbers in [0, 1) from several streams at once, which is faster than one call per stream.

    Args:
        keys: (B,) int64 random keys, see `sample_keys`.
        counts: pairs (stream, number of random numbers per key).

    Returns:
        Dictionary keyed by stream. Each value is a (B, count) float32 tensor of random numbers.
    """
    drawn = _uniform(keys, _table(counts, keys.device)).split([count for _, count in counts], dim=1)
    return dict(zip((stream for stream, _ in counts), drawn, strict=True))


def between(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Scale values from the range [0, 1) to the range [low, high)."""
    return low + (high - low) * values


def _uniform(keys: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
    """Draw uniform random numbers in [0, 1) for each key.

    Args:
        keys: (B,) int64 random keys.
        elements: (count,) int64 offsets, see `_elements`.

    Returns:
        (B, count) float32.
    """
    bits = mix(mix(keys)[:, None] + elements)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _elements(stream: int, count: int, device: torch.device) -> torch.Tensor:
    """Return (count,) int64 offsets, which distinguish the random numbers that are drawn for one key.

    Args:
        stream: identifier of the random stream.
        count: number of random numbers per key.
        device: device of the returned tensor.
    """
    return (torch.arange(count, device=device) + (stream << 32)) * _GOLDEN


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the cached tensor may later be used in autograd or export
def _table(counts: tuple[tuple[int, int], ...], device: torch.device) -> torch.Tensor:
    return torch.cat([_elements(stream, count, device) for stream, count in counts])


def steady(function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """Apply an elementwise function to float32 values, with results that do not depend on the position of a value.

    CPU kernels use different code for the vectorised part and for the end of a tensor. The results of the two code
    paths can differ in the last bit. Computing in float64 and rounding removes the difference.
    """
    if values.device.type != "cpu":
        return function(values)
    return function(values.double()).float()


def steady_mean(values: torch.Tensor) -> torch.Tensor:
    """Compute the mean over H and W. The result is bit-identical for any number of threads and any batch size.

    Args:
        values: (B, C, H, W).

    Returns:
        (B, C, 1, 1).
    """
    return steady(lambda rows: rows.mean(dim=-2, keepdim=True), values.mean(dim=-1, keepdim=True))


def normal(keys: torch.Tensor, stream: int, count: int, limit: float = 3.0) -> torch.Tensor:
    """Draw standard normal random numbers for each key, truncated at +-limit.

    Args:
        keys: (B,) int64 random keys, see `sample_keys`.
        stream: identifier of the random stream. Different streams are independent.
        count: number of random numbers per key.
        limit: largest absolute value.

    Returns:
        (B, count) float32.
    """
    inside = math.erf(limit / math.sqrt(2))
    return math.sqrt(2) * steady(torch.erfinv, uniform(keys, stream, count, -inside, inside))
