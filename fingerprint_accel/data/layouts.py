"""File-name conventions: a path below SRC tells finger and impression, or why it does not.

Paths are plain strings with slashes: path objects would keep the names of a million files in the interpreter's tables.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """What a path says.

    Attributes:
        finger_key: the owner's id of the finger.
        impression: number of the impression, or None where it is the rank among the finger's files.
        ppi: resolution, where the name states one, else 0.
    """

    finger_key: str
    impression: int | None
    ppi: int = 0


class LayoutError(ValueError):
    """A path that does not follow the layout; the message says why."""


_FVC = re.compile(r"(\d+)_(\d+)")
_FLX = re.compile(r"(?P<nist>[fs])?(?P<finger>\d+)_(?P<impression>\d+)")
_NIST = re.compile(r"(?P<subject>\d{4,})(?P<capture>(?:_[^_]+)+)_(?P<frgp>\d{1,2})")
_PPI = re.compile(r"_(\d{3,4})(?=_|$)")
_PLAIN_THUMBS = {11: 1, 12: 6}  # finger position codes of thumbs taken plain, beside the four fingers
_SOCOFING = re.compile(
    r"(?P<subject>\d+)__(?P<sex>[MF])_(?P<hand>Left|Right)_(?P<name>thumb|index|middle|ring|little)_finger"
    r"(?:_(?P<altered>CR|Obl|Zcut))?",
    re.IGNORECASE,
)


def _matched(pattern: re.Pattern[str], path: str, example: str) -> re.Match[str]:
    match = pattern.fullmatch(posixpath.splitext(posixpath.basename(path))[0])
    if match is None:
        raise LayoutError(f"name does not look like {example}")
    return match


def fvc(path: str) -> Named:
    """`101_1.tif`: finger 101, impression 1. Folders tell databases apart: DB1_B/101_1.tif is another finger."""
    match = _matched(_FVC, path, "101_1.tif")
    folder = posixpath.dirname(path)
    return Named(match[1] if not folder else f"{folder}/{match[1]}", int(match[2]))


def folders(path: str) -> Named:
    """`finger_key/anything.png`: the folder is the finger, impressions count in order of name."""
    folder = posixpath.dirname(path)
    if not folder:
        raise LayoutError("lies in no finger's folder")
    return Named(folder, None)


def flx(path: str) -> Named:
    """`<finger>_<impression>`, in any folder; the listing makes impressions count from 0, as in flx.

    `f0001_01` and `s0001_01`, the names of NIST SD4, are impressions 0 and 1.
    """
    match = _matched(_FLX, path, "<finger>_<impression>, as 10_9.png")
    if match["nist"]:
        finger = f"{int(match['finger'])}_{int(match['impression'])}"
        return Named(finger, 0 if match["nist"] == "f" else 1)
    return Named(str(int(match["finger"])), int(match["impression"]))


def nist(path: str) -> Named:
    """NIST SD300, SD301 and SD302: `<subject>_<device, ppi and kind, as the database orders them>_<position>.png`.

    Devices and kinds of capture are impressions of the same finger; the ppi of the name, if it has one, wins.
    """
    match = _matched(_NIST, path, "00002302_R_500_roll_01.png")
    position = _PLAIN_THUMBS.get(int(match["frgp"]), int(match["frgp"]))
    if not 1 <= position <= 10:
        raise LayoutError(f"finger position {position} is not one finger")
    ppi = _PPI.search(match["capture"])
    return Named(f"{match['subject']}_{position:02d}", None, int(ppi[1]) if ppi else 0)


def socofing(path: str) -> Named:
    """`1__M_Left_index_finger.BMP`; altered versions (`..._CR`, `_Obl`, `_Zcut`) are further impressions."""
    match = _matched(_SOCOFING, path, "1__M_Left_index_finger.BMP")
    finger = f"{int(match['subject'])}_{match['hand'].lower()}_{match['name'].lower()}"
    if match["altered"] is None:
        return Named(finger, 0)
    kinds = ("cr", "obl", "zcut")
    level = next((n for n, word in enumerate(("easy", "medium", "hard")) if word in posixpath.dirname(path).lower()), 0)
    return Named(finger, 1 + 3 * level + kinds.index(match["altered"].lower()))


LAYOUTS: dict[str, Callable[[str], Named]] = {
    "fvc": fvc,
    "folders": folders,
    "flx": flx,
    "nist": nist,
    "socofing": socofing,
}
NAMES = (*LAYOUTS, "csv")


def guess(paths: list[str]) -> list[str]:
    """Layouts that every one of some sample paths follows, most particular first: a hint for error messages."""

    def fits(name: str) -> bool:
        try:
            return bool([LAYOUTS[name](path) for path in paths])
        except LayoutError:
            return False

    return [name for name in ("socofing", "nist", "fvc", "flx", "folders") if fits(name)]
