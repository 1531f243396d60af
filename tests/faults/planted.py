"""Show that the suite notices what it looks for: parsers and commands with planted defects.

A program: `python -m tests.faults.planted FOLDER` prints the outcomes as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .batches import Batch, Change
from .children import Child, nothing
from .parsers import Parser, Refused
from .power_cuts import distinct_states
from .results import Trial
from .tracing import available, record

VALID = b'{"value": 1, "checksum": "0"}'


def _silent(folder: Path) -> str:
    return (folder / "a.json").read_text()


def _raises(folder: Path) -> str:
    return str(json.loads((folder / "a.json").read_text())["value"])


def _crashes(folder: Path) -> str:
    if (folder / "a.json").read_bytes() != VALID:
        os.abort()
    return "read"


def _large(folder: Path) -> str:
    if (folder / "a.json").read_bytes() != VALID:
        bytearray(b"x" * 2**20 * 600)
    return "read"


def _nameless(folder: Path) -> str:
    from fingerprint_accel.errors import UserError

    if (folder / "a.json").read_bytes() != VALID:
        raise UserError("something is wrong")
    return "read"


def _good(folder: Path) -> str:
    if (folder / "a.json").read_bytes() != VALID:
        raise Refused("damaged")
    return "read"


PLANTED = {
    "silent": _silent, "raises": _raises, "crashes": _crashes, "large": _large, "nameless": _nameless, "good": _good,
}  # fmt: skip


def fuzzed(folder: Path) -> dict[str, dict[str, int]]:
    """Return the outcomes of each planted parser."""
    lab: Any = SimpleNamespace(folder=folder, work=folder / "work", material=folder, seed=0)
    lab.work.mkdir()
    (folder / "one").mkdir()
    (folder / "one" / "a.json").write_bytes(VALID)
    damaged = Change(lambda path: path.write_bytes(b'{"other": 2, "checksum": "0"}'))
    found = {}
    for name, read in PLANTED.items():
        parser = Parser(name, "one", "a.json", lambda material, read=read: read, kept=True)
        found[name] = dict(Batch(lab, Trial("planted", name, "", 0), parser, 2, lambda number: damaged).run().counts)
    return found


def _careless(folder: Path) -> None:
    (folder / "new.tmp").write_text("content")
    (folder / "new.tmp").replace(folder / "file")


def _careful(folder: Path) -> None:
    from fingerprint_accel.durable import write_file

    write_file(folder / "file", "content")


def cut(folder: Path) -> dict[str, list[str]]:
    """Return the contents of the file that a power cut may leave, for a careless and for a careful writer."""
    found = {}
    for name, write in (("careless", _careless), ("careful", _careful)):
        place = folder / name
        place.mkdir()

        def begin(before: Any = nothing, write: Any = write, place: Path = place) -> Child:
            return Child(lambda: write(place), place, before)

        ended, operations = record(begin, place, folder / "log")
        assert ended.code == 0, ended.err
        (place / "file").unlink()
        states = distinct_states(place, operations)
        found[name] = sorted({(state.tree.get("file") or b"").decode() for state in states if state.ended})
    return found


if __name__ == "__main__":
    here = Path(sys.argv[1])
    print(json.dumps({"fuzzed": fuzzed(here), "cut": cut(here) if available() else None}))
