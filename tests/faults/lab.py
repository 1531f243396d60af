"""What the trials of one run share: its folder, the material, and undisturbed results to compare with."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .children import Ended, run
from .commands import Command, leftovers, snapshot
from .material import make
from .reading import EMPTY, open_anything
from .results import Outcome, Trial

MOST_SECONDS = 120  # of a command on tiny data; a command that takes longer hangs


@dataclass(frozen=True)
class Undisturbed:
    """A command that nothing disturbs.

    Attributes:
        files: Digests of its output, see `commands.snapshot`.
        old: What a reader finds in the output before the command; empty if there is no output yet.
        new: What a reader finds in the output after the command.
        seconds: Duration.
        bytes: Size of the output.
    """

    files: dict[str, str]
    old: str
    new: str
    seconds: float
    bytes: int


class Lab:
    """Folder of a run of the suite.

    Args:
        folder: Folder to use. It is created if it is missing.
        seed: Seed of all random choices.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # some trials run as another user
        self.folder, self.seed = folder.resolve(), seed
        self.work = self._working_folder("0")
        self.material = make(self.folder / "material")
        self._known: dict[str, Undisturbed] = {}

    def lane(self, name: str) -> Lab:
        """Return a copy of this lab for a process that works beside others."""
        other = copy.copy(self)
        other.work = self._working_folder(name)
        return other

    def _working_folder(self, name: str) -> Path:
        """Return a folder for trials. It lies in memory, because a kill does not lose what a kernel has buffered."""
        shared = Path("/dev/shm")
        parent = shared if os.access(shared, os.W_OK) else self.folder
        folder = parent / f"fingerprint-faults-{hashlib.sha256(bytes(self.folder)).hexdigest()[:8]}-{name}"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        return folder

    def clear(self) -> None:
        """Delete the working folders of all lanes."""
        for folder in self.work.parent.glob(f"{self.work.name.rpartition('-')[0]}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _kept(self) -> Path:
        return self.folder / "undisturbed.json"

    def chance(self, trial: Trial) -> random.Random:
        """Return the random numbers of a trial."""
        return random.Random(f"{self.seed} {trial.key}")

    def undisturbed(self, command: Command) -> Undisturbed:
        """Run a command undisturbed, once, and return what it makes."""
        if command.name not in self._known and self._kept.exists():
            kept = json.loads(self._kept.read_text())
            self._known = {name: Undisturbed(**values) for name, values in kept.items()}
        if command.name not in self._known:
            folder = command.prepare(self.work / "undisturbed", self.material)
            old = self.read(folder / command.out)[1] if (folder / command.out).exists() else ""
            ended = command.run(folder, self.material)
            if ended.verdict != "ok":
                raise RuntimeError(f"{command.name} fails when nothing disturbs it: {ended.err[-2000:]}")
            verdict, new = self.read(folder / command.out)
            assert verdict == "ok", new
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            self._known[command.name] = Undisturbed(snapshot(folder / command.out), old, new, ended.seconds, size)
            draft = self.work / "undisturbed.json"
            draft.write_text(json.dumps({name: asdict(each) for name, each in self._known.items()}))
            shutil.move(draft, self._kept)
        return self._known[command.name]

    def read(self, out: Path) -> tuple[str, str]:
        """Open an output in a child; return the verdict, and what was found or how it failed."""
        ended = run(lambda: _print_content(out), out.parent, MOST_SECONDS)
        return ended.verdict, ended.out.strip() if ended.verdict == "ok" else reason(ended)

    def check_whole(self, command: Command, folder: Path, outcome: Outcome, when: str) -> bool:
        """Check that the output is the old one or the new one; note a failure in `outcome`."""
        known, out = self.undisturbed(command), folder / command.out
        if not known.old and (not out.exists() or (out.is_dir() and not any(out.iterdir()))):
            return True
        if command.processes:
            return self._check_run(out, outcome, when)
        verdict, found = self.read(out)
        if verdict == "ok" and found in (known.old or EMPTY, known.new):
            return True
        if verdict == "named" and not known.old:
            return True
        bad = "silent" if verdict == "ok" else "lost" if verdict == "named" else verdict
        outcome.note(bad, f"{when}, {command.out} is neither the old nor the new one: {found}")
        return False

    def _check_run(self, out: Path, outcome: Outcome, when: str) -> bool:
        """Check that the newest checkpoint of a run can be read."""
        verdict, found = self.read(out)
        if verdict == "ok":
            return True
        outcome.note("lost" if verdict == "named" else verdict, f"{when}: {found}")
        return False

    def finish(self, command: Command, folder: Path, outcome: Outcome) -> Outcome:
        """Run a disturbed command again, and compare its result with the undisturbed one."""
        ended = command.run(folder, self.material)
        outcome.measure(ended.seconds, ended.megabytes)
        if ended.verdict != "ok" and not is_done(command, ended):
            bad = "lost" if ended.verdict == "named" else ended.verdict
            return outcome.note(bad, f"the command run again: {reason(ended)}")
        if wrong := self.differences(command, folder, missing_only=True):
            return outcome.note("silent", wrong)
        if left := leftovers(folder, command):
            return outcome.note("left over", ", ".join(left[:5]))
        wrong = self.differences(command, folder)
        return outcome.note("silent", wrong) if wrong else outcome.note("recovered")

    def differences(self, command: Command, folder: Path, missing_only: bool = False) -> str:
        """Say how the output of a command differs from that of an undisturbed command; empty if it does not.

        Args:
            command: The command.
            folder: Folder in which the command has run.
            missing_only: Whether additional files do not count.
        """
        known = self.undisturbed(command)
        if command.out == "gallery":  # the names of its files depend on what happened before
            found = self.read(folder / command.out)
            return "" if found == ("ok", known.new) else f"the gallery contains other prints: {found[1]}"
        files = snapshot(folder / command.out)
        names = set(known.files) if missing_only else {*files, *known.files}
        differing = sorted(name for name in names if files.get(name) != known.files.get(name))
        return f"the result differs from the undisturbed one in {', '.join(differing[:5])}" if differing else ""


def is_done(command: Command, ended: Ended) -> bool:
    """Return whether a command refuses to run again, because it is done."""
    text = " ".join(ended.errors)
    done = {"remove": "is enrolled", "folder": "exists already"}
    return done["remove" if command.name == "remove" else "folder"] in text and command.name != "training"


def reason(ended: Ended) -> str:
    """Return the last lines of what a child has said, for a report."""
    lines = [line for line in ended.err.replace("\r", "\n").splitlines() if line.strip()]
    return f"exit code {ended.code}: " + " / ".join(line.strip()[:300] for line in lines[-3:])


def _print_content(out: Path) -> Any:
    from fingerprint_accel.errors import one_line_errors

    with one_line_errors():
        print(open_anything(out))
