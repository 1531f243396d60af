"""Puts a print on the dataset's canvas: find the ridges, centre them, lay them on white, resample to one resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

WHITE = 255
DARKEST_PAPER = 0.6  # of the bright parts of an image: what is darker is a wet patch
BLOCK_MM = 0.8  # side of the blocks in which ridges are looked for: about two ridges
MIN_CONTRAST = 5.0  # grey levels of standard deviation that a ridge block has at least
MIN_BLOCKS = 12  # ridge blocks that a print has at least


class CanvasError(ValueError):
    """An image on which no print was found; the message says why."""


@dataclass(frozen=True)
class Frame:
    """Where a canvas lies on its image: canvas = (image - corner) * scale, in pixels from the top left corner of each.

    Attributes:
        left, top: the canvas's corner on the image, image pixels.
        scale: canvas pixels to one of the image.
    """

    left: float
    top: float
    scale: float

    def to_canvas(self, minutiae: np.ndarray) -> np.ndarray:
        """(n, 4) x, y, angle, quality in image pixels -> the same in canvas pixels."""
        moved = minutiae.copy()
        moved[:, :2] = (minutiae[:, :2] - (self.left, self.top)) * self.scale
        return moved

    def to_image(self, minutiae: np.ndarray) -> np.ndarray:
        """(n, 4) in canvas pixels -> the same in image pixels."""
        moved = minutiae.copy()
        moved[:, :2] = minutiae[:, :2] / self.scale + (self.left, self.top)
        return moved


def find_frame(grey: np.ndarray, ppi: float, dataset_ppi: int, canvas: int) -> Frame:
    """Where `place` lays the canvas on an image; arguments and errors are those of `place`."""
    return _frame(*_print_mask(grey, _smoothed(grey), ppi), dataset_ppi / ppi, canvas)


def _print_mask(grey: np.ndarray, smooth: np.ndarray, ppi: float) -> tuple[np.ndarray, int]:
    """`ridge_mask` of an image that holds enough of a print."""
    if int(grey.max()) - int(grey.min()) < 4 * MIN_CONTRAST:
        raise CanvasError("blank")
    mask, block = _ridge_mask(smooth, ppi)
    if mask.sum() < MIN_BLOCKS:
        raise CanvasError("no ridges found")
    return mask, block


def _frame(mask: np.ndarray, block: int, scale: float, canvas: int) -> Frame:
    rows, columns = np.nonzero(mask)
    # the middle between the extremes (5 % cut off) rather than the mean: half a dry print pulls a mean aside
    centre_y = (np.percentile(rows, 5) + np.percentile(rows, 95) + 1) / 2 * block
    centre_x = (np.percentile(columns, 5) + np.percentile(columns, 95) + 1) / 2 * block
    half = canvas / 2 / scale
    return Frame(float(centre_x - half), float(centre_y - half), scale)


def ridge_mask(grey: np.ndarray, ppi: float) -> tuple[np.ndarray, int]:
    """Blocks that hold ridges: alternating grey values at ridge spacing.

    Args:
        grey: (H, W) uint8.
        ppi: of the image.

    Returns:
        (rows, columns) bool, one entry per block, and the side of a block in pixels.
    """
    return _ridge_mask(_smoothed(grey), ppi)


def _smoothed(grey: np.ndarray) -> np.ndarray:
    """(H, W) uint8 without the noise of the sensor, which is no ridge."""
    return np.asarray(Image.fromarray(grey).filter(ImageFilter.BoxBlur(1)))


def _ridge_mask(smooth: np.ndarray, ppi: float) -> tuple[np.ndarray, int]:
    block = max(4, round(BLOCK_MM / 25.4 * ppi))
    rows, columns = smooth.shape[0] // block, smooth.shape[1] // block
    if rows < 2 or columns < 2:
        raise CanvasError("too small to hold a print")
    tiles = smooth[: rows * block, : columns * block].reshape(rows, block, columns, block).astype(np.float32)
    deviation = tiles.std(axis=(1, 3))
    strong = max(MIN_CONTRAST, 0.35 * float(np.percentile(deviation, 95)))
    mask = deviation > strong
    dark = tiles.mean(axis=(1, 3))
    varied = (np.abs(tiles - dark[:, None, :, None]) > deviation[:, None, :, None] * 0.5).mean(axis=(1, 3)) > 0.3
    return _main_part(_neighbours(mask & varied) >= 5), block


def around(values: np.ndarray, mode: Literal["constant", "edge"] = "constant") -> np.ndarray:
    """(rows, columns) -> (9, rows, columns): each entry and its eight neighbours; beyond the edge is 0, or the edge."""
    rows, columns = values.shape
    # as `np.pad` does, which takes ten times as long for arrays as small as these
    padded = np.zeros((rows + 2, columns + 2), values.dtype)
    padded[1:-1, 1:-1] = values
    if mode == "edge":
        padded[0], padded[-1] = padded[1], padded[-2]
        padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
    return np.stack([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)])


def _neighbours(mask: np.ndarray) -> np.ndarray:
    """Number of True among each entry and its eight neighbours."""
    counts: np.ndarray = around(mask.astype(np.int32)).sum(axis=0)
    return counts


def connected_parts(mask: np.ndarray) -> np.ndarray:
    """(rows, columns) bool -> int: a number above 0 for each part that holds together, 0 elsewhere."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread: np.ndarray = around(labels).max(axis=0) * mask
        if (spread == labels).all():
            return labels
        labels = spread


