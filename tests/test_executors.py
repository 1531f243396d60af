"""Where shards are made: no process outlives its parent, and one that is killed ends in one line."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import pytest

from fingerprint_accel import executors
from fingerprint_accel.errors import UserError
from fingerprint_accel.executors import InProcess, gpus, open_workers

ROOT = Path(__file__).resolve().parents[1]
ENDLESS = """
import time
from fingerprint_accel.executors import open_workers
with open_workers(2) as team:
    futures = [team.executor.submit(time.sleep, 600) for _ in range(2)]
    print("started", flush=True)
    futures[0].result()
"""


def unlucky(number):
    if number == 13:
        raise ValueError("unlucky")
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_and_errors(workers):
    with open_workers(workers) as team:
        assert [team.executor.submit(unlucky, number).result() for number in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="unlucky"):
            team.executor.submit(unlucky, 13).result()
    assert not multiprocessing.active_children()


def test_one_worker_is_this_process():
    with open_workers(1) as team:
        assert isinstance(team.executor, InProcess)
        assert team.executor.submit(os.getpid).result() == os.getpid()
    with open_workers(0, threads=True) as team:
        assert isinstance(team.executor, InProcess)


def test_a_killed_worker_is_one_line():
    with (
        pytest.raises(UserError, match="a worker process was killed, probably because the memory was full"),
        open_workers(2) as team,
    ):
        future = team.executor.submit(time.sleep, 600)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        future.result()
    assert not multiprocessing.active_children()


def test_a_worker_that_has_printed_an_error_is_not_said_to_lack_memory():
    with pytest.raises(UserError, match="a worker process has failed: see the error above"), open_workers(2) as team:
        team.executor.submit(os._exit, 2).result()


def test_an_error_ends_what_is_under_way():
    started = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), open_workers(2) as team:
        wait([team.executor.submit(unlucky, 1)])
        team.executor.submit(time.sleep, 600)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children()


def test_workers_end_with_a_killed_parent():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"started\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert workers
    time.sleep(0.5)  # they ask who their parent is
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


class Turn:
    value = 0

    @contextlib.contextmanager
    def get_lock(self):
        yield


def test_every_worker_takes_a_gpu_of_its_own(monkeypatch):
    """Not run on GPUs: what torch is told."""
    taken = []
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    turn = Turn()
    for _ in range(3):
        executors._begin_worker(turn)
    assert taken == [0, 1, 0]
    assert gpus() == 2
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert gpus() == 0


def test_devices(monkeypatch):
    monkeypatch.setattr(executors, "SECONDS_TO_CONNECT", 1)
    monkeypatch.setattr(executors, "gpus", lambda: 1)
    with open_workers(0, device="auto") as team:
        assert (team.device, type(team.executor)) == ("cuda", InProcess), "one GPU needs no second process"
    with open_workers(1, device="cpu") as team:
        assert team.device == "cpu"
    monkeypatch.setattr(executors, "gpus", lambda: 0)
    with open_workers(1, device="auto") as team:
        assert team.device == "cpu"
    for words, message in (
        ({"device": "cuda"}, "--device cuda: torch finds no GPU on this machine; use --device cpu"),
        ({"device": "tpu"}, "--device tpu: unknown device; choose auto, cpu or cuda"),
        ({"workers": -1}, "--workers -1: must not be negative"),
        ({"cluster": "tcp://127.0.0.1:1"}, "--cluster tcp://127.0.0.1:1: no Dask scheduler answers"),
        ({"cluster": "nothing like it"}, "--cluster nothing like it: no Dask scheduler answers"),
    ):
        with pytest.raises(UserError, match=message), open_workers(**words):
            pass


def test_without_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(UserError, match=r"pip install 'fingerprint-accel\[cluster\]'"),
        open_workers(cluster="tcp://a:1"),
    ):
        pass
