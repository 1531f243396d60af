"""Compute local means of images on a coarse grid of cells, and upsample them to pixels.

A cell is a square of pixels. Local statistics vary slowly over a print, so a coarse grid is sufficient and much cheaper
than full resolution. The functions use only additions, multiplications and small matrix products. CPU kernels compute
these with the same bits at every position in a batch, so the result for a print does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F

CACHED = 1 << 19  # number of pixels per thread that fit into the CPU caches together with intermediate results


def chunks(count: int, pixels: int, device: torch.device) -> Iterator[slice]:
    """Split a batch into slices of images that fit into the CPU caches.

    On devices other than a CPU, and during export, where the batch size is dynamic, the only slice is the whole batch.

    Args:
        count: number of images in the batch.
        pixels: number of pixels of one image.
        device: device of the batch.
    """
    if device.type != "cpu" or torch.compiler.is_exporting():
        yield slice(0, count)
        return
    step = max(1, CACHED * torch.get_num_threads() // pixels)
    for start in range(0, max(1, count), step):
        yield slice(start, min(start + step, count))


def cell_sums(values: torch.Tensor, cell: int) -> torch.Tensor:
    """Sum images over square cells of `cell` x `cell` pixels.

    The cells of the last row and column are smaller if `cell` does not divide S.

    Args:
        values: (..., S, S) images.
        cell: side of a cell, pixels.

    Returns:
        (..., n, n) sums, where n is S / cell rounded up.
    """
    if cell > 1 and torch.compiler.is_exporting():  # two nodes of the graph instead of 24
        members = _members(values.shape[-1], cell, values.device)
        return members @ values @ members.T
    for dim in (-2, -1):
        if cell > 1:
            parts = [_every(values, cell, dim, first) for first in range(cell)]
            values = parts[0].clone()
            for part in parts[1:]:
                values.narrow(dim, 0, part.shape[dim]).add_(part)
    return values


def cell_means(values: torch.Tensor, cell: int) -> torch.Tensor:
    """Average images over square cells of `cell` x `cell` pixels.

    Args:
        values: (..., S, S) images.
        cell: side of a cell, pixels.

    Returns:
        (..., n, n) means, where n is S / cell rounded up.
    """
    if cell == 1:
        return values
    size = values.shape[-1]
    inverse = 1 / _counts(size, cell, values.device)
    return cell_sums(values, cell).mul_(inverse[:, None] * inverse)


def local_means(values: torch.Tensor, cell: int, cells: int, rounds: int = 1) -> torch.Tensor:
    """Average images over a square window around each cell, `rounds` times in succession.

    Args:
        values: (..., S, S) images.
        cell: side of a cell, pixels.
        cells: side of the window in cells; odd. Windows are clipped at the border of the image.
        rounds: number of iterations. Each iteration after the first averages the means of the previous iteration.

    Returns:
        (..., n, n) means, where n is S / cell rounded up.
    """
    window = _window(values.shape[-1], cell, cells, rounds, values.device)
    return window @ cell_sums(values, cell) @ window.T


def grow(coarse: torch.Tensor, cell: int, size: int) -> torch.Tensor:
    """Upsample values at cell centres to pixels with bilinear interpolation.

    Args:
        coarse: (B, C, n, n) values at the centres of n x n cells.
        cell: side of a cell, pixels.
        size: side of the result, pixels.

    Returns:
        (B, C, size, size).
    """
    if cell == 1:
        return coarse
    if coarse.device.type != "cpu" or torch.compiler.is_exporting():
        return F.interpolate(coarse, scale_factor=cell, mode="bilinear", align_corners=False)[..., :size, :size]
    # The bilinear kernel of torch is not vectorised for one channel. This code interpolates all pixels at the same
    # position within their cells at once. It is vectorised, and takes a fifth of the time.
    padded = F.pad(coarse, (1, 1, 1, 1), mode="replicate")
    wide = coarse.new_empty(*padded.shape[:-1], size)
    grown = coarse.new_empty(*coarse.shape[:-2], size, size)
    for source, target, dim in ((padded, wide, -1), (wide, grown, -2)):
        for phase in range(cell):
            part = _every(target, cell, dim, phase)
            part.copy_(_between(source, cell, dim, phase, part.shape[dim]))
    return grown


def _every(values: torch.Tensor, step: int, dim: int, first: int) -> torch.Tensor:
    """Return a view of every `step`-th element along dimension `dim` (-1 or -2), starting at the index `first`."""
    return values[..., first::step] if dim == -1 else values[..., first::step, :]


def _between(padded: torch.Tensor, cell: int, dim: int, phase: int, count: int) -> torch.Tensor:
    """Interpolate between cell centres along one dimension, at the pixel with the index `phase` of each cell.

    Args:
        padded: values at cell centres. Along `dim`, one extra cell precedes the first cell, and one follows the last.
        cell: side of a cell, pixels.
        dim: dimension along which to interpolate.
        phase: index of the pixel within its cell.
        count: number of cells to interpolate, from the first.
    """
    offset = (phase + 0.5) / cell - 0.5
    low = 0 if offset < 0 else 1
    return torch.lerp(padded.narrow(dim, low, count), padded.narrow(dim, low + 1, count), offset + 1 - low)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the cached tensor may later be used in autograd or export
def _counts(size: int, cell: int, device: torch.device) -> torch.Tensor:
    """Return a tensor (n,) with the number of pixels of each of n cells along one image axis.

    The last cell can be smaller.

    Args:
        size: number of pixels along the axis.
        cell: side of a cell, pixels.
        device: device of the result.
    """
    edges = torch.arange(0, size + cell, cell, device=device).clamp_max(size)
    return edges.diff().float()


def _members(size: int, cell: int, device: torch.device) -> torch.Tensor:
    """Return the matrix (n, size) that sums the pixels of each of n cells along one image axis.

    Args:
        size: number of pixels along the axis.
        cell: side of a cell, pixels.
        device: device of the result.
    """
    cells = torch.arange(size, device=device) // cell
    return (cells == torch.arange(-(-size // cell), device=device)[:, None]).float()


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the cached tensor may later be used in autograd or export
def _window(size: int, cell: int, cells: int, rounds: int, device: torch.device) -> torch.Tensor:
    """Return the matrix that averages cell sums over windows along one image axis, `rounds` times in succession.

    Args:
        size: number of pixels along the axis.
        cell: side of a cell, pixels.
        cells: side of a window in cells; odd.
        rounds: number of averaging iterations. Each iteration after the first averages the means of the previous
            iteration.
        device: device of the result.

    Returns:
        (n, n), where n is the number of cells along the axis.
    """
    counts = _counts(size, cell, device)
    place = torch.arange(len(counts), device=device)
    band = ((place[:, None] - place).abs() <= cells // 2).float()
    means = band / (band * counts).sum(dim=1, keepdim=True)
    window = means
    for _ in range(rounds - 1):
        window = (means * counts) @ window
    return window
