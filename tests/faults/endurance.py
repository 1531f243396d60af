"""Train for long without and with kills: the same bits, and flat memory, file descriptors and threads."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .children import Child, Ended, training
from .commands import Command, emptied, snapshot
from .lab import Lab, reason
from .material import training_words
from .results import Outcome, Trial

PART = "endurance"
BESIDE = True  # takes the time of all other parts
SHARE = 0
MEASURED = 200  # steps from which the speed is measured
SAMPLED = 120  # steps of the sample in continuous integration
LIFE, LIFE_OF_SAMPLE = (20.0, 60.0), (0.5, 1.5)  # seconds until a kill
KILLS_OF_SAMPLE = 2
KEPT = 0.85  # share of the minutes of the run for the training; the rest is for its start and its comparison
GROWTH, FLOOR = 0.02, 16.0  # share and megabytes by which memory may grow after the first quarter of a life


class Sample(NamedTuple):
    """Resources of a process at one moment."""

    megabytes: float
    descriptors: int
    threads: int


def plan(sample: bool, minutes: float = 60.0) -> Iterator[Trial]:
    """Return the one trial; its number is the number of minutes."""
    yield Trial(PART, "training with kills", "1 process", 0 if sample else round(minutes))


class Life:
    """One process of training, from its start to its end or its kill.

    Args:
        child: The process.
        seconds: Time until the process is killed.
    """

    def __init__(self, child: Child, seconds: float = 1e9) -> None:
        self.child, self.end = child, time.monotonic() + seconds
        self.samples: list[Sample] = []
        self.ended: Ended | None = None

    def watch(self) -> None:
        """Wait for a moment, sample what the process uses, and kill it when its time is over."""
        if self.child.runs(min(0.5, max(0.0, self.end - time.monotonic()))):
            if time.monotonic() < self.end:
                self.samples.append(_sample(self.child))
                return
            self.child.kill()
        self.ended = self.child.wait()


def run(lab: Lab, trial: Trial) -> Outcome:
    """Train twice at the same time, once with kills, and compare."""
    outcome, chance = Outcome(), lab.chance(trial)
    steps = _steps(lab, 60 * trial.number * KEPT) if trial.number else SAMPLED
    command = Command("long training", lambda m: [*_words(m, steps), "--out", "run"], "run", processes=1)
    folder, killed = emptied(lab.work / "undisturbed-long"), emptied(lab.work / "killed-long")

    def born() -> Life:
        many = trial.number or len(lives) <= KILLS_OF_SAMPLE
        (child,) = command.begin(killed, lab.material)
        return Life(child, chance.uniform(*(LIFE if trial.number else LIFE_OF_SAMPLE)) if many else 1e9)

    (child,) = command.begin(folder, lab.material)
    lives = [Life(child)]
    lives.append(born())
    while running := [life for life in (lives[0], lives[-1]) if life.ended is None]:
        for life in running:
            life.watch()
        if (ended := lives[-1].ended) is not None and ended.code == -signal.SIGKILL:
            outcome.note("recovered")
            lives.append(born())
    for name, life in (("", lives[0]), (f"after {outcome.counts.total()} kills: ", lives[-1])):
        if life.ended is not None and life.ended.code:
            return outcome.note(life.ended.verdict, f"{name}{reason(life.ended)}")
    theirs, ours = snapshot(folder / "run"), snapshot(killed / "run")
    if differing := sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)):
        outcome.note("silent", f"after {outcome.counts.total()} kills {', '.join(differing)} differ")
    for life in lives:
        if grown := growth(life.samples):
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
