"""Work cut into parts, each whole on disk or absent: a killed run goes on from them with the same command."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from fingerprint_accel.data.launch import Launch
from fingerprint_accel.data.parallel import cores, in_parallel
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import locked

Task = TypeVar("Task")


@contextlib.contextmanager
def alone_at(out: Path, launch: Launch) -> Iterator[None]:
    """Keeps other commands from making `out` for as long as this one does; a killed process releases the lock.

    Args:
        out: what is made. Beside it lies a locked file meanwhile.
        launch: the processes that make it; the main one asks for all.

    Raises:
        UserError: another command is making it.
    """
    if not launch.main:
        yield
        return
    refusal = f"{out}: another command is making it; wait for it, or end it"
    with locked(out.with_name(f".{out.name}.lock"), refusal):
        yield


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

    def shared(self, launch: Launch, begin: Callable[[], None], progress: bool) -> list[int]:
        """Has the main process make the folder ready; returns the parts that are missing, the same on every process.

        Args:
            launch: the processes that will make parts; each calls this.
            begin: calls `begin`, between such checks as only the main process is to make.
            progress: says how many parts are there.

        Raises:
            UserError: as `begin`, or this process does not see the folder.
        """

        def ready() -> list[int]:
            begin()
            self.discard_unfinished()
            missing = self.missing()
            if progress and len(missing) < self.count:
                print(f"going on: {self.count - len(missing)} of {self.count} parts are there", file=sys.stderr)
            return missing

        missing = launch.first(ready)
        if launch.share(missing):  # without a share it is not needed, and the folder may soon be gone
            launch.see(self.stored, self.arguments, self.folder)
        return missing

    def make(
        self,
        launch: Launch,
        function: Callable[[Task], int],
        tasks: Iterable[Task],
        workers: int,
        made: Callable[[int], None],
    ) -> int:
        """Makes this process's share on several workers; the main process waits until no part is missing.

        Args:
            launch: the processes that make parts.
            function: makes a part and says how many prints it has; a module's function.
            tasks: of this process's share.
            workers: processes.
            made: is told of every part how many prints it has.

        Returns:
            Prints that this process has made.

        Raises:
            UserError: a worker was killed.
        """
        prints = 0
        try:
            with contextlib.closing(in_parallel(function, tasks, workers)) as results:
                for some in results:
                    prints += some
                    made(some)
        finally:
            if launch.size == 1:  # otherwise others may be writing
                self.discard_unfinished()
        if launch.main:
            launch.wait_for_all(self.missing, self.folder, lambda: made(0))
        return prints

    def path(self, part: int) -> Path:
        """Where a part lies once it is made."""
        return self.folder / f"part-{part:05d}{self.suffix}"

    def missing(self) -> list[int]:
        """Parts still to be made."""
        there = set(os.listdir(self.folder))  # noqa: PTH208  (names alone, of perhaps a hundred thousand)
        return [part for part in range(self.count) if self.path(part).name not in there]

    @contextlib.contextmanager
    def writing(self, part: int) -> Iterator[IO[bytes]]:
        """A file that becomes the part once all of it is on the disk; an exception leaves nothing."""
        temporary = unfinished(self.path(part))
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path(part))
        finally:
            temporary.unlink(missing_ok=True)

    def check_room(self, needed: int) -> None:
        """Raises UserError where the disk cannot hold parts and dataset side by side, of `needed` bytes each."""
        there = sum(path.stat().st_size for path in self.folder.glob("part-*"))
        free = shutil.disk_usage(self.folder).free
        if 2 * needed - there > free:
            raise UserError(
                f"{self.folder}: {(2 * needed - there) / 1e9:.1f} GB needed, half of it for the parts; "
                f"{free / 1e9:.1f} GB are free"
            )

    def discard_unfinished(self) -> None:
        """Deletes what was being written when a process was killed; only while nobody writes."""
        for path in self.folder.glob("*.tmp"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Deletes parts first and arguments last, so that what a kill leaves can still be told."""
        for path in self.folder.glob("part-*"):
            path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def unfinished(path: Path) -> Path:
    """What a file is called while it is written, by no other process on any machine at the same time."""
    writer = f"{socket.gethostname()}-{os.environ.get('RANK', '0')}-{os.getpid()}"
    return path.with_name(f"{writer}-{path.name}.tmp")


def workers_here(workers: int, launch: Launch, tasks: int) -> int:
    """Worker processes for so many tasks: as many as asked for, or, for 0, this process's share of the cores."""
    return max(1, min(workers or cores() // launch.local_size, tasks))
