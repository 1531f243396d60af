"""Read persons and finger positions from finger keys.

Imports of records, and of file names that state a person and a finger position, write keys such as `anna_07` and
`anna_left_index`.
"""

from __future__ import annotations

import re

from fingerprint_accel.data.image_record import SINGLE_FINGERS
from fingerprint_accel.data.layouts import LayoutError, finger_position

# Finger keys with a position: those of the layouts nist, socofing and records, of `--names` with a group `position`,
# and of `synth --persons`.
WITH_POSITION = r"^(?P<subject>.+)_(?P<position>\d\d|(?:left|right)_(?:thumb|index|middle|ring|little))$"
_PATTERN = re.compile(WITH_POSITION)


def person_in(key: str) -> tuple[str, int]:
    """Read the person and the finger position code from a finger key; return ("", 0) if it states none.

    The position is that of a single finger, for example 7 for the left index finger.
    """
    match = _PATTERN.search(key)
    if match is None:
        return "", 0
    try:
        code = finger_position(match["position"])
    except LayoutError:
        return "", 0
    return (match["subject"], code) if code and code in SINGLE_FINGERS else ("", 0)
