"""A run killed at any moment resumes and ends with the same bits as one that was left alone."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import starting

from .conftest import FORKED, ROOT, TINY, launched

# Kills its own process inside the save that comes as number N, before the file number M is on disk.
KILL_IN_SAVE = """
import os, runpy, signal, sys
import fingerprint_accel.training.checkpoint as checkpoint
fsync_path, count = checkpoint.fsync_path, [0]
def deadly(path):
    count[0] += path.parent.name.startswith(".step")
    if count[0] == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync_path(path)
checkpoint.fsync_path = deadly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SAVES = ["--training.save-every", "2", "--training.validate-every", "4", "--training.save-total-limit", "2"]


def program(prints, out):
    words = [*TINY, *SAVES, "--data", str(prints), "--out", str(out), "--resume", "auto"]
    return [str(ROOT / "recipes" / "train_10k.py"), *words]


def finish(launcher, prints, out, environment):
    launched(launcher, program(prints, out), environment)
    last = out / "checkpoints" / "step-00000012"
    return {
        name: (last / name).read_bytes() for name in ("model.safetensors", "training_state.safetensors", "state.json")
    }


def kill_at_step(launcher, prints, out, environment, step, delay):
    """SIGKILL to every process, `delay` seconds after the record of `step`."""
    metrics: Path = out / "metrics.jsonl"

    def kill(processes):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= step:
                break
            time.sleep(0.002)
        time.sleep(delay)
        for process in processes:
            os.kill(process, signal.SIGKILL)

    result = starting.run(program(prints, out), FORKED[launcher], environment, meanwhile=kill)
    assert result.returncode == -signal.SIGKILL, result.stderr[-3000:]


@pytest.fixture(scope="module")
def untouched(prints, tmp_path_factory):
    """What one and two processes end with when nobody kills them."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder = tmp_path_factory.mktemp("untouched")
    return {name: finish(name, prints, folder / name[:3], environment) for name in ("one process", "two processes")}


@pytest.mark.parametrize(("launcher", "kills"), [("one process", 3), ("two processes", 2)])
def test_killed_at_random_moments(launcher, kills, prints, untouched, environment, tmp_path):
    chance = random.Random(launcher)
    out = tmp_path / "run"
    steps = sorted(chance.sample(range(1, 11), kills))
    for step in steps:
        kill_at_step(launcher, prints, out, environment, step, chance.uniform(0, 0.05))
    assert finish(launcher, prints, out, environment) == untouched[launcher]
    steps_recorded = [
        line.split(",")[0] for line in (out / "metrics.jsonl").read_text().splitlines() if "train" in line
    ]
    assert len(steps_recorded) == len(set(steps_recorded)) == 12, "each step is recorded once"
    assert not list((out / "checkpoints").glob(".*")), "no leftovers"


@pytest.mark.parametrize("at", [1, 4, 5])
def test_killed_inside_a_save(at, prints, untouched, environment, tmp_path):
    out = tmp_path / "run"
    result = starting.run(["-c", KILL_IN_SAVE.format(at=at), *program(prints, out)], environment=environment)
    assert result.returncode == -signal.SIGKILL
    names = [path.name for path in (out / "checkpoints").iterdir()]
    assert sum(name.startswith(".step") for name in names) == 1, "the kill came inside the save"
    assert len(names) - 1 == (at - 1) // 2, "earlier checkpoints are whole"
    assert finish("one process", prints, out, environment) == untouched["one process"]
