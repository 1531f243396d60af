"""Eight and sixteen processes train what one does, stop on a signal, and go on in another number of processes.

`SLOW_TESTS=1` runs all chains, otherwise one runs.
"""

import json
import os
import signal
import time

import numpy as np
import pytest
import starting
from safetensors.torch import load_file

from .conftest import ROOT, TINY
from .test_launch import records

# A step takes at least a moment, so that a signal meets the run before its end.
TRAIN = """
import json, runpy, sys, time
from fingerprint_accel.config import parse
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training import loop, preemption_monitor

recipe, moment, words = sys.argv[1:]
preemption_monitor.TICK, one_step = 0.02, loop.optimizer_step

def slowed(*arguments):
    time.sleep(float(moment))
    return one_step(*arguments)

loop.optimizer_step = slowed
with one_line_errors():
    run = run_training(parse(runpy.run_path(recipe)["CONFIG"], "", json.loads(words)))
    run.accelerator.state.destroy_process_group()
"""
PRINTS, STEPS = 48, 8  # 48 prints a step are as many on each of 1, 3, 8 and 16 processes
SAME = [
    *("--model.norm", "group", "--model.dropout", "0", "--loss.scale", "16", "--reading.validation-fraction", "0"),
    *("--preprocess.size", "32", "--training.steps", str(STEPS), "--training.save-every", "0", "--resume", "auto"),
]
HEADS = {"full": [], "sharded": ["--loss.sharded"]}
SLOW = pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="takes half a minute: SLOW_TESTS=1")
CHAINS = [
    pytest.param("sharded", (8, 3), id="sharded-8-3"),
    *(
        pytest.param(heads, chain, id="-".join([heads, *map(str, chain)]), marks=SLOW)
        for heads in HEADS
        for chain in ((8, 3, 16), (16, 3, 8))
    ),
]


class Training:
    """Runs of a chain, in one folder."""

    def __init__(self, data, folder):
        self.data, self.folder = data, folder
        (folder / "train.py").write_text(TRAIN)
        self.environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(self, name, processes, heads, stop_after=0):
        """The result; with `stop_after`, one process gets a signal once the run has recorded that step."""
        words = [*TINY, *SAME, *HEADS[heads], "--data", str(self.data), "--out", str(self.folder / name)]
        words += ["--training.batch-size", str(PRINTS // processes)]
        program = [self.folder / "train.py", ROOT / "recipes" / "train_10k.py", 0.2 if stop_after else 0]
        return starting.run(
            [*program, json.dumps(words)],
            processes,
            self.environment,
            meanwhile=(lambda ids: self.stop(name, ids[-1], stop_after)) if stop_after else None,
        )

    def stop(self, name, process, step):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            file = self.folder / name / "metrics.jsonl"
            if file.exists() and any(record["step"] >= step for record in records(self.folder / name)):
                break
            time.sleep(0.02)
        os.kill(process, signal.SIGTERM)

    def course(self, name):
        return np.array([record["loss"] for record in records(self.folder / name)])

    def state(self, name):
        return load_file(self.folder / name / "checkpoints" / f"step-{STEPS:08d}" / "training_state.safetensors")


@pytest.fixture(scope="module")
def training(prints, tmp_path_factory):
    return Training(prints, tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def one(training):
    """Losses and state of one process, with heads that are not sharded."""
    result = training.run("one", 1, "full")
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(training.course("one")) == STEPS
    return training.course("one"), training.state("one")


@pytest.mark.parametrize(("heads", "chain"), CHAINS)
def test_many_processes_train_what_one_does(heads, chain, training, one):
    """All but the last number of processes are stopped by a signal to one process, the others end with it."""
    name = "-".join([heads, *map(str, chain)])
    for place, processes in enumerate(chain[:-1], 1):
        stopped = training.run(name, processes, heads, stop_after=2 * place)
        assert stopped.returncode == 75, stopped.stderr[-3000:]
        (line,) = [line for line in stopped.stderr.splitlines() if "stopped by SIGTERM after step" in line]
        done = len(training.course(name))
        assert f"after step {done} of {STEPS}" in line
        assert 2 * place <= done < STEPS, "the chain needs steps for the others"
    last = training.run(name, chain[-1], heads)
    assert last.returncode == 0, last.stderr[-3000:]
    losses, state = one
    np.testing.assert_allclose(training.course(name), losses, rtol=0, atol=2e-5)
    found = training.state(name)
    assert found.keys() == state.keys()
    for key in state:
        np.testing.assert_allclose(found[key], state[key], rtol=0, atol=1e-4, err_msg=key)
