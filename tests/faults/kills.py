"""Kill commands at random moments, run them again, and compare with commands that nothing disturbed."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from .children import Ended
from .commands import COMMANDS, Command, temporary_of, wait_all
from .lab import Lab, is_done, reason
from .results import Outcome, Trial

PART = "kills"
BESIDE = False
SHARE = 8  # of the minutes of a whole run
TRIALS = {"SIGKILL": 6, "SIGTERM": 2}  # of a command of weight 1
CODES = {  # with which a command may end
    signal.SIGKILL: (-signal.SIGKILL, 76),
    signal.SIGTERM: (-signal.SIGTERM, 128 + signal.SIGTERM, 75, 76),
}
# Python's multiprocessing prints this in a worker whose command was killed while the worker started.
ORPHAN = re.compile(
    r'Traceback \(most recent call last\):\n  File "<string>", line 1, in <module>\n'
    r"(?:  .*\n)+EOFError: Ran out of input\n"
)
SLOW = (
    *("export --onnx", "export --torch", "synth", "synth --overwrite", "import, 2 workers"),
    *("evaluate", "inspect --audit", "calibrate in place"),
    "training, 2 processes",  # a process waits 10 s for one that was killed during the start
)
SAMPLE = {  # commands of a sample
    "SIGKILL": [name for name in COMMANDS if name not in SLOW],
    "SIGTERM": ["import", "enroll more", "training"],
}


def plan(sample: bool) -> Iterator[Trial]:
    """Iterate over the trials, in turn over commands, so that a short run meets all of them."""
    if sample:
        yield from (Trial(PART, fault, name, 0) for fault, names in SAMPLE.items() for name in names)
        return
    for number in range(max(TRIALS.values()) * max(each.weight for each in COMMANDS.values())):
        for fault, count in TRIALS.items():
            for command in COMMANDS.values():
                if number < count * command.weight:
                    yield Trial(PART, fault, command.name, number)


def run(lab: Lab, trial: Trial) -> Outcome:
    """Kill a command one to three times, each time at a random moment, and finish it."""
    command, chance, outcome = COMMANDS[trial.subject], lab.chance(trial), Outcome()
    folder = command.prepare(lab.work / "kill", lab.material)
    number = signal.Signals[trial.fault]
    for _ in range(chance.choice((1, 1, 2, 3))):
        ended = strike(lab, command, folder, number, chance)
        if ended.code == 0 or is_done(command, ended):
            break
        if ended.code not in CODES[number] or "Traceback" in ORPHAN.sub("", ended.err):
            return outcome.note(ended.verdict, f"after {trial.fault}: {reason(ended)}")
        if ended.orphans:
            return outcome.note("left over", f"after {trial.fault}: {ended.orphans} processes")
        if number == signal.SIGTERM and (left := [path.name for path in temporary_of(folder).iterdir()]):
            return outcome.note("left over", f"after {trial.fault} in the folder of temporary files: {left[:5]}")
        if not lab.check_whole(command, folder, outcome, f"after {trial.fault}"):
            return outcome
    return lab.finish(command, folder, outcome)


def strike(lab: Lab, command: Command, folder: Path, number: signal.Signals, chance: random.Random) -> Ended:
    """Start a command, send a signal at a random moment, and wait for its end.

    If the command ends before the signal comes, it is started from the beginning again, and the signal comes earlier.
    """
    seconds = lab.undisturbed(command).seconds
    for _ in range(20):
        children = command.begin(folder, lab.material)
        time.sleep(chance.uniform(0.02, seconds))
        victims = children if chance.random() < 0.5 else [chance.choice(children)]
        if all(child.runs() for child in victims):
            for child in victims:
                child.kill(number)
            return wait_all(children)
        ended = wait_all(children)
        if ended.code:
            return ended
        command.prepare(folder, lab.material)
        seconds *= 0.8
    raise RuntimeError(f"{command.name}: always ends before the signal comes")
