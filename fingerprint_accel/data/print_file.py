"""Read one print from a file and place it on a canvas.

Worker processes of an import call these functions. The module imports little, because every worker process imports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fingerprint_accel.data.canvas import put_on_canvas
from fingerprint_accel.data.captures import IMAGE_PPI, read_capture, split_name
from fingerprint_accel.data.decoding import ImageError
from fingerprint_accel.data.minutiae_fit import why_foreign
from fingerprint_accel.data.plausibility import is_inverted, ridge_period
from fingerprint_accel.data.ridge_mask import CanvasError
from fingerprint_accel.data.templates import NO_MINUTIAE, TemplateError, read_template

# Type of functions that enhance the ridges of a print on its canvas (a square image). They take an image (S, S) uint8
# and its resolution in pixels per inch, and return an image (S, S) uint8. The filters are in `preprocess`, which `data`
# must not import, so callers pass the function. It must be defined at module level, so that it can be pickled.
Enhance = Callable[[np.ndarray, int], np.ndarray]
INVERTED = "light ridges on dark paper: inverted"


@dataclass(frozen=True)
class Reading:
    """Options for reading image files, shared by all commands that read prints.

    Attributes:
        ppi: resolution of images that do not state their own, pixels per inch.
        inverted: whether ridges are light on dark background: "yes", "no", or "auto" to detect it for each print.
        mirror: whether to flip images horizontally. Prints lifted with tape are mirrored and must be flipped.
        raw_size: (height, width) of files of raw pixels, or None.
        xyt_kind: convention of `.xyt` minutiae files, "nist" or "m1" (see `templates.xyt_kind`); empty to detect it for
            each file.
    """

    ppi: int = IMAGE_PPI
    inverted: Literal["auto", "yes", "no"] = "auto"
    mirror: bool = False
    raw_size: tuple[int, int] | None = None
    xyt_kind: str = ""


@dataclass(frozen=True)
class PrintImage:
    """One print as an image, before it is placed on a canvas.

    Attributes:
        grey: (H, W) uint8, ridges dark.
        ppi: resolution of the image, pixels per inch.
        minutiae: (n, 4) float32 x, y, angle, quality in pixels of the image; None if the file has none.
        quality: NFIQ 2 score in the file, 0 to 100; -1 if there is none.
        notes: remarks on how the print was read, for example that it was inverted.
        pages: number of pages of the file.
        minutiae_reason: reason why the minutiae in the file cannot be used; empty if they can, or there are none.
    """

    grey: np.ndarray
    ppi: float
    minutiae: np.ndarray | None
    quality: int = -1
    notes: tuple[str, ...] = ()
    pages: int = 1
    minutiae_reason: str = ""


def open_print(
    path: Path, reading: Reading, record: int = 0, cut: int = 0, slap: int = 0, ppi: float = 0.0
) -> PrintImage:
    """Read one print from a file of any supported format, and return it with dark ridges.

    The image is inverted and mirrored according to the options in `reading`.

    Args:
        path: path of the file.
        reading: options for reading.
        record: position of the record in a container file (a file with several images), from 1; 0 for an image file.
        cut: position of the finger to cut out of a slap (an image of several fingers); 0 for an image of one finger.
        slap: position code of a slap in an image file.
        ppi: resolution stated by the file name or a csv, pixels per inch; 0 for none. This value takes precedence over
            the resolution stated in the file.

    Raises:
        ImageError: if the print cannot be read, see `captures.read_capture`.
    """
    capture = read_capture(path, record, cut, slap=slap, ppi=ppi or reading.ppi, raw_size=reading.raw_size)
    known = ppi or capture.ppi or reading.ppi
    grey, notes = _turned(capture.grey, reading)
    if capture.stated_ppi and abs(capture.stated_ppi - known) > 0.02 * known:
        notes.append(f"its tags say {capture.stated_ppi:.0f} ppi, {known:.0f} were used")
    minutiae = _mirrored(capture.minutiae, grey.shape[1]) if reading.mirror else capture.minutiae
    reason = capture.minutiae_reason
    return PrintImage(grey, known, minutiae, capture.quality, tuple(notes), capture.pages, reason)


def open_image(image: np.ndarray | Path | str, reading: Reading, ppi: float = 0.0) -> PrintImage:
    """Read one print from an array or a file.

    Args:
        image: (H, W) uint8 array, path of a file, or `FILE#RECORD-FINGER` for one of several prints in a file.
        reading: options for reading.
        ppi: resolution of the image, pixels per inch. If it is 0, the resolution that the file or `reading` states is
            used.

    Raises:
        ImageError: if the print cannot be read, see `captures.read_capture`.
    """
    if isinstance(image, np.ndarray):
        grey, notes = _turned(image, reading)
        return PrintImage(grey, ppi or reading.ppi, None, notes=tuple(notes))
    path, record, cut = split_name(str(image))
    return open_print(Path(path), reading, record, cut, 0, ppi)


def _turned(grey: np.ndarray, reading: Reading) -> tuple[np.ndarray, list[str]]:
    """Invert and mirror a (H, W) uint8 image according to the options. Return the image, and notes on the changes."""
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
    """Format of the prints in a dataset, and measurements to make on import.

    Attributes:
        ppi: resolution of the canvases, pixels per inch.
        canvas: side of the canvases, pixels.
        enhance: function that enhances the ridges of each canvas, or None.
        find_minutiae: "mindtct" to find minutiae in prints without a minutiae file; empty for none.
        nfiq2: whether to measure the NFIQ 2 score of each print.
        period: whether to measure the distance of ridges.
    """

    ppi: int
    canvas: int
    enhance: Enhance | None = None
    find_minutiae: str = ""
    nfiq2: bool = False
    period: bool = True


@dataclass(frozen=True)
class ImageFile:
    """One print to import, described by its file and its finger.

    Attributes:
        path: path of the file.
        ppi: resolution stated by the file name or a csv, pixels per inch; 0 if none is stated.
        minutiae: path of the minutiae file of the print, or None.
        minutiae_reason: reason why the minutiae file must not be used; empty if it can be used.
        record: position of the record in a container file, from 1; 0 for an image file.
        cut: position of the finger to cut out of a slap (an image of several fingers); 0 for an image of one finger.
        slap: position code of a slap in an image file.
        position: position code of the finger; 0 if unknown.
        name: name of the print in the dataset.
        finger_key: identifier of the finger.
        impression: number of the impression.
        finger: index of the finger in the dataset.
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
    """Result of `prepare`: a print on its canvas, or the reason of the failure.

    Attributes:
        image: (canvas, canvas) uint8; None if the print cannot be used.
        minutiae: (n, 4) float32 x, y, angle, quality in canvas pixels.
        reason: reason why the print cannot be used; empty if it can be used.
        minutiae_reason: reason why the minutiae of the print cannot be used; empty if they can be used.
        period: distance of ridges, mm; NaN if it could not or need not be measured.
        quality: NFIQ 2 score, 0 to 100; -1 if unknown.
        notes: remarks on how the print was read.
        pages: number of pages of the file.
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
    """Read one print and place it on a canvas. If the file cannot be used, the result contains the reason.

    Args:
        file: the print to read.
        reading: options for reading the file.
        target: format of the print on the canvas, and measurements to make.
    """
    minutiae_reason = file.minutiae_reason
    try:
        opened = open_print(file.path, reading, file.record, file.cut, file.slap, file.ppi)
        minutiae = opened.minutiae
        if file.minutiae is None and opened.minutiae_reason:
            minutiae_reason = f"minutiae: {opened.minutiae_reason}"
        elif file.minutiae is not None and not minutiae_reason:
            height, width = opened.grey.shape
            try:
                template = read_template(file.minutiae, height, file.position, reading.xyt_kind)
                minutiae = template.fitted(width, height, opened.ppi)
            except TemplateError as error:
                minutiae_reason = f"minutiae: {error}"
        if minutiae is not None and (foreign := why_foreign(opened.grey, opened.ppi, minutiae)):
            minutiae, minutiae_reason = None, f"minutiae: {foreign}"
        found, quality, nist_reason = _found_out(opened, minutiae, target, file.name)
        image, placed = put_on_canvas(opened.grey, found, opened.ppi, target.ppi, target.canvas)
    except (ImageError, CanvasError) as error:
        return Prepared(None, NO_MINUTIAE, str(error), minutiae_reason)
    if target.enhance is not None:
        image = target.enhance(image, target.ppi)
    period = ridge_period(opened.grey, opened.ppi) if target.period else math.nan
    return Prepared(image, placed, "", minutiae_reason or nist_reason, period, quality, opened.notes, opened.pages)


def _found_out(
    opened: PrintImage, minutiae: np.ndarray | None, target: Target, name: str
) -> tuple[np.ndarray, int, str]:
    """Return the minutiae and the NFIQ 2 score of a print. Missing values are measured with NIST programs.

    Args:
        opened: the print.
        minutiae: (n, 4) x, y, angle, quality of known minutiae in image pixels, or None.
        target: measurements to make.
        name: name of the print, for error messages.

    Returns:
        (n, 4) float32 minutiae in image pixels, the score (-1 if unknown), and the reason if a program failed.
    """
    quality, reason = opened.quality, ""
    if (minutiae is None and target.find_minutiae) or (target.nfiq2 and quality < 0):
        from fingerprint_accel.data import nbis  # optional dependency

        try:
            if minutiae is None and target.find_minutiae:
                minutiae = nbis.find_minutiae(opened.grey, opened.ppi, name)
            if target.nfiq2 and quality < 0:
                quality = nbis.nfiq2(opened.grey, opened.ppi, name)
        except nbis.NistError as error:
            reason = f"minutiae or quality: {error}"
    return NO_MINUTIAE if minutiae is None else minutiae, quality, reason
