"""A tree of files of every kind that archives hold, and the expected result of importing each file."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cupboard_prints import PPI, SIDE, Print, Prints
from PIL import Image

from fingerprint_accel.data.walking import IMAGE_SUFFIXES

NAMES = r"(?P<subject>[^_]+)_(?P<position>\d+|[a-z]+_[a-z]+)_(?P<impression>\d+)(?:_(?P<ppi>\d+))?"
RAW_SIZE = f"{SIDE}x{SIDE}"
FOLDERS = ("disk1", "disk1/2003", "disk2/Station 7", "disk2/ünïcode", "old/CD_03/a.b")
# Allowed mean absolute difference in grey levels, after the remaining shift between the canvases is undone. Compression
# can change a block at the rim of a print, which moves the middle of the print by up to half a block.
SAME, LOSSY, RESCALED = 0.0, 4.5, 5.0
MOST_SHIFT = 6.7  # canvas pixels: half a block of 0.8 mm along both axes
LIGHT = "light ridges on dark paper: inverted"


@dataclass(frozen=True)
class Expected:
    """A print that the dataset must hold.

    Attributes:
        what: Kind of file, a row of the table.
        source: The `source` column of the dataset.
        finger_key: Key of the finger.
        impression: Number of the impression; None if any number is correct.
        print: The expected picture; None if it is unknown, as for a finger cut from a slap.
        tolerance: Allowed mean difference from the picture, grey levels.
        minutiae: Whether the dataset must hold the minutiae of the print.
        note: Expected beginning of a note about the print.
    """

    what: str
    source: str
    finger_key: str
    impression: int | None = None
    print: Print | None = None
    tolerance: float = SAME
    minutiae: bool = False
    note: str = ""


class Cupboard:
    """A folder of files, and the truth about them.

    Args:
        root: The folder. Targets of links lie beside it.

    Attributes:
        expected: Prints of the dataset by their source.
        rejected: Expected beginning of the reason, by kind of file and path.
        kinds: Kind of each file, by path.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.outside = root, root.parent / f"{root.name}-elsewhere"
        self.prints = Prints()
        self.expected: dict[str, Expected] = {}
        self.rejected: Counter[tuple[str, str, str]] = Counter()
        self.kinds: dict[str, str] = {}
        self._random = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.kinds)

    def take(self) -> Print:
        """Return a print that no file holds."""
        return self.prints.take()

    def place(self, name: str) -> str:
        """Return a path for a name, in one of the folders."""
        return f"{FOLDERS[self._random.integers(len(FOLDERS))]}/{name}"

    def write(self, what: str, path: str, data: bytes) -> str:
        """Write a file below the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        assert path not in self.kinds, f"{path}: twice"
        file.write_bytes(data)
        self.kinds[path] = what
        return path

    def expect(self, what: str, source: str, finger_key: str, impression: int | None, **more: object) -> None:
        """Expect a print in the dataset."""
        self.expected[source] = Expected(what, source, finger_key, impression, **more)  # type: ignore[arg-type]

    def reject(self, what: str, path: str, reason: str) -> None:
        """Expect the rejection of a file, or of a print in it, with a reason that begins with `reason`."""
        self.rejected[what, path, reason] += 1

    def imported(
        self, what: str, found: Print, suffix: str, data: bytes, name: str = "", record: int = 0, **more: object
    ) -> str:
        """Write a file of one print that must be imported, and return its path.

        `record` is the number of the print in a container.
        """
        path = self.write(what, self.place((name or found.stem) + suffix), data)
        # the import does not open a file with the suffix of an image while it lists files
        source = f"{path}#{record}" if record and suffix not in IMAGE_SUFFIXES else path
        self.expect(what, source, found.finger_key, found.impression, print=found, **more)
        return path

    def refused(self, what: str, name: str, data: bytes, reason: str) -> str:
        """Write a file that must be rejected, and return its path."""
        path = self.write(what, self.place(name), data)
        self.reject(what, path, reason)
        return path


def rescaled(grey: np.ndarray, ppi: int) -> np.ndarray:
    """Return the print as a sensor of another resolution captures it."""
    side = round(grey.shape[0] * ppi / PPI)
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC))


def files_below(root: Path) -> Iterator[str]:
    """Yield every name below a folder except folders. Links to folders count. Bytes that are no text become `?`."""
    for folder, folders, files in os.walk(root):
        inside = os.path.relpath(folder, root)
        for name in [*files, *(each for each in folders if (Path(folder) / each).is_symlink())]:
            path = name if inside == "." else f"{inside}/{name}"
            yield path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def both_forms(text: str) -> Sequence[str]:
    """Return a name with composed and with decomposed accents."""
    return [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
