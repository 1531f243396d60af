import os
import subprocess
import sys
from pathlib import Path

import pytest
import starting

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = {
    "accelerate": [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
        *("--config_file", str(ROOT / "recipes" / "hardware" / "cpu.yaml")),
    ],
    "two processes": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
}
FORKED = {"one process": 1, "two processes": 2, "three processes": 3}
TINY = [
    *("--reading.validation-fraction", "0.3", "--preprocess.crop", "256", "--preprocess.size", "64"),
    *("--model.variant", "TexMinu", "--model.trunk", "compact", "--model.width", "8", "--model.embedding-dim", "32"),
    *("--training.batch-size", "4", "--training.steps", "12", "--training.warmup-steps", "2"),
    *("--training.log-every", "1", "--training.tracker", "none", "--training.precision", "no"),
]


OFFLINE = Path(__file__).parent / "offline"


def launched(launcher, words, environment, timeout=300):
    """Runs a program to its end, which has to be a good one; several processes without torchrun's seconds."""
    if launcher in FORKED:
        result = starting.run(words, FORKED[launcher], environment, timeout)
    else:
        command = [*LAUNCHERS[launcher], *map(str, words)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture
def environment(tmp_path):
    """Two threads at most, a CPU even where there is a GPU, and no other machine within reach."""
    refused = tmp_path / "refused-connections"
    yield {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(OFFLINE), str(ROOT)]),
        "REFUSED_CONNECTIONS": str(refused),
    }
    assert not refused.exists(), f"asked for another machine: {refused.read_text()}"
