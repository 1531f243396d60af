"""One image of a container file (ANSI/NIST transaction, finger image record), before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Finger position codes of ANSI/NIST-ITL and ISO/IEC 19794-4. Plain thumbs have codes of their own.
UNKNOWN_FINGER = 0
ROUNDING = 0.002  # by which a resolution in pixels per mm or cm differs from the one in pixels per inch that it means
SINGLE_FINGERS = {**{code: code for code in range(11)}, 11: 1, 12: 6, 16: 16, 17: 17}
# Codes of several fingers on one image -> the positions of the fingers, in order from left to right on the image.
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
    """A container file, or a record of one, that cannot be used; the message says why."""


@dataclass(frozen=True)
class ImageRecord:
    """An image of a container file.

    Attributes:
        number: of the record in its file, from 1.
        image: the bytes of an image file, or raw pixels, 8 bits each, row by row.
        raw: (height, width) of raw pixels; None for an image file.
        ppi: resolution, pixels per inch; 0 where the record does not state one.
        position: finger position code; 0 where it is not known.
        subject: what the file calls the person; empty where it does not.
        segments: finger position -> (left, top, right, bottom) in pixels, of the fingers on a slap.
        missing: finger positions that a slap does not show: amputated or bandaged.
        minutiae: (n, 4) float32 x, y, angle, quality in image pixels, None where the file has none for this image.
        quality: NFIQ 2 score, 0 to 100; -1 where there is none.
        reason: why the record is not a print that can be imported; empty if it is one.
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
    quality: int = -1
    reason: str = ""

    @property
    def fingers(self) -> tuple[int, ...]:
        """Positions of the fingers that the image shows, from left to right."""
        if self.position in SLAPS:
            return tuple(finger for finger in SLAPS[self.position] if finger not in self.missing)
        return (SINGLE_FINGERS.get(self.position, UNKNOWN_FINGER),)


def meant_ppi(ppi: float) -> float:
    """The resolution that a rounded one means: 19.69 pixels per mm and 197 per cm are 500 ppi."""
    whole = 50.0 * round(ppi / 50)
    return whole if whole and abs(ppi / whole - 1) < ROUNDING else ppi


def why_not_a_finger(position: int) -> str:
    """Why an image of this position code cannot be imported; empty if it can."""
    if position in SINGLE_FINGERS or position in SLAPS:
        return ""
    if position == 19:
        return "an entire joint image or fingertip, not a print of a finger"
    if 20 <= position <= 38 or 81 <= position <= 86:
        return f"a palm (position {position})"
    if 60 <= position <= 79:
        return f"a sole or toe (position {position})"
    return f"position {position} is not a finger"


def shows_no_finger(reason: str) -> bool:
    """Whether a record is left out because it is an image of something else, not because it is at fault."""
    others = ("a palm", "a sole", "a face", "an iris", "a signature", "a test image", "an entire joint")
    return reason.startswith(others)
