"""Find and match minutiae and measure image quality with NIST software, through the package `nbis-py`.

The programs are the minutiae detector mindtct, the matcher Bozorth3 and the quality measure NFIQ 2. mindtct returns x
and y from the top left corner, angles in steps of 11.25 degrees and a reliability from 0 to 1. Angles follow ISO/IEC
19794-2, as everywhere in this package. `contrast_boost` reproduces the option `-b` of mindtct: 98 % of the 3,877
minutiae published for FVC2000 DB1_B are found at exactly the same pixel.
"""

from __future__ import annotations

import functools
import importlib
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fingerprint_accel.errors import UserError

PPI = 500  # resolution that the three programs expect, pixels per inch
ENDING, BIFURCATION = 1, 2
SMALLEST = 32  # minimum side of an image, pixels; the NIST code crashes on images with a side below 16
# Minimum reliability of a minutia. On clean synthetic prints, 94 % of the minutiae with this reliability or more are
# real, compared with 67 % of all detected minutiae (benchmarks/minutiae_worth.py).
RELIABLE = 0.3
EMPTY_TEMPLATE = 26  # size of a record without minutiae, bytes
FEW, RUN = 10, 5  # a tail of the histogram starts at 5 consecutive grey levels with fewer than 10 pixels each


@dataclass(frozen=True)
class Found:
    """Results of the NIST software for one print.

    Attributes:
        minutiae: (n, 4) x, y (pixels of the image at 500 ppi), angle (radians) and reliability (0 to 1).
        kinds: (n,) int64, ENDING or BIFURCATION.
        template: ISO/IEC 19794-2:2005 record of the minutiae, for `Nbis.compare`.
        quality: NFIQ 2 score, 0 to 100; NaN if the print is too small to judge.
    """

    minutiae: np.ndarray
    kinds: np.ndarray
    template: bytes
    quality: float


class Nbis:
    """NIST software for minutiae and image quality, loaded into this process.

    Raises:
        UserError: if `nbis-py` is not installed or cannot run on this machine.
    """

    def __init__(self) -> None:
        try:
            self._nbis: Any = importlib.import_module("nbis")
        except ImportError as error:
            raise UserError("NIST's detector and matcher are not installed: pip install nbis-py") from error
        except OSError as error:
            raise UserError(f"nbis-py cannot run on this machine ({error})") from error
        self._detector, self._judge = self._extractor(quality=False), self._extractor(quality=True)
        self._loaded: dict[bytes, Any] = {}

    def _extractor(self, quality: bool) -> Any:
        settings = self._nbis.NbisExtractorSettings(
            min_quality=0.0, get_center=False, check_fingerprint=False, compute_nfiq2=quality, ppi=float(PPI)
        )
        return self._nbis.new_nbis_extractor(settings)

    def extract(self, grey: np.ndarray) -> Found:
        """Find the minutiae of a print and compute its NFIQ 2 score.

        Minutiae are searched after `contrast_boost`. The score is computed on the original image.

        Args:
            grey: (H, W) uint8 at 500 ppi, ridges dark.
        """
        found = self._boosted(grey)
        kinds = np.array([minutia.kind().value for minutia in found.get()], np.int64)
        return Found(_table(found), kinds, bytes(found.to_iso_19794_2_2005()), self.quality(grey))

    def minutiae(self, grey: np.ndarray) -> np.ndarray:
        """Find only the minutiae of a print, as `extract` does.

        Args:
            grey: (H, W) uint8 at 500 ppi, ridges dark.

        Returns:
            (n, 4) float32, see `Found.minutiae`.
        """
        return _table(self._boosted(grey)).astype(np.float32)

    def template(self, grey: np.ndarray) -> bytes:
        """Compute the minutiae record of a print. It equals that of `extract`, but takes a fifth of the time.

        Args:
            grey: (H, W) uint8 at 500 ppi, ridges dark.

        Returns:
            ISO/IEC 19794-2:2005 record, see `Found.template`.
        """
        return bytes(self._boosted(grey).to_iso_19794_2_2005())

    def _boosted(self, grey: np.ndarray) -> Any:
        return self._detector.extract_minutiae(_png(contrast_boost(grey)))

    def quality(self, grey: np.ndarray) -> float:
        """Return the NFIQ 2 score of a print, 0 to 100, or NaN if the print is too small to judge.

        Args:
            grey: (H, W) uint8 at 500 ppi, ridges dark.
        """
        try:
            return float(self._judge.extract_minutiae(_png(grey)).quality().score)
        except self._nbis.NbisError.Nfiq2ComputeFailed:  # the print is too small
            return float("nan")

    def compare(self, first: bytes, second: bytes) -> int:
        """Compare two minutiae records with the matcher Bozorth3, and return the similarity score, 0 or more.

        The score is 0 if a record has no minutiae, because the library cannot load an empty record.

        Args:
            first: record that `extract` or `template` has computed.
            second: record to compare with `first`.
        """
        if min(len(first), len(second)) <= EMPTY_TEMPLATE:
            return 0
        for template in (first, second):
            if template not in self._loaded:
                self._loaded[template] = self._detector.load_iso_19794_2_2005(template)
        return int(self._loaded[first].compare(self._loaded[second]))


