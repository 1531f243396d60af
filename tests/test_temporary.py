"""Temporary files are gone when a program ends, whatever ends it."""

import os
import signal
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import starting
from shard_writer import ShardWriter

from fingerprint_accel import temporary
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.temporary import ENDING, SUFFIX, end_by_exception, temporary_folder
from tests.data.small_datasets import ridges

PREFIX = ".work."
HOLDS = """
import sys, time
from pathlib import Path
from fingerprint_accel.temporary import end_by_exception, temporary_folder

with end_by_exception(), temporary_folder(Path(sys.argv[1]), ".work.") as folder:
    (folder / "print.png").write_text("ridges")
    time.sleep(60)
"""


def until(found):
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def ended_by(number, parent):
    """Exit code of a process that holds a folder with a print when the signal comes."""

    def send(ids):
        until(lambda: list(parent.glob("*/print.png")))
        os.kill(ids[0], number)

    return starting.run(["-c", HOLDS, parent], meanwhile=send, timeout=60).returncode


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_every_signal_that_can_be_caught_removes_the_folder(tmp_path, number):
    assert ended_by(number, tmp_path) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_the_usual_signals_are_among_them():
    assert {signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2} <= set(ENDING)


def test_the_next_start_removes_what_a_killed_process_has_left_and_nothing_else(tmp_path):
    """Not the folder of a running process, nor what others have made."""
    others = [tmp_path / ".work.else", tmp_path / f"{PREFIX}file{SUFFIX}"]
    others[0].mkdir()
    others[1].write_text("")
    assert ended_by(signal.SIGKILL, tmp_path) == -signal.SIGKILL
    (left,) = (path for path in tmp_path.iterdir() if path not in others)
    assert (left / "print.png").exists()
    with temporary_folder(tmp_path, PREFIX) as first:
        assert not left.exists()
        (first / "print.png").write_text("ridges")
        with temporary_folder(tmp_path, PREFIX) as second:
            assert sorted(tmp_path.iterdir()) == sorted([*others, first, second])
        assert sorted(tmp_path.iterdir()) == sorted([*others, first])
        assert (first / "print.png").exists()
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_leftovers_of_another_user_and_links_stay(tmp_path, monkeypatch):
    theirs, target = tmp_path / f"{PREFIX}theirs{SUFFIX}", tmp_path / "target"
    theirs.mkdir()
    target.mkdir()
    (target / "file").write_text("")
    (tmp_path / f"{PREFIX}link{SUFFIX}").symlink_to(target)
    another = os.getuid() + 1
    with monkeypatch.context() as patched:
        patched.setattr(temporary.os, "getuid", lambda: another)
        with temporary_folder(tmp_path, PREFIX):
            assert theirs.is_dir()
    with temporary_folder(tmp_path, PREFIX):
        assert not theirs.exists()
    assert (target / "file").exists()


def test_a_folder_that_another_process_removes_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    made = []
    original = tempfile.mkdtemp

    def raced(*given):
        made.append(original(*given))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(temporary.tempfile, "mkdtemp", raced)
    with temporary_folder(tmp_path, PREFIX) as folder:
        assert len(made) == 2 and str(folder) == made[1]


def test_it_is_for_its_owner_alone_and_errors_of_the_block_are_raised(tmp_path):
    with pytest.raises(FileNotFoundError), temporary_folder(tmp_path, PREFIX) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "nothing").read_text()
    assert list(tmp_path.iterdir()) == []


def test_signals_are_as_before_afterwards():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    with end_by_exception():
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
    with pytest.raises(SystemExit), end_by_exception():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert {number: signal.getsignal(number) for number in before} == before


def test_other_threads_leave_signals_alone():
    found = []

    def other():
        with end_by_exception():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_a_second_signal_does_not_interrupt_the_deletion(tmp_path, monkeypatch):
    def disturbed(folder, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        deleted(folder, **options)

    deleted = temporary.shutil.rmtree
    monkeypatch.setattr(temporary.shutil, "rmtree", disturbed)
    with pytest.raises(SystemExit) as ended, end_by_exception(), temporary_folder(tmp_path, PREFIX):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert ended.value.code == 143
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_ends_a_program_in_which_the_first_was_lost(monkeypatch):
    """Python prints and forgets what a destructor raises."""
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: lost.append(error.exc_type))

    class Forgets:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    with pytest.raises(SystemExit), end_by_exception():
        Forgets()
        assert lost == [SystemExit]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_under_nohup_a_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with end_by_exception():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


AUDIT = """
import sys, time
from fingerprint_accel.evaluation.audit import command

def slow(data, out, *arguments, **options):
    made(data, out, *arguments, **options)
    (out.parent / "made").touch()
    time.sleep(60)

made, command.extract_all = command.extract_all, slow
from fingerprint_accel.cli import main

main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_audit_leaves_no_embeddings_when_it_is_ended(tmp_path, number, code):
    """After SIGKILL, the next audit removes them."""
    with ShardWriter(tmp_path / "prints", 300, 320) as writer:
        for row in range(2):
            writer.add(Record(ridges(row, 320), str(row), 0, "source", np.empty((0, 4), np.float32)))
    out = tmp_path / "out"
    out.mkdir()

    def send(ids):
        until(lambda: list(out.glob(".audit.*/made")))
        assert list(out.glob(".audit.*/embeddings/config.json"))
        os.kill(ids[0], number)

    words = ["inspect", tmp_path / "prints", "--audit", "--out", out / "audit.png"]
    assert starting.run(["-c", AUDIT, *words], meanwhile=send, timeout=120).returncode == code
    assert bool(list(out.iterdir())) == (number == signal.SIGKILL)
    with temporary_folder(out, ".audit.") as folder:
        assert list(out.iterdir()) == [folder]
