"""Find and match minutiae and measure image quality with NIST software, through the package `nbis-py`.

The programs are the minutiae detector mindtct, the matcher Bozorth3 and the quality measure NFIQ 2. mindtct returns x
and y from the top left corner, angles in steps of 11.25 degrees and a reliability from 0 to 1. Angles follow ISO/IEC
19794-2, as everywhere in this package. `contrast_boost` reproduces the option `-b` of mindtct: 98 % of the 3,877
minutiae published for FVC2000 DB1_B are found at exactly the same pixel.
"""

from __future__ import annotations

import importlib
import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fingerprint_accel.data.child_process import MEMORY, TIME, Failed, Program, Refused, call
from fingerprint_accel.data.child_server import serve
from fingerprint_accel.errors import UserError
from fingerprint_accel.untrusted import reason_of

FIND_MINUTIAE, FIND_QUALITY, FIND_TEMPLATE = 0, 1, 2  # kinds of requests to the child process
REQUEST, SCORE = struct.Struct(">BIId"), struct.Struct(">i")  # headers: kind, height, width, ppi; NFIQ 2 score
# CPU time for a print, and address space. A rolled print of 40 x 38 mm takes up to 1 s, noise of that size too. NIST's
# code and models take 0.36 GB.
SECONDS, MEMORY_LIMIT = 5.0, 3 * 2**28
NIST = Program(
    "from fingerprint_accel.data.nbis import serve_nist; serve_nist()",
    "runs NIST's programs",
    2**24,
    lambda answer: True,
    "import nbis",
)
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


def import_nbis() -> Any:
    """Import and return the module of `nbis-py`.

    Raises:
        UserError: if it is not installed or cannot run on this machine.
    """
    try:
        return importlib.import_module("nbis")
    except ImportError as error:
        raise UserError("NIST's detector and matcher are not installed: pip install nbis-py") from error
    except OSError as error:
        raise UserError(f"nbis-py cannot run on this machine ({error})") from error


class Nbis:
    """NIST software for minutiae and image quality, loaded into this process.

    Raises:
        UserError: if `nbis-py` is not installed or cannot run on this machine.
    """

    def __init__(self) -> None:
        self._nbis = import_nbis()
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


class NistError(ValueError):
    """Raised if a NIST program fails on a print. The message gives the reason."""


def find_minutiae(grey: np.ndarray, ppi: float, name: str = "print") -> np.ndarray:
    """Find the minutiae of a print with mindtct, at any resolution.

    Minutiae with a reliability below RELIABLE are dropped, because many of them are false. This function and the
    functions below run NIST's code in a child process, because it may crash.

    Args:
        grey: (H, W) uint8, ridges dark.
        ppi: resolution of the image, pixels per inch.
        name: name of the print, for error messages.

    Returns:
        (n, 4) float32 x, y (image pixels), angle (radians) and reliability. n is 0 for an image with a side below
        1.6 mm.

    Raises:
        NistError: if mindtct crashes on the print, takes too long, or needs too much memory.
        UserError: if the process does not start or was killed from outside.
    """
    return np.frombuffer(_ask(FIND_MINUTIAE, grey, ppi, name), np.float32).reshape(-1, 4).copy()


def nfiq2(grey: np.ndarray, ppi: float, name: str = "print") -> int:
    """Return the NFIQ 2 score of a print, 0 to 100; -1 if the print is too small to judge.

    The arguments and errors are those of `find_minutiae`.
    """
    return int(SCORE.unpack(_ask(FIND_QUALITY, grey, ppi, name))[0])


def find_template(grey: np.ndarray, ppi: float, name: str = "print") -> bytes:
    """Return the minutiae of a print at any resolution as a template for `Nbis.compare`.

    The arguments and errors are those of `find_minutiae`. Both sides of the image must be at least 1.7 mm.
    """
    return _ask(FIND_TEMPLATE, grey, ppi, name)


def _ask(what: int, grey: np.ndarray, ppi: float, name: str) -> bytes:
    """Send a print to the child process, and return the answer.

    Args:
        what: FIND_MINUTIAE, FIND_QUALITY or FIND_TEMPLATE.
        grey: (H, W) uint8.
        ppi: resolution of the image, pixels per inch.
        name: name of the print, for error messages.
    """
    program = "NFIQ 2" if what == FIND_QUALITY else "mindtct"
    try:
        return call(NIST, REQUEST.pack(what, *grey.shape, ppi) + grey.tobytes(), name)
    except Refused as error:
        raise NistError(f"{program} failed ({error})") from None
    except Failed as error:
        how = {TIME: f"takes more than {SECONDS:.0f} s", MEMORY: "needs too much memory"}
        raise NistError(f"{program} {how.get(error.kind, f'crashed ({error.how})')}") from None


def serve_nist() -> None:
    """Run the loop of a child process that runs NIST's programs on prints sent on stdin."""
    handle = Nbis()
    serve(lambda data: [_answer(handle, data)], MEMORY_LIMIT, SECONDS)


def _answer(handle: Nbis, data: bytes) -> bytes:
    what, height, width, ppi = REQUEST.unpack_from(data)
    grey = np.frombuffer(data, np.uint8, offset=REQUEST.size).reshape(height, width)
    known = _at_500(grey, ppi)
    try:
        if what == FIND_TEMPLATE:
            return handle.template(known)
        large = min(known.shape) >= SMALLEST
        if what == FIND_QUALITY:
            score = handle.quality(known) if large else math.nan
            return SCORE.pack(-1 if math.isnan(score) else round(score))
        minutiae = handle.minutiae(known) if large else np.empty((0, 4), np.float32)
    except MemoryError:
        raise
    except Exception as error:  # the errors of nbis-py have no common class
        raise ValueError(reason_of(error)) from error
    minutiae = minutiae[minutiae[:, 3] >= RELIABLE]
    minutiae[:, :2] *= ppi / PPI
    return minutiae.tobytes()


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
