"""Local means on a grid of cells, and back to pixels: what varies slowly over a print is computed on few numbers.

Everything here is additions, multiplications and small matrix products, which CPU kernels compute with the same bits
wherever in a batch a print stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F

CACHED = 1 << 19  # pixels of a picture, per thread, that CPU caches hold together with what is made of them


def chunks(count: int, pixels: int, device: torch.device) -> Iterator[slice]:
    """Cuts `count` pictures of `pixels` each into runs that stay in the caches of a CPU; one run on other devices, and
    for export, where `count` may be any."""
    if device.type != "cpu" or torch.compiler.is_exporting():
        yield slice(0, count)
        return
    step = max(1, CACHED * torch.get_num_threads() // pixels)
    for start in range(0, max(1, count), step):
        yield slice(start, min(start + step, count))


def cell_sums(values: torch.Tensor, cell: int) -> torch.Tensor:
    """(..., S, S) -> (..., n, n) sums over cells of `cell` x `cell` pixels; the last row and column may be cut off."""
    for dim in (-2, -1):
        if cell > 1:
            parts = [_every(values, cell, dim, first) for first in range(cell)]
            values = parts[0].clone()
            for part in parts[1:]:
                values.narrow(dim, 0, part.shape[dim]).add_(part)
    return values


def cell_means(values: torch.Tensor, cell: int) -> torch.Tensor:
    """(..., S, S) -> (..., n, n) means over cells of `cell` x `cell` pixels."""
    if cell == 1:
        return values
    size = values.shape[-1]
    inverse = 1 / _counts(size, cell, values.device)
    return cell_sums(values, cell).mul_(inverse[:, None] * inverse)


def local_means(values: torch.Tensor, cell: int, cells: int, rounds: int = 1) -> torch.Tensor:
    """(..., S, S) -> (..., n, n) means over windows of `cells` (odd) cells to a side, cut off at the border.

    With more rounds, the means are averaged again over the same windows.
    """
    window = _window(values.shape[-1], cell, cells, rounds, values.device)
    return window @ cell_sums(values, cell) @ window.T


def grow(coarse: torch.Tensor, cell: int, size: int) -> torch.Tensor:
    """(B, C, n, n) at the centres of cells -> (B, C, size, size), bilinear."""
    if cell == 1:
        return coarse
    if coarse.device.type != "cpu" or torch.compiler.is_exporting():
        return F.interpolate(coarse, scale_factor=cell, mode="bilinear", align_corners=False)[..., :size, :size]
    # torch's kernel is not vectorised for one channel; rows of equal phase are, and take a fifth of its time
    padded = F.pad(coarse, (1, 1, 1, 1), mode="replicate")
    wide = coarse.new_empty(*padded.shape[:-1], size)
    grown = coarse.new_empty(*coarse.shape[:-2], size, size)
    for source, target, dim in ((padded, wide, -1), (wide, grown, -2)):
        for phase in range(cell):
            part = _every(target, cell, dim, phase)
            part.copy_(_between(source, cell, dim, phase, part.shape[dim]))
    return grown


def _every(values: torch.Tensor, step: int, dim: int, first: int) -> torch.Tensor:
    """values[first::step] along `dim`, which is -1 or -2."""
    return values[..., first::step] if dim == -1 else values[..., first::step, :]


def _between(padded: torch.Tensor, cell: int, dim: int, phase: int, count: int) -> torch.Tensor:
    """Values at pixel `phase` of the first `count` cells; `padded` has the centres of cells, and one more before."""
    offset = (phase + 0.5) / cell - 0.5
    low = 0 if offset < 0 else 1
    return torch.lerp(padded.narrow(dim, low, count), padded.narrow(dim, low + 1, count), offset + 1 - low)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # whoever asks first: others may differentiate or export
def _counts(size: int, cell: int, device: torch.device) -> torch.Tensor:
    """(n,) pixels along one side of each cell."""
    edges = torch.arange(0, size + cell, cell, device=device).clamp_max(size)
    return edges.diff().float()


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # whoever asks first: others may differentiate or export
def _window(size: int, cell: int, cells: int, rounds: int, device: torch.device) -> torch.Tensor:
    """(n, n): sums over cells along one side -> means over windows of cells."""
    counts = _counts(size, cell, device)
    place = torch.arange(len(counts), device=device)
    band = ((place[:, None] - place).abs() <= cells // 2).float()
    means = band / (band * counts).sum(dim=1, keepdim=True)
    window = means
    for _ in range(rounds - 1):
        window = (means * counts) @ window
    return window
