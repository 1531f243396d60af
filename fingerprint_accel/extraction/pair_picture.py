"""Draw images of prints: a compared pair side by side and overlaid, or a single print with its minutiae."""

from __future__ import annotations

import io
import math

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fingerprint_accel.extraction.comparison import Comparison
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.poses import MM_PER_INCH
from fingerprint_accel.outputs import PICTURE, mark
from fingerprint_accel.preprocess.geometric import Pose, resample, upright

REFERENCE, PROBE = (
    (0.0, 0.447, 0.698),
    (0.835, 0.369, 0.0),
)  # blue and vermilion of Okabe and Ito's palette
FINER = 2  # pixels of the drawn image per canvas pixel
SCALE_MM = 5  # length of the scale bar, mm


def pair_png(
    comparison: Comparison, names: tuple[str, str], extractor: FingerprintExtractor, heading: str = ""
) -> bytes:
    """Draw two compared prints: the reference in blue, the probe in red in its best pose, and both overlaid.

    The image also shows the similarity, the decisions, a scale bar and the outline of the network input.

    Args:
        comparison: result of `compare_prints`.
        names: names of reference and probe, for the titles.
        extractor: model that compared the prints.
        heading: text at the top; default: the similarity.

    Returns:
        Contents of a PNG file.
    """
    reference = _ink(comparison.canvases[0], upright(1, 1.0, torch.device("cpu")))
    probe = _ink(comparison.canvases[1], comparison.pose)
    pictures = [_tinted(reference, REFERENCE), _tinted(probe, PROBE)]
    pictures.append(pictures[0] * pictures[1])  # multiplying two images mixes their colours like inks
    titles = [
        f"reference {_short(names[0])}\nas it is",
        f"probe {_short(names[1])}\n{in_words(comparison.pose, extractor.ppi)}",
        "both\ndark where ridges of both lie",
    ]
    figure = Figure(figsize=(12, 5.4), facecolor="white")
    grid = figure.add_gridspec(1, 3, left=0.01, right=0.99, bottom=0.02, top=0.745, wspace=0.02)
    for column, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes, side = figure.add_subplot(grid[0, column]), extractor.canvas
        axes.imshow(picture, extent=(0, side, side, 0), interpolation="antialiased")
        axes.set(xticks=[], yticks=[], xlim=(0, side), ylim=(side, 0))
        axes.spines[:].set_color("0.8")
        axes.set_title(title, fontsize=10, parse_math=False)  # a name may contain dollar signs
    _outline(figure.axes[0], extractor)
    _write(figure, comparison, heading)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": mark(PICTURE)})
    return buffer.getvalue()


def canvas_picture(canvas: np.ndarray, minutiae: np.ndarray | None = None) -> PIL.Image.Image:
    """Draw a print, and its minutiae as circles with a line in their direction.

    Args:
        canvas: (S, S) uint8, ridges dark.
        minutiae: (n, 4) x and y in canvas pixels, angle in radians, score in 0..1. Minutiae of low score are drawn
            pale. None draws no minutiae.

    Returns:
        RGB image, enlarged by the factor `FINER` (2).
    """
    size = FINER * len(canvas)
    picture = PIL.Image.fromarray(canvas).resize((size, size), PIL.Image.Resampling.BICUBIC).convert("RGB")
    draw = PIL.ImageDraw.Draw(picture)
    colour = tuple(round(255 * part) for part in PROBE)
    for x, y, angle, score in [] if minutiae is None else (minutiae * (FINER, FINER, 1, 1)).tolist():
        faded = tuple(round(255 + (part - 255) * score) for part in colour)
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=faded, width=2)
        along = (math.cos(angle), -math.sin(angle))
        draw.line((x + 6 * along[0], y + 6 * along[1], x + 20 * along[0], y + 20 * along[1]), fill=faded, width=2)
    return picture


def in_words(pose: Pose, ppi: float) -> str:
    """Describe the rotation and shift of a pose as text, for example "turned 10° left, moved 2.0 mm right".

    Args:
        pose: pose of one print, without elastic distortion.
        ppi: resolution of the canvas, pixels per inch.
    """
    matrix, shift = pose.matrix[0], pose.shift[0]
    degrees = round(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
    x, y = (-(matrix.T @ shift) * (MM_PER_INCH / ppi)).tolist()
    turned = f"turned {abs(degrees)}° {'left' if degrees > 0 else 'right'}" if degrees else ""
    moves = [
        f"{abs(mm):.1f} mm {positive if mm > 0 else negative}"
        for mm, positive, negative in ((x, "right", "left"), (y, "down", "up"))
        if abs(mm) >= 0.05
    ]
    moved = "moved " + " and ".join(moves) if moves else ""
    return ", ".join(filter(None, (turned, moved))) or "as it is"


def _ink(canvas: np.ndarray, pose: Pose) -> np.ndarray:
    """Apply a pose (rotation and shift) to a print, and return its inverted, enlarged image.

    Args:
        canvas: (S, S) uint8, ridges dark.
        pose: pose of one print.

    Returns:
        (FINER * S, FINER * S) float32, 0 for white and 1 for black.
    """
    ink = 1 - torch.from_numpy(canvas)[None, None].float() / 255
    whole = Pose(pose.matrix, pose.shift, None, float(len(canvas)))
    return resample(ink, whole, FINER * len(canvas))[0, 0].numpy()


def _tinted(ink: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """Colour a print: convert ink (H, W) in 0..1 to an RGB image (H, W, 3) in 0..1 on a white background."""
    return 1 - ink[:, :, None] * (1 - np.array(colour, np.float32))


def _outline(axes: Axes, extractor: FingerprintExtractor) -> None:
    """Draw a scale bar, and a dotted square around the part of the canvas that the network receives."""
    side, crop = extractor.canvas, extractor.preprocess_config.crop
    start = (side - crop) / 2
    axes.add_patch(Rectangle((start, start), crop, crop, fill=False, edgecolor="0.5", linestyle=":"))
    length = SCALE_MM * extractor.ppi / MM_PER_INCH
    axes.plot([8, 8 + length], [side - 8, side - 8], color="black", linewidth=2)
    axes.text(8 + length / 2, side - 12, f"{SCALE_MM} mm", ha="center", fontsize=8)


def _write(figure: Figure, comparison: Comparison, heading: str) -> None:
    """Write the heading, the decisions and the source of the thresholds above the images."""
    (_, value), *verdicts = comparison.rows()
    figure.text(0.012, 0.955, heading or f"similarity {value}", fontsize=16, weight="bold", va="top")
    figure.text(0.012, 0.845 if verdicts else 0.885, comparison.basis, fontsize=8.5, va="top", color="0.3")
    for column, (rate, verdict) in enumerate(verdicts):
        colour, weight = ("#006B4F", "bold") if verdict.startswith("match") else ("0.3", "normal")
        place = (0.012 + column / 3, 0.885)
        figure.text(*place, f"{rate}: {verdict}", fontsize=11, va="top", color=colour, weight=weight)


def _short(name: str) -> str:
    """Shorten a name to at most 33 characters, so that it fits above a picture."""
    return name if len(name) <= 34 else f"{name[:16]}…{name[-16:]}"
