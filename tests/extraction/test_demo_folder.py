"""Dropped prints are gone when the demo ends, whatever ends it."""

import os
import signal
import stat
import tempfile
import time
from pathlib import Path

import pytest
import starting

from fingerprint_accel.extraction import demo_folder
from fingerprint_accel.extraction.demo_folder import ENDING, PREFIX, dropped_prints, remove_leftovers

HOLDS = """
import sys, tempfile, time
from fingerprint_accel.extraction.demo_folder import dropped_prints

tempfile.tempdir = sys.argv[1]
with dropped_prints() as folder:
    (folder / "print.png").write_text("ridges")
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def until(found):
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def killed_by(number, temporary):
    """Exit code of a process that holds a folder with a print when the signal comes."""

    def send(ids):
        until(lambda: list(temporary.glob("*/print.png")))
        os.kill(ids[0], number)

    return starting.run(["-c", HOLDS, temporary], meanwhile=send, timeout=60).returncode


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_every_signal_that_can_be_caught_removes_the_folder(temporary, number):
    assert killed_by(number, temporary) == 128 + number
    assert list(temporary.iterdir()) == []


def test_the_usual_signals_are_among_them():
    assert {signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2} <= set(ENDING)


def test_the_next_start_removes_what_a_killed_demo_has_left_and_nothing_else(temporary):
    """Not the folder of a running demo, nor what others have made."""
    others = [temporary / "fingerprint-accel-else", temporary / f"{PREFIX}file"]
    others[0].mkdir()
    others[1].write_text("")
    assert killed_by(signal.SIGKILL, temporary) == -signal.SIGKILL
    (left,) = (path for path in temporary.iterdir() if path not in others)
    assert (left / "print.png").exists()
    with dropped_prints() as first:
        assert not left.exists()
        (first / "print.png").write_text("ridges")
        with dropped_prints() as second:
            assert sorted(temporary.iterdir()) == sorted([*others, first, second])
        assert sorted(temporary.iterdir()) == sorted([*others, first])
        remove_leftovers()
        assert (first / "print.png").exists()
    assert sorted(temporary.iterdir()) == sorted(others)


def test_leftovers_of_another_user_and_links_stay(temporary, monkeypatch):
    theirs, target = temporary / f"{PREFIX}theirs", temporary / "target"
    theirs.mkdir()
    target.mkdir()
    (target / "file").write_text("")
    (temporary / f"{PREFIX}link").symlink_to(target)
    another = os.getuid() + 1
    with monkeypatch.context() as patched:
        patched.setattr(demo_folder.os, "getuid", lambda: another)
        remove_leftovers()
    assert theirs.is_dir()
    remove_leftovers()
    assert not theirs.exists()
    assert (target / "file").exists()


def test_a_folder_that_another_start_removes_before_it_is_locked_is_made_anew(temporary, monkeypatch):
    made = []
    original = tempfile.mkdtemp

    def raced(**named):
        made.append(original(**named))
        if len(made) == 1:
            remove_leftovers()
        return made[-1]

    monkeypatch.setattr(demo_folder.tempfile, "mkdtemp", raced)
    with dropped_prints() as folder:
        assert len(made) == 2 and str(folder) == made[1]
        assert not Path(made[0]).exists()


def test_it_is_for_its_owner_alone_and_signals_are_as_before(temporary):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    with dropped_prints() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before


def test_under_nohup_a_hangup_stays_ignored(temporary):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with dropped_prints() as folder:
            os.kill(os.getpid(), signal.SIGHUP)
            assert folder.is_dir()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
