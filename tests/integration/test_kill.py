"""A run killed inside a save resumes and ends with the same bits as one that was left alone."""

import os
import signal

import pytest
import starting

from .conftest import ROOT, TINY, launched

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


def finish(prints, out, environment):
    launched("one process", program(prints, out), environment)
    last = out / "checkpoints" / "step-00000012"
    return {
        name: (last / name).read_bytes() for name in ("model.safetensors", "training_state.safetensors", "state.json")
    }


@pytest.fixture(scope="module")
def untouched(prints, tmp_path_factory):
    """What a run ends with when nobody kills it."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder = tmp_path_factory.mktemp("untouched")
    return finish(prints, folder / "run", environment)


@pytest.mark.parametrize("at", [1, 4, 5])
def test_killed_inside_a_save(at, prints, untouched, environment, tmp_path):
    out = tmp_path / "run"
    result = starting.run(["-c", KILL_IN_SAVE.format(at=at), *program(prints, out)], environment=environment)
    assert result.returncode == -signal.SIGKILL
    names = [path.name for path in (out / "checkpoints").iterdir()]
    assert sum(name.startswith(".step") for name in names) == 1, "the kill came inside the save"
    assert len(names) - 1 == (at - 1) // 2, "earlier checkpoints are whole"
    assert finish(prints, out, environment) == untouched
