"""Disturb commands while they run: a clock that jumps, a second command on the same output, input that changes."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .commands import COMMANDS, Command, emptied, wait_all
from .lab import Lab, reason
from .results import Outcome, Trial

PART = "moments"
BESIDE = False
SHARE = 5
TRIALS = {"clock jump": 2, "two commands at once": 4, "input changed": 8}  # of a command
PAIRS = {  # commands that start at the same moment on one output; alone, each pair ends as its second column says
    "enroll more + remove": ("enroll more", "remove"),
    "enroll more + search --index": ("enroll more", "search --index"),
    "remove + search --index": ("remove", "search --index"),
}
SAMPLE = {
    "clock jump": ("import", "training"),
    "two commands at once": ("import", "training", "enroll more + remove"),
    "input changed": ("training, cut off", "extract, overwritten", "merge, moved"),
}
TWICE = ("import", "merge", "extract", "enroll", "enroll more", "remove", "search --index", "calibrate", "training")
READING = ("training", "extract", "merge")  # commands that read a dataset, whose files are changed meanwhile
CHANGES: dict[str, Callable[[Path, random.Random], object]] = {
    "cut off": lambda file, chance: os.truncate(file, chance.randrange(file.stat().st_size)),
    "overwritten": lambda file, chance: _overwrite(file),
    "moved": lambda file, chance: file.parent.rename(file.parent.with_name("elsewhere")),
}


def plan(sample: bool) -> Iterator[Trial]:
    """Iterate over the trials, in turn over commands."""
    subjects = {
        "clock jump": ("import", "merge", "enroll more", "training", "calibrate", "extract", "synth"),
        "two commands at once": (*TWICE, *PAIRS),
        "input changed": tuple(f"{name}, {change}" for name in READING for change in CHANGES),
    }
    for number in range(1 if sample else max(TRIALS.values())):
        for fault, names in (SAMPLE if sample else subjects).items():
            if number < TRIALS[fault]:
                yield from (Trial(PART, fault, name, number) for name in names)


def run(lab: Lab, trial: Trial) -> Outcome:
    """Run one trial."""
    return {"clock jump": _clock, "two commands at once": _two, "input changed": _changed}[trial.fault](lab, trial)


def _clock(lab: Lab, trial: Trial) -> Outcome:
    """Run a command whose clock jumps by up to ten years in both directions, again and again."""
    command, chance, outcome = COMMANDS[trial.subject], lab.chance(trial), Outcome()
    folder = command.prepare(lab.work / "clock", lab.material)
    for file in folder.rglob("*"):
        os.utime(file, (chance.choice((0, 4e9)),) * 2)
    lab.undisturbed(command)

    def jump() -> None:
        now, offset = time.time, [0.0]

        def jumping() -> float:
            if chance.random() < 0.2:
                offset[0] = chance.choice((-3e8, -3600, -1, 0, 3600, 3e8))
            return now() + offset[0]

        time.time = jumping
        time.time_ns = lambda: int(1e9 * jumping())

    ended = command.run(folder, lab.material, jump)
    outcome.measure(ended.seconds, ended.megabytes)
    if ended.verdict != "ok":
        return outcome.note("lost" if ended.verdict == "named" else ended.verdict, reason(ended))
    if wrong := lab.differences(command, folder):
        return outcome.note("silent", wrong)
    return outcome.note("recovered")


def _two(lab: Lab, trial: Trial) -> Outcome:
    """Start two commands on the same output; both end, and the output is that of one after the other."""
    chance, outcome = lab.chance(trial), Outcome()
    names = PAIRS.get(trial.subject, (trial.subject, trial.subject))
    first, second = (COMMANDS[name] for name in names)
    folder = first.prepare(lab.work / "two", lab.material)
    allowed = _sequential(lab, first, second)
    children = [*first.begin(folder, lab.material)]
    time.sleep(chance.uniform(0, lab.undisturbed(first).seconds))
    children += second.begin(folder, lab.material)
    both = [child.wait() for child in children]
    for ended in both:
        outcome.measure(ended.seconds, ended.megabytes)
        if ended.verdict not in ("ok", "named"):
            return outcome.note(ended.verdict, reason(ended))
    if all(ended.verdict == "named" for ended in both):
        return outcome.note("lost", f"both have failed: {reason(both[0])}; {reason(both[1])}")
    verdict, found = lab.read(folder / first.out)
    if verdict != "ok" or found not in allowed:
        return outcome.note("silent" if verdict == "ok" else "lost", f"{[each.verdict for each in both]}: {found}")
    return outcome.note("recovered")


def _sequential(lab: Lab, first: Command, second: Command) -> set[str]:
    """Return what a reader finds after one command alone, or after both in either order."""
    alone = {lab.undisturbed(each).new for each in (first, second)}
    found = set(alone) if first is second else set()
    for one, other in ((first, second), (second, first)):
        folder = one.prepare(lab.work / "sequence", lab.material)
        one.run(folder, lab.material)
        other.run(folder, lab.material)
        found.add(lab.read(folder / one.out)[1])
        if first is second:
            break
    return found


def _overwrite(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))


def _changed(lab: Lab, trial: Trial) -> Outcome:
    """Change a file of a dataset while a command reads it.

    The command may end well only with the result that it has without the change.
    """
    name, change = trial.subject.split(", ")
    command, chance, outcome = COMMANDS[name], lab.chance(trial), Outcome()
    folder, data = lab.work / "changed", lab.work / "changed-data"
    _copy_inputs(lab, data)
    begun = command.run(emptied(folder), data)
    expected = lab.read(folder / command.out)
    _copy_inputs(lab, data)
    file = chance.choice(sorted((data / "prints").glob("*.arrow")))
    children = command.begin(emptied(folder), data)
    time.sleep(chance.uniform(0, begun.seconds))
    CHANGES[change](file, chance)
    ended = wait_all(children)
    outcome.measure(ended.seconds, ended.megabytes)
    if ended.verdict == "named":
        named = str(data) in " ".join(ended.errors)
        return outcome.note("named" if named else "traceback", f"the message names no file: {reason(ended)}")
    if ended.verdict != "ok":
        return outcome.note(ended.verdict, reason(ended))
    if (found := lab.read(folder / command.out)) != expected:
        return outcome.note("silent", f"the result differs from the one without the change: {found[1]}")
    return outcome.note("recovered")


def _copy_inputs(lab: Lab, data: Path) -> None:
    for place in (data, data.with_name("elsewhere")):
        shutil.rmtree(place, ignore_errors=True)
    for source in ("prints", "others", "model"):
        shutil.copytree(lab.material / source, data / source)
