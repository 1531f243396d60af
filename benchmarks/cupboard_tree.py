"""Fills a mixed cupboard: files of every kind that archives hold, and of each what the import must make of it."""

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
# Mean absolute difference to the canvas of the print itself, grey levels, after the shift that is left between them:
# where compression changes a block at the rim of a print, its middle moves by up to half a block.
SAME, LOSSY, RESCALED = 0.0, 4.5, 5.0
MOST_SHIFT = 6.7  # pixels of the canvas: half of a block of 0.8 mm along both axes
LIGHT = "light ridges on dark paper: inverted"


@dataclass(frozen=True)
class Expected:
    """A print that the dataset must hold.

    Attributes:
        what: kind of file, a row of the table.
        source: as in the dataset.
        finger_key: whose finger.
        impression: its number; None where any will do.
        print: how it must look; None where nothing is known, as of a finger cut from a slap.
        tolerance: mean difference to that, grey levels.
        minutiae: whether it has those of the print.
        note: how what is said of it begins.
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
    """A folder that fills, and the truth about it.

    Args:
        root: the folder; beside it lies what links lead to.

    Attributes:
        expected: prints of the dataset by their source.
        rejected: (kind of file, path) -> how the reason begins.
        kinds: kind of file by path, of every file.
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
        """A print that no file holds yet."""
        return self.prints.take()

    def place(self, name: str) -> str:
        """A path for a name, in one of the folders."""
        return f"{FOLDERS[self._random.integers(len(FOLDERS))]}/{name}"

    def write(self, what: str, path: str, data: bytes) -> str:
        """Writes a file below the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        assert path not in self.kinds, f"{path}: twice"
        file.write_bytes(data)
        self.kinds[path] = what
        return path

    def expect(self, what: str, source: str, finger_key: str, impression: int | None, **more: object) -> None:
        """A print that must be in the dataset."""
        self.expected[source] = Expected(what, source, finger_key, impression, **more)  # type: ignore[arg-type]

    def reject(self, what: str, path: str, reason: str) -> None:
        """A file, or a print of one, that must be rejected, with how its reason begins."""
        self.rejected[what, path, reason] += 1

    def imported(
        self, what: str, found: Print, suffix: str, data: bytes, name: str = "", record: int = 0, **more: object
    ) -> str:
        """Writes a file of one print, the given record of a container, that must be imported; returns its path."""
        path = self.write(what, self.place((name or found.stem) + suffix), data)
        # what is called an image is not looked into before its turn comes
        source = f"{path}#{record}" if record and suffix not in IMAGE_SUFFIXES else path
        self.expect(what, source, found.finger_key, found.impression, print=found, **more)
        return path

    def refused(self, what: str, name: str, data: bytes, reason: str) -> str:
        """Writes a file that must be rejected; returns its path."""
        path = self.write(what, self.place(name), data)
        self.reject(what, path, reason)
        return path


def rescaled(grey: np.ndarray, ppi: int) -> np.ndarray:
    """The print as a sensor of another resolution has it."""
    side = round(grey.shape[0] * ppi / PPI)
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC))


def files_below(root: Path) -> Iterator[str]:
    """Every name below a folder that is not a folder, links to folders included; bytes that are no text as `?`."""
    for folder, folders, files in os.walk(root):
        inside = os.path.relpath(folder, root)
        for name in [*files, *(each for each in folders if (Path(folder) / each).is_symlink())]:
            path = name if inside == "." else f"{inside}/{name}"
            yield path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def both_forms(text: str) -> Sequence[str]:
    """A name with composed and with decomposed accents."""
    return [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
