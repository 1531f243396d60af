"""A synthesis that is interrupted, or loses a worker, ends in one line; another command does not touch what it left."""

import os
import signal
import subprocess
import sys
import time

from tests.integration.test_import import MAIN, workers

WORDS = ["--fingers", "10", "--impressions", "2", "--seed", "3", "--device", "cpu"]


def run(out, *words, environment):
    return subprocess.run(
        [sys.executable, "-c", MAIN, "synth", str(out), *WORDS, *words], env=environment, capture_output=True, text=True
    )


def start(out, environment, parts):
    """A run on two workers that has finished `parts` parts."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "synth", str(out), *WORDS, "--workers", "2"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    folder = out.with_name(f".{out.name}.parts")
    deadline = time.monotonic() + 60
    while len(list(folder.glob("part-*"))) < parts and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the synthesis is under way"
    return process


def lines_of(process):
    """What the process says, within 30 seconds."""
    return process.communicate(timeout=30)[1].replace("\r", "\n").strip().splitlines()


def test_ctrl_c_and_another_command(tmp_path, environment):
    out = tmp_path / "set"
    process = start(out, environment, parts=1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    lines = lines_of(process)
    assert process.returncode == 130
    assert lines[-1] == "interrupted; the same command goes on from here" or lines[-2].startswith(
        "interrupted; the same"
    )
    assert not any("Traceback" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == [".set.parts"]
    assert not list((tmp_path / ".set.parts").glob("*.tmp"))
    other = run(out, "--quality", "poor", environment=environment)
    assert other.returncode == 2
    assert other.stderr.startswith(f"error: {tmp_path / '.set.parts'}: unfinished parts of another command (quality")
    assert len(other.stderr.strip().splitlines()) == 1


def test_killed_worker(tmp_path, environment):
    process = start(tmp_path / "set", environment, parts=1)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    lines = lines_of(process)
    assert process.returncode == 2
    assert any("error: a worker process was killed" in line for line in lines)
    assert not any("Traceback" in line for line in lines)
    assert not list((tmp_path / ".set.parts").glob("*.tmp"))
