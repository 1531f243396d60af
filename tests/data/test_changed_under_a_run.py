"""Files that change while they are read: the process ends with one line that names the file."""

import faulthandler
import hashlib
import mmap
import os
import signal
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from small_datasets import dataset

from fingerprint_accel.data import bus_errors
from fingerprint_accel.data.mapping import MappedFile
from fingerprint_accel.data.shards import open_dataset

SHARD = "data-00000-of-00001.arrow"


def in_child(work, stderr):
    """Runs `work` in a forked process, and returns its exit status and what it wrote to stderr."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
            work()
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    return status, stderr.read_text()


READERS = {
    "one byte in Python": lambda buffer: memoryview(buffer)[len(buffer) - 5],
    "numpy": lambda buffer: np.frombuffer(buffer, np.uint8).sum(),
    "a copy without the GIL": lambda buffer: np.take(
        np.frombuffer(buffer, np.uint8), np.arange(len(buffer)), out=np.empty(len(buffer), np.uint8), mode="clip"
    ),
    "hashlib without the GIL": lambda buffer: hashlib.sha256(buffer).digest(),
    "lz4 in pyarrow": lambda buffer: pa.Codec("lz4_raw").compress(buffer),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the signal is that of Linux")
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_a_shard_that_became_shorter_is_named(tmp_path, reader, in_thread):
    """SIGBUS ended the process without a word."""
    path = tmp_path / "some ä.arrow"
    path.write_bytes(bytes(100_000))

    def work():
        file = MappedFile(path)
        os.truncate(path, 5000)
        if in_thread:  # the main thread holds and releases the GIL meanwhile
            thread = threading.Thread(target=READERS[reader], args=(file.buffer,))
            thread.start()
            while True:
                sum(range(1000))
        READERS[reader](file.buffer)

    status, line = in_child(work, tmp_path / "stderr")
    assert os.waitstatus_to_exitcode(status) == 2
    assert line == (
        f"\nerror: {path}: became shorter while it was read; restore it from a copy, then run the same command again "
        "(training: with --resume auto)\n"
    )


def test_a_loader_names_the_shard(tmp_path):
    folder = dataset(tmp_path / "set", "abc", impressions=2)

    def work():
        shards = open_dataset(folder)
        os.truncate(folder / SHARD, 4096)
        shards.read(np.arange(6), np.empty((6, 64, 64), np.uint8))

    status, line = in_child(work, tmp_path / "stderr")
    assert os.waitstatus_to_exitcode(status) == 2
    assert f"{folder / SHARD}: became shorter while it was read" in line


def test_other_mapped_files_end_as_before(tmp_path):
    """Only files of this package are named; the signal of another one goes to the handler that was there before."""
    path = tmp_path / "other"
    path.write_bytes(bytes(100_000))

    def work():
        faulthandler.disable()  # it would print all its threads
        bus_errors._installed = False
        kept = MappedFile(path)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.truncate(path, 5000)
        assert len(kept) == 100_000
        mapped[99_000]

    status, line = in_child(work, tmp_path / "stderr")
    assert os.WTERMSIG(status) == signal.SIGBUS
    assert str(path) not in line


def test_mappings_are_forgotten(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    before = len(bus_errors._mapped)
    file = MappedFile(path)
    view = np.frombuffer(file.buffer, np.uint8)
    del file
    assert len(bus_errors._mapped) == before + 1
    assert view.sum() == 0, "a view keeps the mapping"
    del view
    assert len(bus_errors._mapped) == before
