"""NIST's own minutiae detector (mindtct), matcher (Bozorth3) and NFIQ 2, through `nbis-py`, which compiles their code.

mindtct finds x and y from the top left, directions in steps of 11.25 degrees that mean what ours mean (towards the
side with more ridges, as in ISO/IEC 19794-2), and a reliability from 0 to 1. With `contrast_boost` it repeats
`mindtct -b`: of the 3,877 minutiae published for FVC2000 DB1_B, 98 % to the pixel.
"""

from __future__ import annotations

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
        rows = [(m.x(), m.y(), math.radians(m.angle()), m.reliability(), m.kind().value) for m in found.get()]
        table = np.array(rows, np.float64).reshape(-1, 5)
        return Found(
            table[:, :4], table[:, 4].astype(np.int64), bytes(found.to_iso_19794_2_2005()), self._quality(grey)
        )

    def template(self, grey: np.ndarray) -> bytes:
        """The template of `extract` alone, in a fifth of the time; (H, W) uint8 at 500 ppi."""
        return bytes(self._boosted(grey).to_iso_19794_2_2005())

    def _boosted(self, grey: np.ndarray) -> Any:
        return self._detector.extract_minutiae(_png(contrast_boost(grey)))

    def _quality(self, grey: np.ndarray) -> float:
        try:
            return float(self._judge.extract_minutiae(_png(grey)).quality().score)
        except self._nbis.NbisError.Nfiq2ComputeFailed:  # too little print to judge
            return float("nan")

    def compare(self, first: bytes, second: bytes) -> int:
        """Bozorth3's score of two templates."""
        for template in (first, second):
            if template not in self._loaded:
                self._loaded[template] = self._detector.load_iso_19794_2_2005(template)
        return int(self._loaded[first].compare(self._loaded[second]))


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
