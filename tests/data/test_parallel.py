"""Worker processes: results in order, and none outlives its parent."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fingerprint_accel.data.parallel import batched, in_parallel
from fingerprint_accel.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
import time
from fingerprint_accel.data.parallel import in_parallel
print("started", flush=True)
list(in_parallel(time.sleep, [600, 600], 2))
"""


def test_results_come_in_order():
    with contextlib.closing(in_parallel(abs, range(-20, 0), 2)) as results:
        assert list(results) == list(range(20, 0, -1))


def large(number):
    if number == 13:
        raise ValueError("unlucky")
    return bytes(50_000_000) if number else b""


def test_a_worker_killed_in_the_middle_of_its_answer():
    results = in_parallel(large, range(4), 2)
    assert next(results) == b""
    time.sleep(2)  # by now the next answers fill their pipes, and their workers wait for somebody to read
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match="a worker process was killed"):
        list(results)
    assert not multiprocessing.active_children()


def test_an_error_comes_in_its_turn_and_says_where_it_was_raised():
    results = in_parallel(large, [0, 13, 0], 2)
    assert next(results) == b""
    with pytest.raises(ValueError, match="unlucky") as error:
        next(results)
    assert "in large" in error.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_batched():
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_workers_end_with_a_killed_parent():
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    workers: list[str] = []
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        workers = [
            child
            for child in children.read_text().split()
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
