"""One print of a file on its canvas, in a worker process. Imports little, because every worker pays for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fingerprint_accel.data.canvas import CanvasError, put_on_canvas
from fingerprint_accel.data.captures import IMAGE_PPI, read_capture, split_name
from fingerprint_accel.data.decoding import ImageError
from fingerprint_accel.data.minutiae_fit import why_foreign
from fingerprint_accel.data.plausibility import is_inverted, ridge_period
from fingerprint_accel.data.templates import NO_MINUTIAE, TemplateError, read_template

# (canvas (S, S) uint8, ppi) -> the same, enhanced. The filters live in `preprocess`, which stands after `data`, so
# whoever asks for them passes the function in; it is a module's function, so that worker processes can be sent it.
Enhance = Callable[[np.ndarray, int], np.ndarray]
INVERTED = "light ridges on dark paper: inverted"


@dataclass(frozen=True)
class Reading:
    """How image files are to be understood; every verb that reads prints goes by it.

    Attributes:
        ppi: of images that do not state their own.
        inverted: ridges are light on dark: "auto" looks at the paper of each print, "yes" and "no" say it for all.
        mirror: images are seen from behind, as prints lifted with tape are; left becomes right.
        raw_size: (height, width) of files of raw pixels.
        xyt_kind: convention of `.xyt` files, see `templates.XYT_KINDS`; empty: each tells its own.
    """

    ppi: int = IMAGE_PPI
    inverted: Literal["auto", "yes", "no"] = "auto"
    mirror: bool = False
    raw_size: tuple[int, int] | None = None
    xyt_kind: str = ""


@dataclass(frozen=True)
class PrintImage:
    """A print as it lies on its image.

    Attributes:
        grey: (H, W) uint8, ridges dark.
        ppi: of the image.
        minutiae: (n, 4) float32 x, y, angle, quality in pixels of the image; None where nothing states them.
        quality: NFIQ 2 score that its file states, else -1.
        notes: what is worth knowing of how it was read.
        pages: of the file.
    """

    grey: np.ndarray
    ppi: float
    minutiae: np.ndarray | None
    quality: int = -1
    notes: tuple[str, ...] = ()
    pages: int = 1


def open_print(
    path: Path, reading: Reading, record: int = 0, cut: int = 0, slap: int = 0, ppi: float = 0.0
) -> PrintImage:
    """Reads one print of any file: upright, ridges dark, not mirrored.

    Args:
        path: of the file.
        reading: how to understand it.
        record, cut, slap: as of `read_capture`.
        ppi: where a name or list states it; it wins over the file.

    Raises:
        ImageError: as of `read_capture`.
    """
    capture = read_capture(path, record, cut, slap=slap, ppi=ppi or reading.ppi, raw_size=reading.raw_size)
    known = ppi or capture.ppi or reading.ppi
    grey, notes = _turned(capture.grey, reading)
    if capture.stated_ppi and abs(capture.stated_ppi - known) > 0.02 * known:
        notes.append(f"its tags say {capture.stated_ppi:.0f} ppi, {known:.0f} were used")
    minutiae = _mirrored(capture.minutiae, grey.shape[1]) if reading.mirror else capture.minutiae
    return PrintImage(grey, known, minutiae, capture.quality, tuple(notes), capture.pages)


def open_image(image: np.ndarray | Path | str, reading: Reading, ppi: float = 0.0) -> PrintImage:
    """Reads one print from an image (H, W) uint8, a file, or `file#record-finger`; arguments as of `open_print`."""
    if isinstance(image, np.ndarray):
        grey, notes = _turned(image, reading)
        return PrintImage(grey, ppi or reading.ppi, None, notes=tuple(notes))
    path, record, cut = split_name(str(image))
    return open_print(Path(path), reading, record, cut, 0, ppi)


def _turned(grey: np.ndarray, reading: Reading) -> tuple[np.ndarray, list[str]]:
    """(H, W) uint8 with dark ridges and not mirrored, and what was changed."""
    notes = []
    if reading.inverted == "yes" or (reading.inverted == "auto" and is_inverted(grey)):
        grey = 255 - grey
        notes.append(INVERTED)
    return np.ascontiguousarray(grey[:, ::-1]) if reading.mirror else grey, notes


def _mirrored(minutiae: np.ndarray | None, width: int) -> np.ndarray | None:
    if minutiae is None:
        return None
    mirrored = minutiae.copy()
    mirrored[:, 0] = width - 1 - minutiae[:, 0]
    mirrored[:, 2] = (math.pi - minutiae[:, 2]) % (2 * math.pi)
    return mirrored


@dataclass(frozen=True)
class Target:
    """What the prints of a dataset look like, and what is found out about them.

    Attributes:
        ppi: resolution, pixels per inch.
        canvas: side, pixels.
        enhance: done once to every canvas.
        find_minutiae: "mindtct" where no file states them.
        nfiq2: also measure the NFIQ 2 score.
    """

    ppi: int
    canvas: int
    enhance: Enhance | None = None
    find_minutiae: str = ""
    nfiq2: bool = False


@dataclass(frozen=True)
class ImageFile:
    """A print to import.

    Attributes:
        path: of its file.
        ppi: that a name or list states; 0 where the file or `Reading` decides.
        minutiae: its minutiae file.
        minutiae_reason: why that is not to be used, if so.
        record, cut, slap: as of `captures.read_capture`.
        position: of the finger; 0 where it is not known.
        name, finger_key, impression, finger: as of `shard_writing.Record`, whose `source` is the name.
    """

    path: Path
    ppi: int = 0
    minutiae: Path | None = None
    minutiae_reason: str = ""
    record: int = 0
    cut: int = 0
    slap: int = 0
    position: int = 0
    name: str = ""
    finger_key: str = ""
    impression: int = -1
    finger: int = 0


@dataclass(frozen=True)
class Prepared:
    """What became of a print: an image (canvas, canvas) uint8, or a reason; and a reason if its minutiae failed.

    `period` is the distance of its ridges in mm, `quality` its NFIQ 2 score (-1: not known), `notes` what is worth
    knowing of how it was read.
    """

    image: np.ndarray | None
    minutiae: np.ndarray
    reason: str = ""
    minutiae_reason: str = ""
    period: float = math.nan
    quality: int = -1
    notes: tuple[str, ...] = ()
    pages: int = 1


def prepare(file: ImageFile, reading: Reading, target: Target) -> Prepared:
    """Reads and places one print; never raises for what a file holds."""
    minutiae_reason = file.minutiae_reason
    try:
        opened = open_print(file.path, reading, file.record, file.cut, file.slap, file.ppi)
        minutiae = opened.minutiae
        if file.minutiae is not None and not minutiae_reason:
            height, width = opened.grey.shape
            try:
                template = read_template(file.minutiae, height, file.position, reading.xyt_kind)
                minutiae = template.fitted(width, height, opened.ppi)
            except TemplateError as error:
                minutiae_reason = f"minutiae: {error}"
        if minutiae is not None and (foreign := why_foreign(opened.grey, opened.ppi, minutiae)):
            minutiae, minutiae_reason = None, f"minutiae: {foreign}"
        found, quality = _found_out(opened, minutiae, target)
        image, placed = put_on_canvas(opened.grey, found, opened.ppi, target.ppi, target.canvas)
    except (ImageError, CanvasError) as error:
        return Prepared(None, NO_MINUTIAE, str(error), minutiae_reason)
    if target.enhance is not None:
        image = target.enhance(image, target.ppi)
    period = ridge_period(opened.grey, opened.ppi)
    return Prepared(image, placed, "", minutiae_reason, period, quality, opened.notes, opened.pages)


def _found_out(opened: PrintImage, minutiae: np.ndarray | None, target: Target) -> tuple[np.ndarray, int]:
    """Minutiae and NFIQ 2 score of a print: stated ones, or what NIST's programs find where that is wanted."""
    quality = opened.quality
    if (minutiae is None and target.find_minutiae) or (target.nfiq2 and quality < 0):
        from fingerprint_accel.data import nbis  # native code that few need

        if minutiae is None and target.find_minutiae:
            minutiae = nbis.find_minutiae(opened.grey, opened.ppi)
        if target.nfiq2 and quality < 0:
            quality = nbis.nfiq2(opened.grey, opened.ppi)
    return NO_MINUTIAE if minutiae is None else minutiae, quality
