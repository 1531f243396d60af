"""Place a print on a canvas: a square image of fixed size and resolution with a white background.

The functions find the ridges, centre them, remove the background and resample the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from fingerprint_accel.data.regions import around, connected_parts, strips

WHITE = 255
DARKEST_PAPER = 0.6  # lowest brightness of paper relative to bright parts of the image; wet patches are darker
BLOCK_MM = 0.8  # side of the blocks that are searched for ridges, mm; about two ridges
MIN_CONTRAST = 5.0  # minimum standard deviation of a block with ridges, grey levels
MIN_BLOCKS = 12  # minimum number of blocks with ridges in a print
MOST_PADDED = 200_000_000  # largest number of pixels of an image with the white margin that a canvas needs


class CanvasError(ValueError):
    """Raised for an image on which no print was found. The message gives the reason."""


@dataclass(frozen=True)
class Frame:
    """Position of a canvas on the original image, and its scale.

    A point of the image lies at (point - corner) * scale on the canvas. Coordinates are pixels from the top left
    corner of the image or canvas.

    Attributes:
        left: x of the top left corner of the canvas, image pixels.
        top: y of the top left corner of the canvas, image pixels.
        scale: canvas pixels per image pixel.
    """

    left: float
    top: float
    scale: float

    def to_canvas(self, minutiae: np.ndarray) -> np.ndarray:
        """Convert minutiae (n, 4) x, y, angle, quality from image pixels to canvas pixels."""
        moved = minutiae.copy()
        moved[:, :2] = (minutiae[:, :2] - (self.left, self.top)) * self.scale
        return moved

    def to_image(self, minutiae: np.ndarray) -> np.ndarray:
        """Convert minutiae (n, 4) x, y, angle, quality from canvas pixels to image pixels."""
        moved = minutiae.copy()
        moved[:, :2] = minutiae[:, :2] / self.scale + (self.left, self.top)
        return moved


def find_frame(grey: np.ndarray, ppi: float, dataset_ppi: int, canvas: int) -> Frame:
    """Return the position and scale of the canvas that `put_on_canvas` uses for an image.

    Args:
        grey: (H, W) uint8, ridges dark.
        ppi: resolution of the image, pixels per inch.
        dataset_ppi: resolution of the canvas, pixels per inch.
        canvas: side of the canvas, pixels.

    Raises:
        CanvasError: if the image shows no ridges.
    """
    return _frame(*_print_mask(grey, _smoothed(grey), ppi), dataset_ppi / ppi, canvas)


def _print_mask(grey: np.ndarray, smooth: np.ndarray, ppi: float) -> tuple[np.ndarray, int]:
    """Return the mask and block side of `ridge_mask`, and check that enough blocks of the image contain ridges.

    Args:
        grey: (H, W) uint8, the image.
        smooth: (H, W) uint8, the image after `_smoothed`.
        ppi: resolution of the image, pixels per inch.

    Raises:
        CanvasError: if the image shows too few ridges.
    """
    if int(grey.max()) - int(grey.min()) < 4 * MIN_CONTRAST:
        raise CanvasError("blank: the image has almost no contrast")
    mask, block = _ridge_mask(smooth, ppi)
    if mask.sum() < MIN_BLOCKS:
        raise CanvasError("no ridges found: the image shows no fingerprint, or its ppi is wrong")
    return mask, block


def _frame(mask: np.ndarray, block: int, scale: float, canvas: int) -> Frame:
    rows, columns = np.nonzero(mask)
    # The centre of the print is midway between the 5th and the 95th percentile of the positions of its blocks. The mean
    # position would be off-centre if half of a print is dry.
    centre_y = (np.percentile(rows, 5) + np.percentile(rows, 95) + 1) / 2 * block
    centre_x = (np.percentile(columns, 5) + np.percentile(columns, 95) + 1) / 2 * block
    half = canvas / 2 / scale
    return Frame(float(centre_x - half), float(centre_y - half), scale)


def ridge_mask(grey: np.ndarray, ppi: float) -> tuple[np.ndarray, int]:
    """Mark the blocks of an image that contain ridges.

    A block is marked if its contrast is high and its grey values are spread to both sides of their mean.

    Args:
        grey: (H, W) uint8.
        ppi: resolution of the image, pixels per inch.

    Returns:
        (rows, columns) bool mask with one entry per block, and the side of a block in pixels.

    Raises:
        CanvasError: if the image is too small to hold a print.
    """
    return _ridge_mask(_smoothed(grey), ppi)


def _smoothed(grey: np.ndarray) -> np.ndarray:
    """Blur a (H, W) uint8 image with a 3 x 3 box filter, so that sensor noise is not detected as ridges."""
    return np.asarray(Image.fromarray(grey).filter(ImageFilter.BoxBlur(1)))


def _ridge_mask(smooth: np.ndarray, ppi: float) -> tuple[np.ndarray, int]:
    block = max(4, round(BLOCK_MM / 25.4 * ppi))
    rows, columns = smooth.shape[0] // block, smooth.shape[1] // block
    if rows < 2 or columns < 2:
        raise CanvasError("too small to hold a print: a side is shorter than 1.6 mm, or the ppi is wrong")
    blocks = smooth[: rows * block, : columns * block].reshape(rows, block, columns, block)
    deviation, varied = np.empty((rows, columns), np.float32), np.empty((rows, columns), bool)
    for some in strips(rows, block * block * columns):
        tiles = blocks[some].astype(np.float32)
        spread = deviation[some] = tiles.std(axis=(1, 3))
        tiles -= tiles.mean(axis=(1, 3), keepdims=True)
        varied[some] = (np.abs(tiles) > spread[:, None, :, None] * 0.5).mean(axis=(1, 3)) > 0.3
    mask = deviation > max(MIN_CONTRAST, 0.35 * float(np.percentile(deviation, 95)))
    return _main_part(_neighbours(mask & varied) >= 5), block


def _neighbours(mask: np.ndarray) -> np.ndarray:
    """Return the number of true values in the 3 x 3 neighbourhood of each mask entry, as a (rows, columns) array."""
    counts: np.ndarray = around(mask.astype(np.int32)).sum(axis=0)
    return counts


def _main_part(mask: np.ndarray) -> np.ndarray:
    """Keep the largest connected component of a mask, and all components with at least a quarter of its area."""
    labels = connected_parts(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, np.flatnonzero(sizes >= max(1, sizes.max() // 4))) & mask


def put_on_canvas(
    grey: np.ndarray, minutiae: np.ndarray, ppi: float, dataset_ppi: int, canvas: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centre a print on a square canvas with white background, at the resolution of the dataset.

    The print is not rotated.

    Args:
        grey: (H, W) uint8, ridges dark.
        minutiae: (n, 4) float32 x, y, angle, quality in image pixels.
        ppi: resolution of the image, pixels per inch.
        dataset_ppi: resolution of the canvas, pixels per inch.
        canvas: side of the canvas, pixels.

    Returns:
        (canvas, canvas) uint8 image and (m, 4) float32 minutiae in canvas pixels. Minutiae outside the canvas are
        dropped, so m <= n.

    Raises:
        CanvasError: if the image shows no ridges.
    """
    smooth = _smoothed(grey)
    mask, block = _print_mask(grey, smooth, ppi)
    frame = _frame(mask, block, dataset_ppi / ppi, canvas)
    side = canvas / frame.scale
    contact = _contact(mask, block, frame.left, frame.top, side, canvas)
    image = WHITE + contact * (_cut(_on_white(grey, smooth, block), frame.left, frame.top, side, canvas) - WHITE)
    return image.round().astype(np.uint8), _on_canvas(frame.to_canvas(minutiae), canvas)


