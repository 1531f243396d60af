"""An import that is interrupted ends at once, in one line, and the same command goes on from there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MAIN = "from fingerprint_accel.cli import main; main()"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """More files than are imported before the blow comes: 3,000 names for one picture."""
    folder = tmp_path_factory.mktemp("many")
    y, x = np.mgrid[:300, :300]
    inside = (x - 150) ** 2 + (y - 150) ** 2 < 126**2
    picture = np.where(inside, 128 + 100 * np.cos(x / 1.5 + y / 9), 255).astype(np.uint8)
    Image.fromarray(picture).save(folder / "1_1.png")
    for number in range(2, 3001):
        os.link(folder / "1_1.png", folder / f"{number}_1.png")
    return folder


def start(scans, out):
    words = ["import", str(scans), str(out), "--layout", "fvc", "--ppi", "500", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(out.parent.glob(".set.parts/part-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "the import is under way"
    return process


def workers(parent):
    """Process ids of the workers that a process has spawned."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def last_line(process):
    """What the process says last, within 30 seconds."""
    return process.communicate(timeout=30)[1].replace("\r", "\n").strip().splitlines()


def test_ctrl_c(scans, tmp_path):
    process = start(scans, tmp_path / "set")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    lines = last_line(process)
    assert process.returncode == 130
    assert any("interrupted; the same command goes on from here" in line for line in lines)
    assert not any("Traceback" in line for line in lines), "\n".join(lines[-30:])
    assert [path.name for path in tmp_path.iterdir()] == [".set.parts"]
    assert list((tmp_path / ".set.parts").glob("part-*"))
    assert not list((tmp_path / ".set.parts").glob("*.tmp"))
