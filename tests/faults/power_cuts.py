"""Cut the recorded file operations of each command at every point, as a power cut does, and go on from there.

A cut leaves several possible states of the disk, see `disk`. In each of them readers find the old or the new output
whole or say one line, and the same command finishes the work. When a command has ended, its result is on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .commands import COMMANDS, Command, emptied
from .disk import Disk, Tree, write_tree
from .lab import Lab
from .results import Outcome, Trial
from .tracing import Operation, available, record

PART = "power_cuts"
BESIDE = False
SHARE = 14
SLICES = 12  # trials of a command; each takes every SLICES-th state
SAMPLE = 3  # states of a command in a sample
IN_SAMPLE = -1  # number of the trial of a command in a sample
SAMPLED = ("import", "extract", "enroll more", "search --index")


class State(NamedTuple):
    """Files that a cut may leave.

    Attributes:
        when: Kind and moment of the cut.
        ended: Whether the command had ended.
        tree: The files.
    """

    when: str
    ended: bool
    tree: Tree


def plan(sample: bool) -> Iterator[Trial]:
    """Iterate over slices of the states of each command."""
    commands = [each.name for each in COMMANDS.values() if each.processes < 2 and "2 workers" not in each.name]
    if sample:
        yield from (Trial(PART, "power cut", name, IN_SAMPLE) for name in SAMPLED)
    else:
        yield from (Trial(PART, "power cut", name, number) for number in range(SLICES) for name in commands)


def run(lab: Lab, trial: Trial) -> Outcome:
    """Go on from some of the states that a power cut during a command may leave."""
    command, outcome = COMMANDS[trial.subject], Outcome()
    if not available():
        return outcome
    operations = traced(lab, command)
    for operation in operations:
        if operation.kind == "connect":
            outcome.note("silent", f"the command connects to another machine: {operation.other[:200]}")
    states = distinct_states(command.prepare(lab.work / "cut", lab.material), operations)
    if trial.number == IN_SAMPLE:
        chosen = [states[-1], *lab.chance(trial).sample(states[:-1], SAMPLE - 1)]
    else:
        chosen = states[trial.number :: SLICES]
    for state in chosen:
        _check(lab, command, outcome, state)
    return outcome


def _check(lab: Lab, command: Command, outcome: Outcome, state: State) -> None:
    """Check one state, and finish the command from there."""
    folder = emptied(lab.work / "cut")
    write_tree(state.tree, folder)
    before = len(outcome.details)
    if state.ended and (missing := lab.differences(command, folder, True)):
        outcome.note("lost", f"the command has reported success, but {missing}")
    elif lab.check_whole(command, folder, outcome, "then"):
        lab.finish(command, folder, outcome)
    outcome.details[before:] = [f"{detail} [{state.when}]" for detail in outcome.details[before:]]


def distinct_states(folder: Path, operations: list[Operation]) -> list[State]:
    """Return the different states that a cut may leave."""
    disk, seen = Disk(folder), dict[Any, State]()
    changes = [operation for operation in operations if operation.kind != "connect"]
    for position in range(len(changes) + 1):
        ended = position == len(changes)
        if ended or not _inside_a_run(changes, position):
            last = f"after {changes[position - 1]}" if position else "before everything"
            for kind, tree in disk.states():
                key = ended, frozenset((path, hash(content)) for path, content in tree.items())
                seen.setdefault(key, State(f"{kind}, {last}, {position} of {len(changes)}", ended, tree))
        if not ended:
            disk.apply(changes[position])
    return list(seen.values())


def _inside_a_run(changes: list[Operation], position: int) -> bool:
    """Return whether a cut lies between two of many writes to one file. Only every fourth of these cuts is made."""
    around = changes[max(0, position - 1) : position + 1]
    return (
        all(each.kind == "write" for each in around) and len({each.path for each in around}) == 1 and position % 4 > 0
    )


def traced(lab: Lab, command: Command) -> list[Operation]:
    """Return the file operations of a command that nothing disturbs. Each process records them once."""
    if command.name not in _TRACED:
        _TRACED[command.name] = _record(lab, command)
    return _TRACED[command.name]


_TRACED: dict[str, list[Operation]] = {}


def _record(lab: Lab, command: Command) -> list[Operation]:
    folder = command.prepare(lab.work / "traced", lab.material)
    log = lab.work / "strace.log"
    ended, operations = record(lambda before: command.begin(folder, lab.material, before)[0], folder, log)
    log.unlink()
    if ended.code:
        raise RuntimeError(f"{command.name} fails under strace: {ended.err[-2000:]}")
    return operations