def recanvas(image: np.ndarray, minutiae: np.ndarray, scale: float, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """Copy a print to a canvas of a different size or resolution. The centres of both canvases coincide.

    If `scale` is 1, pixels are copied without resampling. In this case, the centre moves by half a pixel if the sides
    of the two canvases differ by an odd number of pixels.

    Args:
        image: (C, C) uint8, the old canvas.
        minutiae: (n, 4) float32 x, y, angle, quality in pixels of the old canvas.
        scale: pixels of the new canvas per pixel of the old canvas.
        canvas: side of the new canvas, pixels.

    Returns:
        (canvas, canvas) uint8 image, white outside the old canvas, and (m, 4) float32 minutiae in pixels of the new
        canvas. Minutiae outside the new canvas are dropped, so m <= n.
    """
    before, side = image.shape[0], canvas / scale
    left = recanvas_left(before, scale, canvas)
    margin = max(0, int(np.ceil(-left))) + 2  # the bicubic filter reads 2 pixels beyond the box
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
    """Return the position of the left and top edge of the new canvas of `recanvas`, in pixels of the old canvas.

    Args:
        before: side of the old canvas, pixels.
        scale: pixels of the new canvas per pixel of the old one.
        canvas: side of the new canvas, pixels.
    """
    return float((before - canvas) // 2) if scale == 1 else (before - canvas / scale) / 2


def _on_canvas(minutiae: np.ndarray, canvas: int) -> np.ndarray:
    return minutiae[((minutiae[:, :2] >= 0) & (minutiae[:, :2] < canvas)).all(axis=1)]


def _on_white(grey: np.ndarray, smooth: np.ndarray, block: int) -> np.ndarray:
    """Normalise the background of a print to white.

    Sensors have grey backgrounds that are brighter in the middle, and skin darkens the valleys. A single background
    level would wash out ridges in bright regions. Each pixel is therefore divided by a local background, which is the
    brightness of valleys or paper within one and a half blocks.

    Args:
        grey: (H, W) uint8, the image.
        smooth: (H, W) uint8, the image without noise, see `_smoothed`.
        block: side of a block, pixels.

    Returns:
        (H, W) uint8.
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
    there = Image.fromarray(paper).resize(size, Image.Resampling.BILINEAR)
    result = np.empty_like(grey)
    height, width = grey.shape
    for some in strips(height, width):
        part = there if some == slice(0, height) else there.crop((0, some.start, width, some.stop))  # a crop is a copy
        brightness = np.asarray(part)[: some.stop - some.start, :width]
        scaled = WHITE / brightness
        np.multiply(grey[some], scaled, out=scaled)  # a new array would take new pages of memory from the system
        result[some] = np.minimum(scaled, WHITE, out=scaled)
    return result


def _cut(grey: np.ndarray, left: float, top: float, side: float, canvas: int) -> np.ndarray:
    """Cut a square from an image and resample it to (canvas, canvas) float32. Parts outside the image are white.

    Args:
        grey: (H, W) uint8.
        left: left edge of the square, image pixels.
        top: top edge of the square, image pixels.
        side: side of the square, image pixels.
        canvas: side of the result, pixels.
    """
    margin = int(np.ceil(max(0.0, -left, -top, left + side - grey.shape[1], top + side - grey.shape[0]))) + 1
    size = grey.shape[1] + 2 * margin, grey.shape[0] + 2 * margin
    if size[0] * size[1] > MOST_PADDED:
        raise CanvasError("the canvas is much larger than the image: its ppi is wrong")
    padded = Image.new("L", size, WHITE)
    padded.paste(Image.fromarray(grey), (margin, margin))
    box = (left + margin, top + margin, left + margin + side, top + margin + side)
    return np.asarray(padded.resize((canvas, canvas), Image.Resampling.BICUBIC, box=box), np.float32)


def _contact(mask: np.ndarray, block: int, left: float, top: float, side: float, canvas: int) -> np.ndarray:
    """Return a (canvas, canvas) float32 soft mask of the canvas area that the print covers.

    The mask is 1 on the print and up to two blocks around it, and decreases smoothly to 0 outside.

    Args:
        mask: (rows, columns) bool, blocks with ridges.
        block: side of a block, image pixels.
        left: left edge of the canvas on the image, image pixels.
        top: top edge of the canvas on the image, image pixels.
        side: side of the canvas, image pixels.
        canvas: side of the canvas, pixels.
    """
    grown = _neighbours(_neighbours(_filled(mask)) > 0) > 0
    margin = int(np.ceil(max(mask.shape) + side / block))
    padded = Image.fromarray(np.pad(grown.astype(np.uint8) * 255, margin))
    box = (left / block + margin, top / block + margin, (left + side) / block + margin, (top + side) / block + margin)
    return np.asarray(padded.resize((canvas, canvas), Image.Resampling.BILINEAR, box=box), np.float32) / 255


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill the gaps of a (rows, columns) bool mask. A wet patch inside a print can cause a gap.

    An entry is filled if there are true entries to its left and right, and also above and below it.
    """
    between = np.ones_like(mask)
    for axis in (0, 1):
        after = np.logical_or.accumulate(mask, axis)
        before = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis)
        between &= after & before
    return mask | between
