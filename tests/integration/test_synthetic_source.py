"""Training on `--data synth:...`: two processes do what one does, and a killed run ends as one that was left alone."""

import os
import signal
import time

import numpy as np
import starting

from .test_kill import finish, program
from .test_launch import launch, records

DATA = "synth:fingers=8,impressions=4,seed=1,quality=clean,canvas=256"


def test_two_processes_train_what_one_does(environment, tmp_path):
    same = ["--data", DATA, "--model.norm", "group", "--model.dropout", "0", "--reading.samples-per-class", "2"]
    same += ["--loss.contrastive-weight", "1", "--loss.scale", "16"]
    same += ["--training.steps", "4", "--training.validate-every", "2"]
    launch("one process", "train_10k.py", environment, *same, "--out", tmp_path / "one", "--training.batch-size", "8")
    launch("two processes", "train_10k.py", environment, *same, "--out", tmp_path / "two", "--training.batch-size", "4")
    losses = [[record["loss"] for record in records(tmp_path / name)] for name in ("one", "two")]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)
    rates = [[record["eer"] for record in records(tmp_path / name, "validation")] for name in ("one", "two")]
    np.testing.assert_allclose(rates[0], rates[1], rtol=0, atol=0.05)


def kill_at_step(out, environment, step, delay):
    """SIGKILL, `delay` seconds after the record of `step`."""
    metrics = out / "metrics.jsonl"

    def kill(processes):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= step:
                break
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(processes[0], signal.SIGKILL)

    result = starting.run(program(DATA, out), 1, environment, meanwhile=kill)
    assert result.returncode == -signal.SIGKILL, result.stderr[-3000:]


def test_killed_and_resumed(environment, tmp_path):
    untouched = finish(DATA, tmp_path / "untouched", environment)
    for step in (3, 8):
        kill_at_step(tmp_path / "run", environment, step, 0.01)
    assert finish(DATA, tmp_path / "run", environment) == untouched
