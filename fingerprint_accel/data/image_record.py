"""Image records of container files (ANSI/NIST transactions, finger image records) before decoding."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

UNKNOWN_FINGER = 0
LOWEST_PPI, HIGHEST_PPI = 50, 5000  # range of the resolution of an image
MOST_RECORDS = 1000  # largest number of records in a file; a transaction has up to 100
ROUNDING = 0.002  # largest relative rounding error of a resolution that is stated in pixels per mm or cm
# Finger position codes of ANSI/NIST-ITL and ISO/IEC 19794-4, and the finger of each code (1 to 10, 16 or 17; 0 if
# unknown). Thumbs have a second code, 11 or 12, for plain (not rolled) prints.
SINGLE_FINGERS = {**{code: code for code in range(11)}, 11: 1, 12: 6, 16: 16, 17: 17}
# Position codes of images of several fingers (slaps), and the positions of their fingers from left to right.
SLAPS: dict[int, tuple[int, ...]] = {
    13: (2, 3, 4, 5),
    14: (10, 9, 8, 7),
    15: (6, 1),
    40: (2, 3),
    41: (3, 4),
    42: (4, 5),
    43: (8, 7),
    44: (9, 8),
    45: (10, 9),
    46: (7, 2),
    47: (2, 3, 4),
    48: (3, 4, 5),
    49: (9, 8, 7),
    50: (10, 9, 8),
}


class RecordError(ValueError):
    """Raised for a container file or a record that cannot be used. The message gives the reason."""


@dataclass(frozen=True)
class ImageRecord:
    """One image of a container file, not decoded.

    Attributes:
        number: position of the record in its file, from 1.
        image: bytes of an image file, or raw pixels of 8 bits in row-major order.
        raw: (height, width) of raw pixels; None for an image file.
        ppi: resolution, pixels per inch; 0 if the record states none.
        position: finger position code; 0 if it is unknown.
        subject: identifier of the person in the file; empty if there is none.
        segments: dictionary from finger position to bounding box (left, top, right, bottom; pixels), for a slap (an
            image of several fingers).
        missing: positions of fingers that a slap does not show because they are amputated or bandaged.
        minutiae: (n, 4) float32 x, y, angle, quality in image pixels; None if the file has none for this image.
        minutiae_reason: reason why the minutiae in the file cannot be used; empty if they can, or there are none.
        quality: NFIQ 2 score, 0 to 100; -1 if there is none.
        reason: reason why the image cannot be imported; empty if it can be.
    """

    number: int
    image: memoryview | bytes = b""
    raw: tuple[int, int] | None = None
    ppi: float = 0.0
    position: int = UNKNOWN_FINGER
    subject: str = ""
    segments: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    missing: tuple[int, ...] = ()
    minutiae: np.ndarray | None = None
    minutiae_reason: str = ""
    quality: int = -1
    reason: str = ""

    @property
    def fingers(self) -> tuple[int, ...]:
        """Return the positions of the fingers on the image, from left to right. 0 stands for an unknown position."""
        if self.position in SLAPS:
            return tuple(finger for finger in SLAPS[self.position] if finger not in self.missing)
        return (SINGLE_FINGERS.get(self.position, UNKNOWN_FINGER),)


def meant_ppi(ppi: float) -> float:
    """Correct a resolution in pixels per inch that was rounded because it was stated in pixels per mm or cm.

    For example, 19.69 pixels per mm (500.1 ppi) and 197 pixels per cm (500.4 ppi) become 500 ppi.
    """
    whole = 50.0 * round(ppi / 50)
    return whole if whole and abs(ppi / whole - 1) < ROUNDING else ppi


def why_not_a_finger(position: int) -> str:
    """Return the reason why an image with the position code `position` cannot be imported; "" if it can be imported."""
    if position in SINGLE_FINGERS or position in SLAPS:
        return ""
    if position == 19:
        return "an entire joint image or fingertip, not a print of a finger"
    if 20 <= position <= 38 or 81 <= position <= 86:
        return f"a palm (position {position})"
    if 60 <= position <= 79:
        return f"a sole or toe (position {position})"
    return f"position {position} is not a finger: use a finger position code of ANSI/NIST-ITL"


def why_ppi_is_wrong(ppi: float) -> str:
    """Return the reason why an image with a stated resolution cannot be imported; "" if it can be imported.

    Args:
        ppi: resolution in pixels per inch; 0 if it is unknown.
    """
    if not ppi or LOWEST_PPI <= ppi <= HIGHEST_PPI:
        return ""
    return f"its resolution of {ppi:.0f} ppi is out of range: it must lie between {LOWEST_PPI} and {HIGHEST_PPI}"


def shows_no_finger(reason: str) -> bool:
    """Return whether an image was rejected because it shows no finger (but a palm, for example).

    Args:
        reason: reason of the rejection, as given by `why_not_a_finger` or `ansi_nist.NOT_FINGERS`.
    """
    others = ("a palm", "a sole", "a face", "an iris", "a signature", "a test image", "an entire joint")
    return reason.startswith(others)
