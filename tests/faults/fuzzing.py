"""Give mutated files to every parser."""

from __future__ import annotations

from collections.abc import Iterator

from .batches import Batch, Change
from .documents import inputs
from .lab import Lab
from .parsers import PARSERS
from .results import Outcome, Trial

PART = "fuzzing"
BESIDE = False
SHARE = 40  # of the minutes of a whole run
BATCH, BATCHES, SAMPLE = 250, 40, 6  # inputs of a trial, trials of a parser, inputs of a parser in a sample


def plan(sample: bool) -> Iterator[Trial]:
    """Iterate over batches of inputs, in turn over parsers."""
    for number in range(1 if sample else BATCHES):
        for name in PARSERS:
            yield Trial(PART, name, f"{SAMPLE if sample else BATCH} inputs", number)


def run(lab: Lab, trial: Trial) -> Outcome:
    """Give one batch of inputs to a parser.

    Every second input of a format with checksums has checksums that fit, as an attacker would write it.
    """
    parser = PARSERS[trial.fault]
    source = next((lab.material / parser.folder).glob(parser.file))
    content, seed = source.read_bytes(), f"{lab.seed}/{parser.name}"

    def change(number: int) -> Change:
        data = inputs(source.name, content, seed, number + BATCH * trial.number)
        return Change(lambda path: path.write_bytes(data), parser.kept and number % 2 == 1)

    return Batch(lab, trial, parser, int(trial.subject.split()[0]), change).run()
