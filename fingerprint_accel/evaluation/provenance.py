"""Record of when, by which command and with which software versions a report was made."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fingerprint_accel import __version__


@dataclass(frozen=True)
class Provenance:
    """Origin of a report: time, command line and software versions.

    Attributes:
        date: time in UTC, in ISO 8601 format.
        command: command line, quoted for a shell; the home folder is written as `~` or `$HOME`.
        versions: version of each piece of software that the results may depend on.
    """

    date: str
    command: str
    versions: dict[str, str]

    @classmethod
    def of_this_process(cls) -> Provenance:
        """Return the current time, and the command line and software versions of this process."""
        versions = {
            "fingerprint_accel": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "Python": platform.python_version(),
            "platform": platform.platform(),
        }
        return cls(datetime.now(UTC).isoformat(timespec="seconds"), command_line(sys.argv, Path.home()), versions)

    def rows(self) -> list[tuple[str, str]]:
        """Return the origin of the report as (name, text) rows of a table."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items() if name != "platform")
        platform_row = ("platform", self.versions["platform"])
        return [("date", self.date), ("command", self.command), ("versions", versions), platform_row]

    def values(self) -> dict[str, Any]:
        """Return the origin of the report as a dictionary, for `metrics.json`."""
        return asdict(self)


def command_line(argv: list[str], home: Path) -> str:
    """Format the command line of a process such that it can be pasted into a shell.

    Args:
        argv: `sys.argv` of the process.
        home: home folder of the user, which is written as `~` or `$HOME`.
    """
    script = Path(argv[0])
    if script.suffix != ".py":
        program = script.name
    elif script.name == "__main__.py":  # started with python -m package
        program = f"python -m {script.parent.parent.name}.{script.parent.name}"
    else:
        program = f"python {_quoted(argv[0], home)}"
    return " ".join([program, *(_quoted(argument, home) for argument in argv[1:])])


def _quoted(argument: str, home: Path) -> str:
    """Quote one command-line argument for a shell, and replace the home folder in it by `~` or `$HOME`.

    The replacement stays outside the quotes, so that a shell expands it.

    Args:
        argument: argument to quote.
        home: home folder.
    """
    before, found, after = argument.partition(f"{home}/")
    if not found or str(home) == "/":
        return shlex.quote(argument)
    start = '"$HOME"/' if before else "~/"
    return (shlex.quote(before) if before else "") + start + (shlex.quote(after) if after else "")
