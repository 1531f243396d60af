"""Copy a print to a canvas, a square image, of a different size or resolution."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fingerprint_accel.data.canvas import WHITE, inside


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
    return np.asarray(moved_image), inside(moved, canvas)


def recanvas_left(before: int, scale: float, canvas: int) -> float:
    """Return the position of the left and top edge of the new canvas of `recanvas`, in pixels of the old canvas.

    Args:
        before: side of the old canvas, pixels.
        scale: pixels of the new canvas per pixel of the old one.
        canvas: side of the new canvas, pixels.
    """
    return float((before - canvas) // 2) if scale == 1 else (before - canvas / scale) / 2
