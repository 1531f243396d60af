"""Describe a dataset by a table of its counts and by a contact sheet, which is an image of some of its prints."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.durable import write_file
from fingerprint_accel.outputs import PICTURE, check_picture, mark
from fingerprint_accel.text import aligned

COLUMNS = 8
LABEL = 18  # height of the text above a print, pixels


def describe(shards: Shards) -> str:
    """Return the counts and properties of a dataset as a table of aligned text."""
    info = shards.info
    per_finger = np.bincount(shards.fingers)
    minutiae = shards.minutiae(np.arange(min(len(shards), 1000)))[1]
    sizes, fingers = np.unique(per_finger, return_counts=True)
    rows = [
        ("prints", f"{info.prints}"),
        ("fingers", f"{info.fingers}"),
        ("impressions per finger", f"{per_finger.min()} to {per_finger.max()}, median {int(np.median(per_finger))}"),
    ]
    rows += [(f"  {size}", f"{number} fingers") for size, number in list(zip(sizes, fingers, strict=True))[:12]]
    rows += [
        ("ppi", f"{info.ppi}"),
        ("canvas", f"{info.canvas} x {info.canvas} pixels ({info.canvas / info.ppi * 25.4:.1f} mm)"),
        ("encoding", info.encoding),
        ("enhanced", "yes" if info.enhanced else "no"),
        ("with minutiae", f"{info.with_minutiae} ({info.with_minutiae / info.prints:.0%})"),
    ]
    if info.with_minutiae:
        rows.append(("minutiae per print", f"median {int(np.median(minutiae[minutiae > 0]))}"))
    if shards.has_truth:
        known = np.count_nonzero(shards.truth_known(np.arange(len(shards))))
        rows.append(("with pose and contact", f"{known} ({known / info.prints:.0%})"))
    if shards.has_nfiq2:
        scores = shards.nfiq2()
        scores = scores[scores >= 0]
        median = f"median {int(np.median(scores))}, " if len(scores) else ""
        rows.append(("NFIQ 2", f"{median}scores of {len(scores)} prints ({len(scores) / info.prints:.0%})"))
    size = sum(file.stat().st_size for file in shards.folder.iterdir()) / 1e6
    rows += [("shards", f"{len(info.sha256)}"), ("MB", f"{size:.1f}")]
    return aligned(rows)


def contact_sheet(shards: Shards, fingers: int = 5, minutiae: bool = False, columns: int = COLUMNS) -> Image.Image:
    """Draw the prints of some fingers of a dataset: one row per finger, with its first impressions side by side.

    Args:
        shards: the dataset.
        fingers: number of fingers, spread evenly over the dataset.
        minutiae: whether to draw each minutia as a circle with a line in the direction of the minutia.
        columns: maximum number of impressions to draw per finger.
    """
    chosen = np.unique(np.linspace(0, shards.info.fingers - 1, fingers).astype(int))
    side = shards.info.canvas
    columns = min(columns, int(np.bincount(shards.fingers)[chosen].max()))
    sheet = Image.new("RGB", (columns * side, len(chosen) * (side + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for line, finger in enumerate(chosen.tolist()):
        rows = np.flatnonzero(shards.fingers == finger)
        rows = rows[np.argsort(shards.impressions[rows], kind="stable")][:columns]
        for column, row in enumerate(rows.tolist()):
            corner = (column * side, line * (side + LABEL))
            sheet.paste(Image.fromarray(shards.image(row)), (corner[0], corner[1] + LABEL))
            text = f"{shards.key_of_finger[finger]}  impression {shards.impressions[row]}"
            draw.text((corner[0] + 4, corner[1] + 1), text[:40], fill="black", font=font)
            if minutiae:
                draw_minutiae(draw, shards, row, corner[0], corner[1] + LABEL)
    for column in range(1, columns):
        draw.line([(column * side, 0), (column * side, sheet.height)], fill=(200, 200, 200))
    return sheet


def draw_minutiae(draw: ImageDraw.ImageDraw, shards: Shards, row: int, left: int, top: int) -> None:
    """Draw the minutiae of a print as circles with a line in their direction.

    Args:
        draw: image to draw on.
        shards: the dataset.
        row: row index of the print in the dataset.
        left: x of the left edge of the print in the image, pixels.
        top: y of the top edge of the print in the image, pixels.
    """
    points, counts = shards.minutiae(np.array([row]))
    for x, y, angle, _ in points[0, : counts[0]].tolist():
        x, y = left + x, top + y
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=(213, 94, 0))
        draw.line((x, y, x + 10 * np.cos(angle), y - 10 * np.sin(angle)), fill=(0, 114, 178), width=2)


def save_contact_sheet(shards: Shards, path: Path, fingers: int = 5, minutiae: bool = False) -> None:
    """Draw a contact sheet with `contact_sheet`, and write it as a PNG file.

    Args:
        shards: the dataset.
        path: file to write.
        fingers: number of fingers.
        minutiae: whether to draw minutiae.

    Raises:
        UserError: if `path` does not end in .png, or is a file that was not written by this package.
    """
    check_picture(path)
    info = PngInfo()
    info.add_text("Software", mark(PICTURE))
    buffer = io.BytesIO()
    contact_sheet(shards, fingers, minutiae).save(buffer, format="PNG", pnginfo=info)
    write_file(path, buffer.getvalue())
