"""Train for long without and with kills: the same bits, and flat memory, file descriptors and threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .children import Child, Ended, training
from .commands import Command, emptied, snapshot, wait_all
from .lab import Lab, reason
from .material import training_words
from .results import Outcome, Trial

PART = "endurance"
BESIDE = True  # takes the time of all other parts
SHARE = 0
MEASURED = 200  # steps from which the speed is measured
SAMPLED = 120  # steps of the sample in continuous integration
LIFE = (20.0, 60.0)  # seconds until a kill
KEPT = 0.45  # share of the minutes of the run for each of two trainings
GROWTH, FLOOR = 0.02, 16.0  # share and megabytes by which memory may grow after the first quarter of a life


class Sample(NamedTuple):
    """Resources of a process at one moment."""

    megabytes: float
    descriptors: int
    threads: int


def plan(sample: bool, minutes: float = 60.0) -> Iterator[Trial]:
    """Return the one trial; its number is the number of minutes."""
    yield Trial(PART, "training with kills", "1 process", 0 if sample else round(minutes))


def run(lab: Lab, trial: Trial) -> Outcome:
    """Train twice, once with kills, and compare."""
    outcome, chance = Outcome(), lab.chance(trial)
    seconds = 60 * trial.number * KEPT
    steps = _steps(lab, seconds) if trial.number else SAMPLED
    command = Command("long training", lambda m: [*_words(m, steps), "--out", "run"], "run", processes=1)
    folder = emptied(lab.work / "undisturbed-long")
    ended, samples = _life(command.begin(folder, lab.material))
    outcome.measure(ended.seconds, ended.megabytes)
    if ended.code:
        return outcome.note(ended.verdict, reason(ended))
    lives, killed = [samples], emptied(lab.work / "killed-long")
    while True:
        children = command.begin(killed, lab.material)
        life = chance.uniform(*LIFE) if trial.number else ended.seconds * chance.uniform(0.4, 0.9)
        again, samples = _life(children, life)
        lives.append(samples)
        if again.code != -9:
            break
        outcome.note("recovered")
    if again.code:
        return outcome.note(again.verdict, f"after {outcome.counts.total()} kills: {reason(again)}")
    theirs, ours = snapshot(folder / "run"), snapshot(killed / "run")
    if differing := sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)):
        outcome.note("silent", f"after {outcome.counts.total()} kills {', '.join(differing)} differ")
    for samples in lives:
        if grown := growth(samples):
            outcome.note("beyond budget", grown)
    return outcome.note("recovered")


def _words(material: Path, steps: int) -> list[str]:
    saves = ["--training.save-every", "25", "--training.validate-every", "200", "--training.log-every", "10"]
    return [*training_words(material, steps), *saves]


def _steps(lab: Lab, seconds: float) -> int:
    """Return the number of steps that take about this time."""
    folder = emptied(lab.work / "speed")
    words = [*_words(lab.material, MEASURED), "--out", "run"]
    ended = Child(training(words), folder).wait()
    return max(MEASURED, int(MEASURED * seconds / ended.seconds))


def _life(children: list[Child], seconds: float = 1e9) -> tuple[Ended, list[Sample]]:
    """Wait for a training, at most `seconds`, and sample what it uses once a second."""
    (child,) = children
    samples, end = [], time.monotonic() + seconds
    while child.runs(min(1.0, max(0.0, end - time.monotonic()))):
        if time.monotonic() >= end:
            child.kill()
            break
        samples.append(_sample(child))
    return wait_all(children), samples


def _sample(child: Child) -> Sample:
    process = Path("/proc") / str(child.pid)
    try:
        descriptors, threads = (len(list((process / name).iterdir())) for name in ("fd", "task"))
    except OSError:  # it has just ended
        return Sample(0, 0, 0)
    return Sample(child.resident() / 2**20, descriptors, threads)


def growth(samples: list[Sample]) -> str:
    """Say what grew between the second and the last quarter of a life; empty if nothing did."""
    samples = [sample for sample in samples if sample.threads]
    quarter = len(samples) // 4
    if quarter < 10:
        return ""
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    found = []
    for name, floor in (("megabytes", FLOOR), ("descriptors", 1), ("threads", 1)):
        before, after = (statistics.median(getattr(sample, name) for sample in some) for some in (early, late))
        if after - before > max(floor, GROWTH * before):
            found.append(f"{name} from {before:.0f} to {after:.0f}")
    return ", ".join(found)
