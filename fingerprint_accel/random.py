"""Counter-based random numbers: each number is a hash of (seed, epoch, index of a print, stream, element).

There is no generator state. The augmentation of a print therefore does not depend on its batch, process or rank. A
stream is an integer that separates independent numbers of a print, for example those for its rotation and its noise.
An element is the position of a number in a stream.
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
    """Shift int64 values right by a number of bits, without sign extension."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(values: torch.Tensor) -> torch.Tensor:
    """Hash int64 values of any shape with the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def sample_keys(seed: int, epoch: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return a random key for each of B prints. The key depends on the seed, the epoch and the print.

    Args:
        seed: Seed of the training run.
        epoch: (B,) int64, epoch in which each print is used.
        index: (B,) int64, index of each print in the dataset.

    Returns:
        (B,) int64.
    """
    key = mix(torch.full_like(index, seed) + _GOLDEN)
    key = mix((key ^ epoch) + _GOLDEN)
    return mix((key ^ index) + _GOLDEN)


def uniform(keys: torch.Tensor, stream: int, count: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Draw uniform numbers in [low, high) for each key. Different streams are independent.

    Args:
        keys: (B,) int64, see `sample_keys`.
        stream: Number of the stream.
        count: How many numbers to draw for each key.
        low: Lower bound, inclusive.
        high: Upper bound, exclusive.

    Returns:
        (B, count) float32.
    """
    return between(_uniform(keys, _elements(stream, count, keys.device)), low, high)


def uniforms(keys: torch.Tensor, counts: tuple[tuple[int, int], ...]) -> dict[int, torch.Tensor]:
    """Draw the same numbers as `uniform` for several streams at once, which needs fewer operations.

    Args:
        keys: (B,) int64, see `sample_keys`.
        counts: Pairs of a stream and the number of values to draw from it for each key.

    Returns:
        Dictionary from each stream to its numbers in [0, 1), (B, count) float32.
    """
    drawn = _uniform(keys, _table(counts, keys.device)).split([count for _, count in counts], dim=1)
    return dict(zip((stream for stream, _ in counts), drawn, strict=True))


def between(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Scale values from the interval [0, 1) to the interval [low, high)."""
    return low + (high - low) * values


def _uniform(keys: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
    bits = mix(mix(keys)[:, None] + elements)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _elements(stream: int, count: int, device: torch.device) -> torch.Tensor:
    """Return an offset for each element of a stream, (count,) int64. Keys plus different offsets hash differently."""
    return (torch.arange(count, device=device) + (stream << 32)) * _GOLDEN


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the cached tensor may later be used in autograd or export
def _table(counts: tuple[tuple[int, int], ...], device: torch.device) -> torch.Tensor:
    return torch.cat([_elements(stream, count, device) for stream, count in counts])


def steady(function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """Apply an elementwise function to a float32 tensor, with bits that do not depend on the position of a value.

    CPU kernels use different code for the vectorised part and the end of a tensor, which can differ in the last bit.
    Computing in float64 and rounding removes the difference.
    """
    if values.device.type != "cpu":
        return function(values)
    return function(values.double()).float()


def steady_mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of each channel, with bits that do not depend on the number of threads or the batch.

    Args:
        values: (B, C, H, W) float32.

    Returns:
        (B, C, 1, 1) float32.
    """
    return steady(lambda rows: rows.mean(dim=-2, keepdim=True), values.mean(dim=-1, keepdim=True))


def normal(keys: torch.Tensor, stream: int, count: int, limit: float = 3.0) -> torch.Tensor:
    """Draw standard normal numbers, truncated to [-limit, limit], for each key.

    Args:
        keys: (B,) int64, see `sample_keys`.
        stream: Number of the stream.
        count: How many numbers to draw for each key.
        limit: Largest absolute value, in standard deviations.

    Returns:
        (B, count) float32.
    """
    inside = math.erf(limit / math.sqrt(2))
    return math.sqrt(2) * steady(torch.erfinv, uniform(keys, stream, count, -inside, inside))
