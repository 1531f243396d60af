"""Damage files: flip a bit in each file that the package writes, cut files off, and put other things in their place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from . import parsers, reading
from .batches import Batch, Change
from .lab import Lab
from .parsers import PARSERS, Parser, Read
from .results import Outcome, Trial

PART = "damage"
BESIDE = False
SHARE = 6
FLIPS, CUTS, SAMPLE = 60, 20, 6  # changes of a file
HUGE = 3 * 10**9  # bytes of a file without content


def _whole_run(material: Path) -> Read:
    """Return a reader that resumes a run and opens it as a model."""
    resumed = parsers.resumed(material)
    return lambda folder: f"{resumed(folder)} {reading.model(folder)}"


FOLDERS: dict[str, Callable[[Path], Read]] = {
    "prints": lambda material: reading.dataset,
    "gallery": lambda material: reading.gallery,
    "indexed": lambda material: lambda folder: f"{reading.gallery(folder)} {reading.index(folder)}",
    "embeddings": lambda material: reading.embeddings,
    "calibrated": lambda material: reading.model,
    "last": _whole_run,
}


def _zero(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _zeros(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, HUGE)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "pipe": _pipe,
    "link to /dev/zero": _zero,
    "folder": _folder,
    "link to itself": _loop,
    "3 GB of zeros": _zeros,
    "3 GB of zeros behind it": lambda path: os.truncate(path, HUGE),
}
OPTIONAL = ("gallery: changes.json",)  # files whose absence means something


def plan(sample: bool) -> Iterator[Trial]:
    """Iterate over all files of all folders, then over all parsers."""
    for fault, count in (("bit flip", FLIPS), ("file cut off", CUTS)):
        for folder in FOLDERS:
            yield Trial(PART, fault, folder, SAMPLE if sample else count)
    names = ("WSQ", ".xyt", "gallery: part") if sample else PARSERS
    for name in names:
        yield Trial(PART, "pipe, device or huge file", name, len(SPECIAL))


def run(lab: Lab, trial: Trial) -> Outcome:
    """Damage the files of a folder one after another, or put special files in the place of one."""
    if trial.subject in PARSERS:
        absent = ("missing", "link to itself") if trial.subject in OPTIONAL else ()
        changes = [change for name, change in SPECIAL.items() if name not in absent]
        return Batch(lab, trial, PARSERS[trial.subject], len(changes), lambda number: Change(changes[number])).run()
    outcome, source = Outcome(), lab.material / trial.subject
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.stat().st_size)
    if trial.number == SAMPLE:
        files = lab.chance(trial).sample(files, 1)
    for file in files:
        name = str(file.relative_to(source))
        parser = Parser(f"{trial.subject}/{name}", trial.subject, name, FOLDERS[trial.subject], kept=True)
        size, chance = file.stat().st_size, lab.chance(trial)
        if trial.fault == "bit flip":
            places = [chance.randrange(8 * size) for _ in range(trial.number)]
            changes = [partial(_flip, place=place) for place in places]
        else:
            changes = [partial(os.truncate, length=size * part // trial.number) for part in range(trial.number)]
        outcome.add(Batch(lab, trial, parser, len(changes), lambda number, some=changes: Change(some[number])).run())
    return outcome


def _flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place // 8)
        byte = file.read(1)[0] ^ 1 << place % 8
        file.seek(place // 8)
        file.write(bytes([byte]))
