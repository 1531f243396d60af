"""Layouts: file-name conventions that map the path of an image to its finger and impression.

Most layouts are regular expressions with named groups, in the format of the option `--names` of `import`. Paths are
relative to the imported folder SRC. They are strings with slashes, because path objects need too much memory for a
million files.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from fingerprint_accel.data.image_record import SINGLE_FINGERS, SLAPS
from fingerprint_accel.errors import UserError
from fingerprint_accel.untrusted import printable

GROUPS = ("finger", "impression", "ppi", "subject", "position")
LARGEST_IMPRESSION = 2**62  # below the largest int64, so that impressions without a number can be counted on
MOST_KEY, MOST_PATH = 1000, 4096  # largest numbers of characters of a finger key, and of a path
HANDS = {"right": 0, "r": 0, "left": 5, "l": 5}
DIGITS = {"thumb": 1, "index": 2, "middle": 3, "ring": 4, "little": 5, "pinky": 5}
DIGITS |= {name[0]: number for name, number in DIGITS.items()} | {str(number): number for number in range(1, 6)}


@dataclass(frozen=True)
class Named:
    """Information about a print that a layout has read from the path of its image.

    Attributes:
        finger_key: identifier of the finger. For a slap (an image of several fingers), `finger_key` identifies
            the person.
        impression: number of the impression, or None to number the impressions of the finger in order of path.
        ppi: resolution, pixels per inch; 0 if the path states none.
        slap: position code of a slap; 0 for an image of one finger.
        person: identifier of the person; empty if the path states none.
        position: position code of a single finger; 0 if the path states none.
    """

    finger_key: str
    impression: int | None
    ppi: int = 0
    slap: int = 0
    person: str = field(default="", compare=False)
    position: int = field(default=0, compare=False)


class LayoutError(ValueError):
    """Raised for a path that does not follow the layout. The message gives the reason."""


def check_ppi(ppi: int) -> int:
    """Return a resolution unchanged, or raise LayoutError if it is not plausible.

    0 stands for an unknown resolution.
    """
    if ppi and not 50 <= ppi <= 5000:
        raise LayoutError(f"ppi {str(ppi)[:20]} is out of range: it must lie between 50 and 5000")
    return ppi


def check_impression(impression: int) -> int:
    """Return the number of an impression unchanged, or raise LayoutError if it is negative or too large."""
    if not 0 <= impression <= LARGEST_IMPRESSION:
        raise LayoutError(
            f"impression {str(impression)[:20]} is out of range: it must lie between 0 and {LARGEST_IMPRESSION}"
        )
    return impression


def check_key(key: str) -> str:
    """Return a key of a finger or person in Unicode form NFC, or raise LayoutError if it is too long or has a zero."""
    _check_text(key, "key", MOST_KEY)
    return unicodedata.normalize("NFC", key)


def check_path(path: str) -> str:
    """Return a path unchanged, or raise LayoutError if no file can have it."""
    _check_text(path, "path", MOST_PATH)
    return path


def _check_text(text: str, what: str, most: int) -> None:
    if len(text) > most or "\0" in text:
        raise LayoutError(f"a {what} of more than {most} characters, or with a zero byte: correct the line")


def finger_position(text: str) -> int:
    """Convert text such as `07`, `left_index` or `L2` to a finger position code.

    The codes are those of ANSI/NIST-ITL: 1 to 5 from the right thumb to the right little finger, 6 to 10 for the left
    hand, and further codes for images of several fingers.

    Raises:
        LayoutError: if the text does not name a finger or several fingers.
    """
    if text.isdecimal() and len(text) < 10:
        code = int(text)
        if code in SLAPS:
            return code
        if code not in SINGLE_FINGERS:
            raise LayoutError(f"finger position {code} is not a finger: use a code from 1 to 15")
        return SINGLE_FINGERS[code]
    words = re.fullmatch(r"(right|left|r|l)[ _-]?([a-z]+|[1-5])(?:[ _-]?finger)?", text.lower())
    if words is None or words[2] not in DIGITS:
        raise LayoutError(
            f"finger position {printable(text, 20)} is unknown: use a code from 1 to 15 or words such as left_index"
        )
    return HANDS[words[1]] + DIGITS[words[2]]


def position_name(code: int) -> str:
    """Return the name of a finger position, for example `left_index` for 7.

    For codes above 10 the result is the code itself as text, and for 0 the result is empty.
    """
    if not 1 <= code <= 10:
        return str(code) if code else ""
    return f"{'right' if code <= 5 else 'left'}_{('thumb', 'index', 'middle', 'ring', 'little')[(code - 1) % 5]}"


@dataclass(frozen=True)
class NamePattern:
    """Layout given by a regular expression with named groups.

    The groups are finger, subject, position, impression and ppi. Some may be missing. The expression must match the
    whole file name without its suffix. If the expression contains a slash, it must match the whole path without the
    suffix. Calling the object with a path returns the information in the path as a `Named`.

    Args:
        pattern: the expression.
        example: a name that matches, for error messages.
        with_folder: whether the folder is a part of the finger key (the name of a finger), so that equal names in
            different folders are different fingers.
    """

    pattern: re.Pattern[str]
    example: str
    with_folder: bool = False

    def match(self, path: str) -> re.Match[str]:
        """Return the match of the regular expression with a path, or raise LayoutError if it does not match."""
        stem = posixpath.splitext(path)[0]
        match = self.pattern.fullmatch(stem if "/" in self.pattern.pattern else posixpath.basename(stem))
        if match is None:
            raise LayoutError(f"name does not look like {self.example}")
        return match

    def __call__(self, path: str) -> Named:
        groups = self.match(path).groupdict()
        given = {name: text for name, text in groups.items() if text is not None}
        position = finger_position(given["position"]) if "position" in given else 0
        slap = position if position in SLAPS else 0
        words = [given.get("subject", ""), given.get("finger", "")]
        words += [f"{position:02d}"] if position and not slap else []
        key = "_".join(word for word in words if word)
        folder = posixpath.dirname(path)
        if self.with_folder and folder:
            key = f"{folder}/{key}"
        try:
            impression = check_impression(int(given["impression"])) if "impression" in given else None
            ppi = check_ppi(int(given.get("ppi", 0)))
            person = check_key(given.get("subject", ""))
            return Named(check_key(key), impression, ppi, slap, person, 0 if slap else position)
        except ValueError as error:
            raise (
                error if isinstance(error, LayoutError) else LayoutError("impression and ppi must be whole numbers")
            ) from None


def names_layout(expression: str) -> NamePattern:
    """Create a layout from the regular expression of the option `--names`.

    Raises:
        UserError: if the expression is invalid, has an unknown group, or has no group `finger` and no group `subject`.
    """
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UserError(f"--names {expression}: not a regular expression ({error})") from error
    unknown = set(pattern.groupindex) - set(GROUPS)
    if unknown:
        raise UserError(f"--names {expression}: group {min(unknown)} is unknown; there are {', '.join(GROUPS)}")
    if not {"finger", "subject"} & set(pattern.groupindex):
        raise UserError(f"--names {expression}: needs a group (?P<finger>...) or (?P<subject>...)")
    return NamePattern(pattern, f"--names {expression}")


def folders(path: str) -> Named:
    """Read the finger from a path such as `FINGER/anything.png`. The folder is the finger key.

    The path states no impression. Impressions are numbered later, in order of path.
    """
    folder = posixpath.dirname(path)
    if not folder:
        raise LayoutError("lies in no finger's folder: move it to a subfolder that is named after the finger")
    return Named(check_key(folder), None)


_FLX = NamePattern(
    re.compile(r"(?P<nist>[fs])?(?P<finger>\d+)_(?P<impression>\d+)"), "<finger>_<impression>, such as 10_9.png"
)
_SOCOFING = NamePattern(
    re.compile(
        r"(?P<subject>\d+)__[MF]_(?P<hand>Left|Right)_(?P<name>thumb|index|middle|ring|little)_finger"
        r"(?:_(?P<altered>CR|Obl|Zcut))?",
        re.IGNORECASE,
    ),
    "1__M_Left_index_finger.BMP",
)


def flx(path: str) -> Named:
    """Read finger and impression from a file name `<finger>_<impression>`, the convention of flx.

    flx is another implementation of DeepPrint.

    The names `f0001_01` and `s0001_01` of the database NIST SD4 are impressions 0 and 1 of one finger. If the
    impression numbers of an import start at 1, all numbers are later reduced by 1, see `listing`.
    """
    match = _FLX.match(path)
    finger, impression = int(match["finger"]), check_impression(int(match["impression"]))
    if match["nist"]:
        return Named(f"{finger}_{impression}", 0 if match["nist"] == "f" else 1)
    return Named(str(finger), impression)


def socofing(path: str) -> Named:
    """Read finger and impression from a path of the database SOCOFing, for example `1__M_Left_index_finger.BMP`.

    The original print is impression 0. Altered versions (`..._CR`, `_Obl`, `_Zcut`) are impressions 1 to 3 at the level
    easy, 4 to 6 at medium and 7 to 9 at hard. The level is read from the name of the folder.
    """
    match = _SOCOFING.match(path)
    finger = f"{int(match['subject'])}_{match['hand'].lower()}_{match['name'].lower()}"
    if match["altered"] is None:
        return Named(finger, 0)
    kinds = ("cr", "obl", "zcut")
    level = next((n for n, word in enumerate(("easy", "medium", "hard")) if word in posixpath.dirname(path).lower()), 0)
    return Named(finger, 1 + 3 * level + kinds.index(match["altered"].lower()))


def records(path: str) -> Named:
    """Reject the path of an image file, because the layout `records` reads fingers from container files only.

    Container files (ANSI/NIST transactions and finger image records) state the finger of each image themselves.
    """
    raise LayoutError("an image file does not state its finger: choose another --layout, or give --names")


LAYOUTS: dict[str, Callable[[str], Named]] = {
    # The folder is part of the key, because the databases DB1_B and DB2_B contain files of the same name.
    "fvc": NamePattern(re.compile(r"(?P<finger>\d+)_(?P<impression>\d+)"), "101_1.tif", with_folder=True),
    "folders": folders,
    "flx": flx,
    # NIST SD300, SD301 and SD302: images of different devices and capture types are impressions of the same finger.
    # A part of the name matches only one alternative. Otherwise, the time would grow exponentially with the parts.
    "nist": NamePattern(
        re.compile(r"(?P<subject>\d{4,})(?=_.*_)(?:_(?P<ppi>\d{3,4})(?=_)|_(?!\d{3,4}_)[^_]+)+?_(?P<position>\d{1,2})"),
        "00002302_R_500_roll_01.png",
    ),
    "socofing": socofing,
    "records": records,
}
NAMES = (*LAYOUTS, "csv")


def guess(paths: list[str]) -> list[str]:
    """Return the names of the layouts that all given paths follow, the most specific layout first."""

    def fits(name: str) -> bool:
        try:
            return bool([LAYOUTS[name](path) for path in paths])
        except LayoutError:
            return False

    return [name for name in ("socofing", "nist", "fvc", "flx", "folders") if fits(name)]
