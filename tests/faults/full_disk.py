"""Run commands on a disk that is full, read-only, or that they may no longer write to."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .children import Ended
from .commands import COMMANDS, Command, wait_all
from .lab import Lab, reason
from .results import Outcome, Trial

PART = "full_disk"
BESIDE = False
SHARE = 6
TRIALS = {"disk full": 8, "read-only disk": 1, "permission lost": 3}  # of a command
SAMPLE = {  # commands of a sample
    "disk full": ["import", "extract", "enroll more", "search --index", "calibrate", "training"],
    "read-only disk": ["import", "training"],
    "permission lost": ["search --index", "training"],
}


def plan(sample: bool) -> Iterator[Trial]:
    """Iterate over the trials, in turn over commands."""
    if sample:
        yield from (Trial(PART, fault, name, 0) for fault, names in SAMPLE.items() for name in names)
        return
    for number in range(max(TRIALS.values())):
        for fault, count in TRIALS.items():
            for command in COMMANDS.values():
                if number < count and command.processes < 2:
                    yield Trial(PART, fault, command.name, number)


def run(lab: Lab, trial: Trial) -> Outcome:
    """Let a command meet the fault, check what is left, and finish the command without the fault."""
    command, outcome = COMMANDS[trial.subject], Outcome()
    lab.undisturbed(command)
    if trial.fault == "permission lost":
        _try(lab, trial, command, lab.work, outcome)
        return outcome
    try:
        with mounted(lab.work / "disk") as disk:
            _try(lab, trial, command, disk, outcome)
    except PermissionError:  # only root can mount a disk, and not in every container
        return Outcome()
    return outcome


def _try(lab: Lab, trial: Trial, command: Command, disk: Path, outcome: Outcome) -> None:
    chance, folder = lab.chance(trial), command.prepare(disk / "trial", lab.material)
    known = lab.undisturbed(command)
    if trial.fault == "disk full":
        with filled(disk, round(chance.uniform(0, 1.5) * known.bytes)):
            ended = command.run(folder, lab.material)
    elif trial.fault == "read-only disk":
        _remount(disk, "ro")
        ended = command.run(folder, lab.material)
        _remount(disk, "rw")
    else:
        ended = _without_permission(command, folder, lab.material, chance.uniform(0, known.seconds))
    if ended.verdict not in ("ok", "named"):
        outcome.note(ended.verdict, reason(ended))
    elif ended.verdict == "named" and "\n" in (text := _complaint(ended)):
        outcome.note("traceback", f"several lines: {text}")
    elif lab.check_whole(command, folder, outcome, f"after {trial.fault} ({reason(ended)[:200]})"):
        lab.finish(command, folder, outcome)


def _complaint(ended: Ended) -> str:
    """Return what a command has printed from its error on."""
    return ended.err[ended.err.find("error: ") :].strip()


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """Mount a small disk in memory during a `with` statement.

    Raises:
        PermissionError: If this process may not mount.
    """
    place.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", str(place)]
    if subprocess.run(words, capture_output=True).returncode:
        raise PermissionError("mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def filled(disk: Path, free: int) -> Iterator[None]:
    """Leave only `free` bytes on a disk during a `with` statement."""
    state = os.statvfs(disk)
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_bsize - free))
    try:
        yield
    finally:
        ballast.unlink()


def _remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def _without_permission(command: Command, folder: Path, material: Path, delay: float) -> Ended:
    """Run a command, and take away the right to write to its folder after a while."""
    children = command.begin(folder, material, _obey_modes)
    time.sleep(delay)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        with contextlib.suppress(FileNotFoundError):
            place.chmod(0o500)
    ended = wait_all(children)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        place.chmod(0o700)
    return ended


def _obey_modes() -> None:
    """Give up the capabilities with which root reads and writes files whatever their modes are."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)  # effective, permitted and inheritable ones of 0 to 31, then of 32 to 63
    sets[0] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    if libc.capset(header, sets):
        raise OSError("capabilities cannot be changed")