def _main_part(mask: np.ndarray) -> np.ndarray:
    """The connected part with the most blocks, and every part at least a quarter as large."""
    labels = connected_parts(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, np.flatnonzero(sizes >= max(1, sizes.max() // 4))) & mask


def put_on_canvas(
    grey: np.ndarray, minutiae: np.ndarray, ppi: float, dataset_ppi: int, canvas: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centres a print on a square canvas of the dataset's resolution; not turned; white where there is no print.

    Args:
        grey: (H, W) uint8, ridges dark.
        minutiae: (n, 4) float32 x, y, angle, quality in image pixels.
        ppi: of the image.
        dataset_ppi: of the canvas.
        canvas: its side, pixels.

    Returns:
        (canvas, canvas) uint8 and (m, 4) float32 in canvas pixels, m <= n: minutiae off the canvas are dropped.

    Raises:
        CanvasError: no ridges.
    """
    smooth = _smoothed(grey)
    mask, block = _print_mask(grey, smooth, ppi)
    frame = _frame(mask, block, dataset_ppi / ppi, canvas)
    side = canvas / frame.scale
    contact = _contact(mask, block, frame.left, frame.top, side, canvas)
    image = WHITE + contact * (_cut(_on_white(grey, smooth, block), frame.left, frame.top, side, canvas) - WHITE)
    return image.round().astype(np.uint8), _on_canvas(frame.to_canvas(minutiae), canvas)


def recanvas(image: np.ndarray, minutiae: np.ndarray, scale: float, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """Takes a print from one canvas to another around their common centre.

    Without a change of scale pixels are moved as they are; where the two sides differ by an odd number the centre then
    moves by half a pixel.

    Args:
        image: (C, C) uint8.
        minutiae: (n, 4) float32 x, y, angle, quality in its pixels.
        scale: pixels of the new canvas to one of the old.
        canvas: side of the new canvas, pixels.

    Returns:
        (canvas, canvas) uint8, white where the old canvas does not reach, and (m, 4) float32 in its pixels, m <= n:
        minutiae off the canvas are dropped.
    """
    before, side = image.shape[0], canvas / scale
    left = recanvas_left(before, scale, canvas)
    margin = max(0, int(np.ceil(-left))) + 2  # further than bicubic filters reach beyond the box, which is 2 pixels
    padded = Image.new("L", (before + 2 * margin, before + 2 * margin), WHITE)
    padded.paste(Image.fromarray(image), (margin, margin))
    start = left + margin
    box = (start, start, start + side, start + side)
    if scale == 1:
        moved_image = padded.crop(tuple(int(edge) for edge in box))  # type: ignore[arg-type]
    else:
        moved_image = padded.resize((canvas, canvas), Image.Resampling.BICUBIC, box=box)
    moved = minutiae.copy()
    moved[:, :2] = (minutiae[:, :2] - left) * scale
    return np.asarray(moved_image), _on_canvas(moved, canvas)


def recanvas_left(before: int, scale: float, canvas: int) -> float:
    """Where on the old canvas, of side `before`, `recanvas` puts the left edge and the top edge of the new one."""
    return float((before - canvas) // 2) if scale == 1 else (before - canvas / scale) / 2


def _on_canvas(minutiae: np.ndarray, canvas: int) -> np.ndarray:
    return minutiae[((minutiae[:, :2] >= 0) & (minutiae[:, :2] < canvas)).all(axis=1)]


def _on_white(grey: np.ndarray, smooth: np.ndarray, block: int) -> np.ndarray:
    """(H, W) uint8: the print as it would be on evenly lit white paper.

    Sensors have grey backgrounds, brighter in the middle, and skin darkens the valleys. One grey level for all of the
    paper would wash out ridges where it is brighter than that, so each place is divided by its own: the brightness that
    valleys or paper reach within a block and a half.
    """
    rows, columns = -(-grey.shape[0] // block), -(-grey.shape[1] // block)
    whole = np.pad(smooth, ((0, rows * block - grey.shape[0]), (0, columns * block - grey.shape[1])), mode="edge")
    tiles = whole.reshape(rows, block, columns, block).transpose(0, 2, 1, 3).reshape(rows, columns, block**2)
    rank = round(0.95 * (block**2 - 1))
    paper = np.partition(tiles, rank, axis=2)[..., rank].astype(np.float32)
    paper = around(paper, mode="edge").max(axis=0)
    paper = np.maximum(paper, max(1.0, DARKEST_PAPER * float(np.percentile(paper, 90))))
    for _ in range(3):
        paper = around(paper, mode="edge").mean(axis=0)
    size = (columns * block, rows * block)
    there = np.asarray(Image.fromarray(paper).resize(size, Image.Resampling.BILINEAR))[: grey.shape[0], : grey.shape[1]]
    return np.minimum(WHITE, grey * (WHITE / there)).astype(np.uint8)


def _cut(grey: np.ndarray, left: float, top: float, side: float, canvas: int) -> np.ndarray:
    """Resamples the square (left, top, side) of an image, which may reach beyond it, to (canvas, canvas) float32."""
    margin = int(np.ceil(max(0.0, -left, -top, left + side - grey.shape[1], top + side - grey.shape[0]))) + 1
    padded = Image.new("L", (grey.shape[1] + 2 * margin, grey.shape[0] + 2 * margin), WHITE)
    padded.paste(Image.fromarray(grey), (margin, margin))
    box = (left + margin, top + margin, left + margin + side, top + margin + side)
    return np.asarray(padded.resize((canvas, canvas), Image.Resampling.BICUBIC, box=box), np.float32)


def _contact(mask: np.ndarray, block: int, left: float, top: float, side: float, canvas: int) -> np.ndarray:
    """(canvas, canvas) float32: 1 on the print and two blocks around it, falling softly to 0 elsewhere."""
    grown = _neighbours(_neighbours(_filled(mask)) > 0) > 0
    margin = int(np.ceil(max(mask.shape) + side / block))
    padded = Image.fromarray(np.pad(grown.astype(np.uint8) * 255, margin))
    box = (left / block + margin, top / block + margin, (left + side) / block + margin, (top + side) / block + margin)
    return np.asarray(padded.resize((canvas, canvas), Image.Resampling.BILINEAR, box=box), np.float32) / 255


def _filled(mask: np.ndarray) -> np.ndarray:
    """Also what lies between parts of the mask along both axes: a wet patch inside a print is part of it."""
    between = np.ones_like(mask)
    for axis in (0, 1):
        after = np.logical_or.accumulate(mask, axis)
        before = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis)
        between &= after & before
    return mask | between
