"""Import, merge and extract are killed at random moments, with two workers and on a Dask cluster: the same command
goes on and ends with the bytes of a run that nothing disturbed. tests/faults kills commands with one worker.

KILLS=10 in the environment kills each ten times instead of twice.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import starting
import torch
from distributed import Client, LocalCluster
from PIL import Image

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.extraction.extractor import FingerprintExtractor

from .conftest import ROOT

KILLS = int(os.environ.get("KILLS", "2"))
MAIN = "from fingerprint_accel.cli import main; main()"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """120 names for one picture, and a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    y, x = np.mgrid[:300, :300]
    inside = (x - 150) ** 2 + (y - 150) ** 2 < 126**2
    picture = np.where(inside, 128 + 100 * np.cos(x / 1.5 + y / 9), 255).astype(np.uint8)
    Image.fromarray(picture).save(folder / "1_1.png")
    for number in range(2, 121):
        os.link(folder / "1_1.png", folder / f"{number}_1.png")
    (folder / "121_1.png").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def commands(scans, prints, tmp_path_factory):
    """By verb: the words before OUT, and those after it."""
    torch.manual_seed(0)
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=32)
    model = tmp_path_factory.mktemp("model") / "tiny"
    FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320).save_pretrained(model)
    return {
        "import": (["import", scans, "--out"], ["--layout", "fvc", "--ppi", "500"]),
        "merge": (["merge", prints, "--out"], ["--encoding", "lz4", "--rows-per-shard", "16", "--canvas", "256"]),
        "extract": (["extract", prints, "--out"], ["--model", model, "--batch-size", "1", "--device", "cpu"]),
    }


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(commands, tmp_path_factory):
    """Bytes that one worker makes of each command, and seconds that it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = {}
    starting.run(["-c", "pass"], 1, environment)  # what starts the others takes seconds itself
    for verb in commands:
        started = time.monotonic()
        finish(commands[verb], folder / verb, ways(verb, "1"), environment)
        found[verb] = files(folder / verb), time.monotonic() - started
    return found


def ways(verb, workers):
    return ["--workers", workers] if verb != "extract" else []


def program(command, out, more):
    before, after = command
    return ["-c", MAIN, *before, out, *after, *more]


def finish(command, out, more, environment):
    result = starting.run(program(command, out, more), 1, environment)
    assert result.returncode == 0, result.stderr[-3000:]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_at_random_moments(command, out, more, environment, seconds, chance):
    kills = 0
    while kills < KILLS:
        moment = chance.uniform(0, seconds)

        def kill(processes, moment=moment):
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                os.kill(processes[0], signal.SIGKILL)

        result = starting.run(program(command, out, more), 1, environment, meanwhile=kill)
        if result.returncode == 0:  # it was faster
            shutil.rmtree(out)
            seconds *= 0.8
            continue
        assert result.returncode == -signal.SIGKILL, result.stderr[-3000:]
        kills += 1
        if out.exists() and not (out / "records").exists():  # after its last step
            shutil.rmtree(out)
    finish(command, out, more, environment)


@pytest.mark.parametrize("workers", ["2", "Dask"])
@pytest.mark.parametrize("verb", ["import", "merge", "extract"])
def test_killed_at_random_moments(verb, workers, commands, undisturbed, environment, tmp_path, request):
    if (verb, workers) == ("extract", "2"):
        pytest.skip("extract works on the threads of one process")
    more = ways(verb, workers)
    if workers == "Dask":
        environment.pop("REFUSED_CONNECTIONS")  # the address is one of this machine
        more = ["--cluster", request.getfixturevalue("cluster").scheduler_address]
    expected, seconds = undisturbed[verb]
    out = tmp_path / "out"
    killed_at_random_moments(commands[verb], out, more, environment, seconds, random.Random(f"{verb} {workers}"))
    assert files(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("verb", ["import", "merge", "extract"])
def test_a_killed_dask_worker(verb, commands, undisturbed, cluster, environment, tmp_path):
    """One of two workers is lost while it makes a shard: the cluster gives its work to another."""
    environment.pop("REFUSED_CONNECTIONS")
    out = tmp_path / "out"
    with Client(cluster) as client:
        client.wait_for_workers(2)
        workers = list(client.run(os.getpid).values())

        def kill():
            deadline = time.monotonic() + 60
            staging = ".out.*.partial"  # a draft exists only for milliseconds: a finished shard will do, others follow
            while (
                not [*tmp_path.glob(f"{staging}/.*.tmp"), *tmp_path.glob(f"{staging}/*-of-*")]
                and time.monotonic() < deadline
            ):
                time.sleep(0.002)
            os.kill(workers[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        finish(commands[verb], out, ["--cluster", cluster.scheduler_address], environment)
        killer.join()
        assert workers[0] not in client.run(os.getpid).values()
    assert files(out) == undisturbed[verb][0]


def start(scans, out):
    words = ["import", str(scans), "--out", str(out), "--layout", "fvc", "--ppi", "500", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(out.parent.glob(".set.*.partial/records/data*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "the import is under way"
    return process


@pytest.fixture(scope="module")
def many_scans(scans, tmp_path_factory):
    """More files than are imported before the blow comes."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(1, 1001):
        os.link(scans / "1_1.png", folder / f"{number}_1.png")
    return folder


def test_ctrl_c_and_another_command(many_scans, tmp_path):
    process = start(many_scans, tmp_path / "set")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    lines = process.communicate(timeout=30)[1].replace("\r", "\n").strip().splitlines()
    assert process.returncode == 130
    kept = r"interrupted; [1-9]\d* of \d+ shards are finished; run the same command again to continue"
    assert any(re.fullmatch(kept, line) for line in lines), lines[-30:]
    assert not any("Traceback" in line for line in lines), "\n".join(lines[-30:])
    (left,) = tmp_path.iterdir()
    words = ["import", str(many_scans), "--out", str(tmp_path / "set"), "--layout", "fvc", "--ppi", "400"]
    other = subprocess.run([sys.executable, "-c", MAIN, *words], capture_output=True, text=True)
    assert other.returncode == 2
    assert other.stderr.startswith(
        f"error: {left}: holds unfinished shards of another command (ppi 500 there, 400 here); stop"
    )
    assert len(other.stderr.strip().splitlines()) == 1


def test_a_killed_worker(many_scans, tmp_path):
    process = start(many_scans, tmp_path / "set")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    lines = process.communicate(timeout=200)[1].replace("\r", "\n").strip().splitlines()
    assert process.returncode == 0, "another worker makes its shard"
    assert not any("Traceback" in line for line in lines)
    assert len(open_dataset(tmp_path / "set")) == 1000
