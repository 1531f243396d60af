"""The commands that the README and the pages of docs/ show, as lists of words that a test can run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?P<mark><!--[^\n]*-->)?\n*```sh\n(?P<lines>.*?)^```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->")


@dataclass(frozen=True)
class Command:
    """One command line of a page.

    Attributes:
        page: name of the file.
        text: the line, with continued lines joined.
        not_run: why the page says that the tests do not run it; "" if they do.
    """

    page: str
    text: str
    not_run: str = ""

    @property
    def words(self) -> list[str]:
        """Words of the line without its comment; variables before the program are left out."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        return words


def commands(page: Path) -> list[Command]:
    """Return all command lines of the ```sh blocks of a page, in order; `&&` separates commands."""
    found = []
    for block in BLOCK.finditer(page.read_text()):
        mark = NOT_RUN.match(block["mark"] or "")
        reason = mark["reason"] if mark else ""
        for line in block["lines"].replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                command = Command(page.name, part.strip(), reason)
                if command.words:
                    found.append(command)
    return found


def expanded(words: list[str], folder: Path) -> list[str]:
    """Replace patterns such as scans/*.png by the files of a folder that match, as a shell does."""
    result = []
    for word in words:
        matches = sorted(folder.glob(word)) if re.search(r"[*?]", word) and " " not in word else []
        result += [str(path.relative_to(folder)) for path in matches] or [word]
    return result
