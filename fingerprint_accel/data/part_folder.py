"""Work cut into parts, each whole on disk or absent: a killed run goes on from them with the same command."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fingerprint_accel.errors import UserError


class PartFolder:
    """The folder of parts of one piece of work: `arguments.json`, and `part-00000`, ... as far as they are made.

    Args:
        folder: where the parts lie.
        arguments: all that the bytes of the parts depend on, as JSON has it.
        count: number of parts.
        suffix: of the files.
    """

    def __init__(self, folder: Path, arguments: dict[str, Any], count: int, suffix: str = ".arrow") -> None:
        self.folder, self.arguments, self.count, self.suffix = folder, arguments, count, suffix

    def stored(self) -> dict[str, Any] | None:
        """The arguments of the parts that are there; None where there is nothing to be read."""
        try:
            stored = json.loads((self.folder / "arguments.json").read_text())
        except (OSError, ValueError):
            return None
        return stored if isinstance(stored, dict) else None

    def begin(self, overwrite: bool) -> None:
        """Makes the folder, or takes over what an interrupted run with the same arguments has left.

        Raises:
            UserError: it holds parts of another command, and `overwrite` is not set.
        """
        stored, ours = self.stored(), self.arguments
        if stored == ours:
            return
        if any(self.folder.glob(f"part-*{self.suffix}")) and not overwrite:
            other = stored or {}
            differing = ", ".join(
                f"{name} {other.get(name)} not {ours[name]}" for name in ours if other.get(name) != ours[name]
            )
            raise UserError(
                f"{self.folder}: unfinished parts of another command ({differing}); "
                "end that command, delete the folder, or add --overwrite"
            )
        self.remove()
        self.folder.mkdir(parents=True)
        (self.folder / "arguments.json").write_text(json.dumps(ours, indent=2) + "\n")

    def path(self, part: int) -> Path:
        """Where a part lies once it is made."""
        return self.folder / f"part-{part:05d}{self.suffix}"

    def missing(self) -> list[int]:
        """Parts still to be made."""
        return [part for part in range(self.count) if not self.path(part).exists()]

    @contextlib.contextmanager
    def tidied(self) -> Iterator[None]:
        """Before and after work: deletes what workers that were killed, or cut off with the others, have left."""
        self.discard_unfinished()
        try:
            yield
        finally:
            self.discard_unfinished()

    def discard_unfinished(self) -> None:
        """Deletes what was being written when a process was killed."""
        for unfinished in self.folder.glob("*.tmp"):
            unfinished.unlink(missing_ok=True)

    def remove(self) -> None:
        """Deletes parts first and arguments last, so that what a kill leaves can still be told."""
        for path in self.folder.glob("part-*"):
            path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
