"""NIST's own minutiae detector (mindtct), matcher (Bozorth3) and NFIQ 2, through `nbis-py`, which compiles their code.

mindtct finds x and y from the top left, directions in steps of 11.25 degrees that mean what ours mean (towards the
side with more ridges, as in ISO/IEC 19794-2), and a reliability from 0 to 1. With `contrast_boost` it repeats
`mindtct -b`: of the 3,877 minutiae published for FVC2000 DB1_B, 98 % to the pixel.
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

PPI = 500  # the resolution that all three are made for
ENDING, BIFURCATION = 1, 2
SMALLEST = 32  # side of an image, pixels: NIST's code reads beyond the ends of images of fewer than 16 and crashes
RELIABLE = 0.3  # on clean synthetic prints 94 % of such minutiae are there, 67 % of all (benchmarks/minutiae_worth.py)
EMPTY_TEMPLATE = 26  # bytes of a template without minutiae
FEW, RUN = 10, 5  # a tail of the histogram begins at 5 grey values with fewer than 10 pixels each


@dataclass(frozen=True)
class Found:
    """What NBIS says about one print.

    Attributes:
        minutiae: (n, 4) x, y, angle, reliability, in pixels of the image at 500 ppi.
        kinds: (n,) ENDING or BIFURCATION.
        template: for `Nbis.compare`.
        quality: NFIQ 2 score, 0 to 100; NaN where it gives none.
    """

    minutiae: np.ndarray
    kinds: np.ndarray
    template: bytes
    quality: float


class Nbis:
    """One process's handle.

    Raises:
        UserError: `nbis-py` is not installed, or has no library for this machine.
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
        """Minutiae of the boosted image, quality of the image as it is; (H, W) uint8 at 500 ppi."""
        found = self._boosted(grey)
        kinds = np.array([minutia.kind().value for minutia in found.get()], np.int64)
        return Found(_table(found), kinds, bytes(found.to_iso_19794_2_2005()), self.quality(grey))

    def minutiae(self, grey: np.ndarray) -> np.ndarray:
        """The minutiae of `extract` alone: (n, 4) float32."""
        return _table(self._boosted(grey)).astype(np.float32)

    def template(self, grey: np.ndarray) -> bytes:
        """The template of `extract` alone, in a fifth of the time; (H, W) uint8 at 500 ppi."""
        return bytes(self._boosted(grey).to_iso_19794_2_2005())

    def _boosted(self, grey: np.ndarray) -> Any:
        return self._detector.extract_minutiae(_png(contrast_boost(grey)))

    def quality(self, grey: np.ndarray) -> float:
        """NFIQ 2 score of a print (H, W) uint8 at 500 ppi; nan where it shows too little to judge."""
        try:
            return float(self._judge.extract_minutiae(_png(grey)).quality().score)
        except self._nbis.NbisError.Nfiq2ComputeFailed:  # too little print to judge
            return float("nan")

    def compare(self, first: bytes, second: bytes) -> int:
        """Bozorth3's score of two templates; 0 where one has no minutiae."""
        if min(len(first), len(second)) <= EMPTY_TEMPLATE:  # the library refuses to load it
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
    """mindtct's minutiae of a print at any resolution: (n, 4) float32 x, y, angle, reliability in pixels of the image.

    Those that it calls less reliable than RELIABLE are left out: a network that learns from them learns what is not
    there.

    Args:
        grey: (H, W) uint8, ridges dark.
        ppi: of the image.

    Returns:
        None of an image with a side below 1.6 mm, which cannot show a print.

    Raises:
        UserError: `nbis-py` is not installed.
    """
    handle, known = _handle(), _at_500(grey, ppi)
    if min(known.shape) < SMALLEST:
        return np.empty((0, 4), np.float32)
    minutiae = handle.minutiae(known)
    minutiae = minutiae[minutiae[:, 3] >= RELIABLE]
    minutiae[:, :2] *= ppi / PPI
    return minutiae


def nfiq2(grey: np.ndarray, ppi: float) -> int:
    """NFIQ 2 score of a print (H, W) uint8 at any resolution, 0 to 100; -1 where it shows too little to judge.

    Raises:
        UserError: `nbis-py` is not installed.
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
    """What `mindtct -b` does first: cuts the tails of the histogram off and stretches the rest over 0 to 255.

    Source: NBIS 5.0, User's Guide to NIST Biometric Image Software (NISTIR 7392), section on MINDTCT.
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
    """Where the first RUN of True begins."""
    windows = np.convolve(few, np.ones(RUN, np.int64), "valid") == RUN if len(few) >= RUN else few[:0]
    return int(windows.argmax()) if windows.any() else None
