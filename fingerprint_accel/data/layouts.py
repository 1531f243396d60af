"""File-name conventions: a path below SRC tells finger and impression, or why it does not.

A convention is a regular expression with named groups, as `import --names` takes them. Paths are plain strings with
slashes: path objects would keep the names of a million files in the interpreter's tables.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from fingerprint_accel.data.image_record import SINGLE_FINGERS, SLAPS
from fingerprint_accel.errors import UserError

GROUPS = ("finger", "impression", "ppi", "subject", "position")
LARGEST_IMPRESSION = 2**63 - 1
HANDS = {"right": 0, "r": 0, "left": 5, "l": 5}
DIGITS = {"thumb": 1, "index": 2, "middle": 3, "ring": 4, "little": 5, "pinky": 5}
DIGITS |= {name[0]: number for name, number in DIGITS.items()} | {str(number): number for number in range(1, 6)}


@dataclass(frozen=True)
class Named:
    """What a path says.

    Attributes:
        finger_key: the owner's id of the finger; of a slap, of the hand's owner.
        impression: number of the impression, or None where it is the rank among the finger's files.
        ppi: resolution, where the name states one, else 0.
        slap: position code where the image shows several fingers, else 0.
        person: whose finger it is, where the name says so.
        position: position code of a single finger, where the name states one, else 0.
    """

    finger_key: str
    impression: int | None
    ppi: int = 0
    slap: int = 0
    person: str = field(default="", compare=False)
    position: int = field(default=0, compare=False)


class LayoutError(ValueError):
    """A path that does not follow the layout; the message says why."""


def check_ppi(ppi: int) -> int:
    """Raises LayoutError where 0 < `ppi` is no resolution of a print; 0 states none."""
    if ppi and not 50 <= ppi <= 5000:
        raise LayoutError(f"ppi {ppi} is out of range")
    return ppi


def check_impression(impression: int) -> int:
    """Raises LayoutError where `impression` cannot be the number of an impression."""
    if not 0 <= impression <= LARGEST_IMPRESSION:
        raise LayoutError(f"impression {impression} is out of range")
    return impression


def finger_position(text: str) -> int:
    """Finger position code of a text: `07`, `left_index`, `L2`.

    Raises:
        LayoutError: it means no finger.
    """
    if text.isdigit():
        code = int(text)
        if code in SLAPS:
            return code
        if code not in SINGLE_FINGERS:
            raise LayoutError(f"finger position {code} is not one finger")
        return SINGLE_FINGERS[code]
    words = re.fullmatch(r"(right|left|r|l)[ _-]?([a-z]+|[1-5])(?:[ _-]?finger)?", text.lower())
    if words is None or words[2] not in DIGITS:
        raise LayoutError(f"finger position {text} is not known; codes 1 to 15 and words as left_index are")
    return HANDS[words[1]] + DIGITS[words[2]]


def position_name(code: int) -> str:
    """What `finger_position` reads: `left_index` for 7; the code itself for extra fingers, empty for 0."""
    if not 1 <= code <= 10:
        return str(code) if code else ""
    return f"{'right' if code <= 5 else 'left'}_{('thumb', 'index', 'middle', 'ring', 'little')[(code - 1) % 5]}"


@dataclass(frozen=True)
class NamePattern:
    """A convention as a regular expression with some of the groups finger, subject, position, impression and ppi.

    It is matched with the name of a file without its suffix, or with its whole path where it has a slash in it.

    Args:
        pattern: the expression.
        example: a name that follows it, for messages.
        with_folder: files of the same name in other folders are other fingers.
    """

    pattern: re.Pattern[str]
    example: str
    with_folder: bool = False

    def match(self, path: str) -> re.Match[str]:
        """The match with a path; LayoutError where it does not follow."""
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
            person = unicodedata.normalize("NFC", given.get("subject", ""))
            return Named(unicodedata.normalize("NFC", key), impression, ppi, slap, person, 0 if slap else position)
        except ValueError as error:
            raise (
                error if isinstance(error, LayoutError) else LayoutError("impression and ppi are no numbers")
            ) from None


def names_layout(expression: str) -> NamePattern:
    """The layout of `--names`.

    Raises:
        UserError: no regular expression, or without a group that tells fingers apart.
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
    """`finger_key/anything.png`: the folder is the finger, impressions count in order of name."""
    folder = posixpath.dirname(path)
    if not folder:
        raise LayoutError("lies in no finger's folder")
    return Named(unicodedata.normalize("NFC", folder), None)


_FLX = NamePattern(
    re.compile(r"(?P<nist>[fs])?(?P<finger>\d+)_(?P<impression>\d+)"), "<finger>_<impression>, as 10_9.png"
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
    """`<finger>_<impression>`, in any folder; the listing makes impressions count from 0, as in flx.

    `f0001_01` and `s0001_01`, the names of NIST SD4, are impressions 0 and 1.
    """
    match = _FLX.match(path)
    finger, impression = int(match["finger"]), check_impression(int(match["impression"]))
    if match["nist"]:
        return Named(f"{finger}_{impression}", 0 if match["nist"] == "f" else 1)
    return Named(str(finger), impression)


def socofing(path: str) -> Named:
    """`1__M_Left_index_finger.BMP`; altered versions (`..._CR`, `_Obl`, `_Zcut`) are further impressions."""
    match = _SOCOFING.match(path)
    finger = f"{int(match['subject'])}_{match['hand'].lower()}_{match['name'].lower()}"
    if match["altered"] is None:
        return Named(finger, 0)
    kinds = ("cr", "obl", "zcut")
    level = next((n for n, word in enumerate(("easy", "medium", "hard")) if word in posixpath.dirname(path).lower()), 0)
    return Named(finger, 1 + 3 * level + kinds.index(match["altered"].lower()))


def records(path: str) -> Named:
    """Names say nothing: the records of ANSI/NIST files tell the finger."""
    raise LayoutError("an image file does not say whose finger it shows: choose another --layout, or --names")


LAYOUTS: dict[str, Callable[[str], Named]] = {
    # folders tell databases apart: DB1_B/101_1.tif is another finger
    "fvc": NamePattern(re.compile(r"(?P<finger>\d+)_(?P<impression>\d+)"), "101_1.tif", with_folder=True),
    "folders": folders,
    "flx": flx,
    # SD300, SD301 and SD302: devices and kinds of capture are impressions of the same finger
    "nist": NamePattern(
        re.compile(r"(?P<subject>\d{4,})(?=_.*_)(?:_(?P<ppi>\d{3,4})(?=_)|_[^_]+)+?_(?P<position>\d{1,2})"),
        "00002302_R_500_roll_01.png",
    ),
    "socofing": socofing,
    "records": records,
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
