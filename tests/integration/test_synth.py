"""A synthesis that is killed or interrupted goes on with the same command and ends with the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

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


def hashes(out):
    return json.loads((out / "fingerprint.json").read_text())["sha256"]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Hashes of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("untouched") / "set"
    result = run(out, "--workers", "1", environment={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert "minutiae per print" in result.stdout
    assert "going on" not in result.stderr
    return hashes(out)


def test_kill(untouched, tmp_path, environment):
    out = tmp_path / "set"
    process = start(out, environment, parts=3)
    spawned = workers(process.pid)
    time.sleep((time.time_ns() % 1000) / 2000)
    process.kill()
    process.communicate()
    assert not out.exists()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{worker}") for worker in spawned) and time.monotonic() < deadline:  # noqa: PTH110
        time.sleep(0.02)
    result = run(out, "--workers", "1", environment=environment)
    assert result.returncode == 0, result.stderr
    assert "of 10 parts are there" in result.stderr
    assert hashes(out) == untouched
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_ctrl_c_and_another_command(untouched, tmp_path, environment):
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


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, environment):
    result = run(tmp_path / "set", "--sensors", "optical", "acoustic", environment=environment)
    assert result.returncode == 2
    assert result.stderr.startswith("error: sensor 'acoustic': unknown; there are optical, ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
