"""Place a print on a canvas: a square image of fixed size and resolution with a white background.

The functions find the ridges, centre them, remove the background and resample the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fingerprint_accel.data.regions import around, block_ranks, interpolated_rows
from fingerprint_accel.data.ridge_mask import MIN_CONTRAST, CanvasError, mask_of_smoothed, neighbours, smoothed

WHITE = 255
DARKEST_PAPER = 0.6  # lowest brightness of paper relative to bright parts of the image; wet patches are darker
MIN_BLOCKS = 12  # minimum number of blocks with ridges in a print
MOST_PADDED = 200_000_000  # largest number of pixels of an image with the white margin that a canvas needs


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
    return _frame(*_print_mask(grey, smoothed(grey), ppi), dataset_ppi / ppi, canvas)


def _print_mask(grey: np.ndarray, smooth: np.ndarray, ppi: float) -> tuple[np.ndarray, int]:
    """Return the mask and block side of `ridge_mask`, and check that enough blocks of the image contain ridges.

    Args:
        grey: (H, W) uint8, the image.
        smooth: (H, W) uint8, the image after `smoothed`.
        ppi: resolution of the image, pixels per inch.

    Raises:
        CanvasError: if the image shows too few ridges.
    """
    if int(grey.max()) - int(grey.min()) < 4 * MIN_CONTRAST:
        raise CanvasError("blank: the image has almost no contrast")
    mask, block = mask_of_smoothed(smooth, ppi)
    if mask.sum() < MIN_BLOCKS:
        raise CanvasError("no ridges found: the image shows no fingerprint, or its ppi is wrong")
    return mask, block


def _frame(mask: np.ndarray, block: int, scale: float, canvas: int) -> Frame:
    rows, columns = np.nonzero(mask)
    # The centre of the print is midway between the 5th and the 95th percentile of the positions of its blocks. The mean
    # position would be off-centre if half of a print is dry.
    first, last = np.percentile([rows, columns], (5, 95), axis=1)
    centre_y, centre_x = (first + last + 1) / 2 * block
    half = canvas / 2 / scale
    return Frame(float(centre_x - half), float(centre_y - half), scale)


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
    smooth = smoothed(grey)
    mask, block = _print_mask(grey, smooth, ppi)
    frame = _frame(mask, block, dataset_ppi / ppi, canvas)
    side = canvas / frame.scale
    contact = _contact(mask, block, frame.left, frame.top, side, canvas)
    rows, columns = _extent(contact.max(axis=1)), _extent(contact.max(axis=0))
    part = _cut(_on_white(grey, smooth, block), frame.left, frame.top, side, canvas, rows, columns)
    ink = np.bitwise_not(part).astype(np.uint16)
    ink *= contact[rows, columns]
    ink += WHITE // 2  # rounds the quotient; the sum still fits in 16 bits
    ink //= WHITE
    image = np.full((canvas, canvas), WHITE, np.uint8)
    image[rows, columns] -= ink.astype(np.uint8)
    return image, inside(frame.to_canvas(minutiae), canvas)


def _extent(there: np.ndarray) -> slice:
    """Return the slice from the first to the last entry of an array above 0; an empty slice if there is none."""
    found = np.flatnonzero(there)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def inside(minutiae: np.ndarray, canvas: int) -> np.ndarray:
    """Select the minutiae (n, 4) that lie on a canvas with sides of `canvas` pixels."""
    return minutiae[((minutiae[:, :2] >= 0) & (minutiae[:, :2] < canvas)).all(axis=1)]


def _on_white(grey: np.ndarray, smooth: np.ndarray, block: int) -> np.ndarray:
    """Normalise the background of a print to white.

    Sensors have grey backgrounds that are brighter in the middle, and skin darkens the valleys. A single background
    level would wash out ridges in bright regions. Each pixel is therefore divided by a local background, which is the
    brightness of valleys or paper within one and a half blocks.

    Args:
        grey: (H, W) uint8, the image.
        smooth: (H, W) uint8, the image without noise, see `smoothed`.
        block: side of a block, pixels.

    Returns:
        (H, W) uint8.
    """
    rows, columns = -(-grey.shape[0] // block), -(-grey.shape[1] // block)
    whole = np.pad(smooth, ((0, rows * block - grey.shape[0]), (0, columns * block - grey.shape[1])), mode="edge")
    paper = block_ranks(whole, block, round(0.95 * (block**2 - 1))).astype(np.float32)
    paper = around(paper, mode="edge").max(axis=0)
    paper = np.maximum(paper, max(1.0, DARKEST_PAPER * float(np.percentile(paper, 90))))
    for _ in range(3):
        paper = around(paper, mode="edge").mean(axis=0)
    across = np.concatenate([part for _, part in interpolated_rows(paper.T, block)])[: grey.shape[1]]
    result = np.empty_like(grey)
    for some, brightness in interpolated_rows(np.ascontiguousarray(across.T), block):
        there = grey[some]  # the last block may extend beyond the image
        scaled = WHITE / brightness[: len(there)]
        scaled *= there
        result[some] = np.minimum(scaled, WHITE, out=scaled)
    return result


def _cut(
    grey: np.ndarray, left: float, top: float, side: float, canvas: int, rows: slice, columns: slice
) -> np.ndarray:
    """Cut a square from an image, and resample it to a canvas. Parts outside the image are white.

    Args:
        grey: (H, W) uint8.
        left: left edge of the square, image pixels.
        top: top edge of the square, image pixels.
        side: side of the square, image pixels.
        canvas: side of the canvas, pixels.
        rows: rows of the canvas to return.
        columns: columns of the canvas to return.

    Returns:
        uint8 pixels of these rows and columns.
    """
    height, width = grey.shape
    margin = int(np.ceil(max(0.0, -left, -top, left + side - width, top + side - height))) + 1
    if (width + 2 * margin) * (height + 2 * margin) > MOST_PADDED:
        raise CanvasError("the canvas is much larger than the image: its ppi is wrong")
    # Pillow resamples along rows and then along columns. Two calls do the same for the needed rows and columns only.
    unit = side / canvas
    reach = 2 * max(1.0, unit) + 1  # of the bicubic filter
    first = min(height, max(0, int(top + rows.start * unit - reach)))
    last = max(first, min(height, int(np.ceil(top + rows.stop * unit + reach))))
    if first == last or columns.start == columns.stop:
        return np.full((rows.stop - rows.start, columns.stop - columns.start), WHITE, np.uint8)
    lines = Image.new("L", (width + 2 * margin, last - first), WHITE)
    lines.paste(Image.fromarray(grey[first:last]), (margin, 0))
    across = (left + margin, 0, left + margin + side, last - first)
    lines = lines.resize((canvas, last - first), Image.Resampling.BICUBIC, box=across)
    padded = Image.new("L", (columns.stop - columns.start, height + 2 * margin), WHITE)
    padded.paste(lines.crop((columns.start, 0, columns.stop, last - first)), (0, margin + first))
    down = (0, top + margin, padded.width, top + margin + side)
    return np.asarray(padded.resize((padded.width, canvas), Image.Resampling.BICUBIC, box=down))[rows]


def _contact(mask: np.ndarray, block: int, left: float, top: float, side: float, canvas: int) -> np.ndarray:
    """Return a (canvas, canvas) uint8 soft mask of the canvas area that the print covers.

    The mask is 255 on the print and up to two blocks around it, and decreases smoothly to 0 outside.

    Args:
        mask: (rows, columns) bool, blocks with ridges.
        block: side of a block, image pixels.
        left: left edge of the canvas on the image, image pixels.
        top: top edge of the canvas on the image, image pixels.
        side: side of the canvas, image pixels.
        canvas: side of the canvas, pixels.
    """
    grown = neighbours(neighbours(_filled(mask)) > 0) > 0
    margin = int(np.ceil(max(mask.shape) + side / block))
    padded = Image.fromarray(np.pad(grown.astype(np.uint8) * 255, margin))
    box = (left / block + margin, top / block + margin, (left + side) / block + margin, (top + side) / block + margin)
    return np.asarray(padded.resize((canvas, canvas), Image.Resampling.BILINEAR, box=box))


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
