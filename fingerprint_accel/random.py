"""Random numbers that depend on a counter, not on history: hashes of (seed, epoch, index, stream, element).

A print's augmentation is then the same whatever batch, worker or rank it falls to.
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
    """Logical right shift of int64."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(values: torch.Tensor) -> torch.Tensor:
    """Scrambles int64 values, any shape (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def sample_keys(seed: int, epoch: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """epoch (B,), index (B,) int64 -> (B,) int64 key of each print in each epoch."""
    key = mix(torch.full_like(index, seed) + _GOLDEN)
    key = mix((key ^ epoch) + _GOLDEN)
    return mix((key ^ index) + _GOLDEN)


def uniform(keys: torch.Tensor, stream: int, count: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """(B,) keys -> (B, count) float32, uniform in [low, high). Streams are independent of each other."""
    return between(_uniform(keys, _elements(stream, count, keys.device)), low, high)


def uniforms(keys: torch.Tensor, counts: tuple[tuple[int, int], ...]) -> dict[int, torch.Tensor]:
    """The same in [0, 1) for several streams, (stream, count) each: {stream: (B, count)}; all are hashed at once, in
    as many operations as one."""
    drawn = _uniform(keys, _table(counts, keys.device)).split([count for _, count in counts], dim=1)
    return dict(zip((stream for stream, _ in counts), drawn, strict=True))


def between(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Values in [0, 1) -> values in [low, high)."""
    return low + (high - low) * values


def _uniform(keys: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
    bits = mix(mix(keys)[:, None] + elements)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _elements(stream: int, count: int, device: torch.device) -> torch.Tensor:
    """(count,) int64, which tell the numbers of a key apart."""
    return (torch.arange(count, device=device) + (stream << 32)) * _GOLDEN


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # whoever asks first: others may differentiate or export
def _table(counts: tuple[tuple[int, int], ...], device: torch.device) -> torch.Tensor:
    return torch.cat([_elements(stream, count, device) for stream, count in counts])


def steady(function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """function(values) in float32, with the same bits wherever in the tensor a value stands.

    CPU kernels compute the end of a tensor with another library than its middle, and the last bit of a cosine moves
    pixels; rounding from float64 hides that.
    """
    if values.device.type != "cpu":
        return function(values)
    return function(values.double()).float()


def steady_mean(values: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, 1, 1) means, with the same bits however threads and batches share out the sum."""
    return steady(lambda rows: rows.mean(dim=-2, keepdim=True), values.mean(dim=-1, keepdim=True))


def normal(keys: torch.Tensor, stream: int, count: int, limit: float = 3.0) -> torch.Tensor:
    """(B,) keys -> (B, count) float32, standard normal, cut off at +-limit."""
    inside = math.erf(limit / math.sqrt(2))
    return math.sqrt(2) * steady(torch.erfinv, uniform(keys, stream, count, -inside, inside))