def _table(found: Any) -> np.ndarray:
    rows = [(m.x(), m.y(), math.radians(m.angle()), m.reliability()) for m in found.get()]
    return np.array(rows, np.float64).reshape(-1, 4)


@functools.cache
def _handle() -> Nbis:
    return Nbis()


def find_minutiae(grey: np.ndarray, ppi: float) -> np.ndarray:
    """Find the minutiae of a print with mindtct, at any resolution.

    Minutiae with a reliability below RELIABLE are dropped, because many of them are false.

    Args:
        grey: (H, W) uint8, ridges dark.
        ppi: resolution of the image, pixels per inch.

    Returns:
        (n, 4) float32 x, y (image pixels), angle (radians) and reliability. n is 0 for an image with a side below
        1.6 mm.

    Raises:
        UserError: if `nbis-py` is not installed.
    """
    handle, known = _handle(), _at_500(grey, ppi)
    if min(known.shape) < SMALLEST:
        return np.empty((0, 4), np.float32)
    minutiae = handle.minutiae(known)
    minutiae = minutiae[minutiae[:, 3] >= RELIABLE]
    minutiae[:, :2] *= ppi / PPI
    return minutiae


def nfiq2(grey: np.ndarray, ppi: float) -> int:
    """Return the NFIQ 2 score of a print, 0 to 100; -1 if the print is too small to judge.

    Args:
        grey: (H, W) uint8, ridges dark.
        ppi: resolution of the image, pixels per inch.

    Raises:
        UserError: if `nbis-py` is not installed.
    """
    handle, known = _handle(), _at_500(grey, ppi)
    score = handle.quality(known) if min(known.shape) >= SMALLEST else math.nan
    return -1 if math.isnan(score) else round(score)


def find_template(grey: np.ndarray, ppi: float) -> bytes:
    """Return the minutiae of a print at any resolution as a template for `Nbis.compare`.

    Args:
        grey: (H, W) uint8, ridges dark, both sides at least 1.7 mm.
        ppi: Resolution of the image, pixels per inch.

    Raises:
        UserError: If `nbis-py` is not installed.
    """
    return _handle().template(_at_500(grey, ppi))


def _at_500(grey: np.ndarray, ppi: float) -> np.ndarray:
    if abs(ppi - PPI) < 0.01 * PPI:
        return grey
    size = (max(1, round(grey.shape[1] * PPI / ppi)), max(1, round(grey.shape[0] * PPI / ppi)))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))


def _png(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", compress_level=1)
    return file.getvalue()


def contrast_boost(grey: np.ndarray) -> np.ndarray:
    """Clip the histogram tails of a (H, W) uint8 image and stretch the remaining grey levels to 0..255.

    The option `-b` of mindtct does the same. Source: NBIS 5.0, User's Guide to NIST Biometric Image Software (NISTIR
    7392), section on MINDTCT.
    """
    few = np.bincount(grey.ravel(), minlength=256) < FEW
    middle = int(grey.mean())
    above, below = _tail(few[middle:]), _tail(few[middle::-1])
    high = 255 if above is None else middle + above - 1
    low = 0 if below is None else middle - below + 1
    if high <= low:
        return grey
    return np.clip((grey.astype(np.float32) - low) * np.float32(255 / (high - low)), 0, 255).astype(np.uint8)


def _tail(few: np.ndarray) -> int | None:
    """Return the start index of the first run of RUN true values in the (n,) bool mask `few`, or None."""
    windows = np.convolve(few, np.ones(RUN, np.int64), "valid") == RUN if len(few) >= RUN else few[:0]
    return int(windows.argmax()) if windows.any() else None
