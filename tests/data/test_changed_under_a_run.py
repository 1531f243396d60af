"""Files that change while they are read: the process ends with one line that names the file."""

import faulthandler
import hashlib
import mmap
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from record_files import transaction, type_14
from small_datasets import QUIET, dataset

from fingerprint_accel import jobs
from fingerprint_accel.data import bus_errors, watching
from fingerprint_accel.data.captures import read_records
from fingerprint_accel.data.mapping import MappedFile
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.watching import ShardWatcher
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_parts import Known, part_files

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


def test_an_open_gallery_names_its_file(tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", 64, "tests")
    gallery.append(np.eye(64, dtype=np.float32)[np.arange(500) % 64], [Known(str(row)) for row in range(500)])
    (part,) = part_files(gallery.folder)

    opened = Gallery(gallery.folder)

    def work():
        os.truncate(part, 4096)
        opened.vectors(np.arange(500))

    status, line = in_child(work, tmp_path / "stderr")
    assert os.waitstatus_to_exitcode(status) == 2
    assert f"{part}: became shorter while it was read" in line


def test_an_index_names_its_file(tmp_path):
    """FAISS maps the index by itself."""
    vectors = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gallery = Gallery.create(tmp_path / "gallery", 64, "tests")
    gallery.append(vectors, [Known(str(row)) for row in range(4000)])
    before, opened = len(bus_errors._mapped), [ApproximateSearch(gallery)]
    (file,) = gallery.folder.glob("*.faiss")

    def work():
        os.truncate(file, 4096)
        opened[0].search(vectors, 10)

    status, line = in_child(work, tmp_path / "stderr")
    assert os.waitstatus_to_exitcode(status) == 2
    assert f"{file}: became shorter while it was read" in line
    assert len(bus_errors._mapped) == before + 1
    opened.clear()
    assert len(bus_errors._mapped) == before


def test_a_container_names_its_file(tmp_path):
    path = tmp_path / "prints.an2"
    path.write_bytes(transaction(type_14(1, np.zeros((300, 300), np.uint8), 1, "NONE")))

    def work():
        (record,) = read_records(path)
        os.truncate(path, 4096)
        bytes(record.image)

    status, line = in_child(work, tmp_path / "stderr")
    assert os.waitstatus_to_exitcode(status) == 2
    assert f"{path}: became shorter while it was read" in line


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


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A dataset of two shards, which are looked at a hundred times a second."""
    monkeypatch.setattr(watching, "EVERY", 0.01)
    return dataset(tmp_path / "set", [f"key{number}" for number in range(5)])


def zeros(path):
    """Overwrites the pixels of a shard, and keeps its size and time."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(bytes(8000))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def by_another(path):
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    zeros(copy)
    copy.replace(path)


def by_itself(path):
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


CHANGES = {
    "overwritten": (zeros, "differs from its sha256"),
    "replaced": (by_another, "differs from its sha256"),
    "truncated": (lambda path: os.truncate(path, 5000), r"has 5000 bytes instead of \d+"),
    "longer": (lambda path: path.open("ab").write(b"1"), r"has \d+ bytes instead of \d+"),
    "deleted": (os.unlink, r"is missing or cannot be read \(No such file or directory\)"),
    "moved": (lambda path: path.parent.rename(path.parent.with_name("there")), "is missing"),
}
HARMLESS = {"touched": Path.touch, "replaced by a copy": by_itself, "permissions": lambda path: path.chmod(0o400)}


def seen(watcher, seconds=10.0):
    """Waits until the watcher has found something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        watcher.check()
        time.sleep(0.005)


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changes_under_a_run_ends_it(watched, change):
    """Training went on with zeros, and ended with exit code 0."""
    path = watched / "data-00001-of-00002.arrow"
    act, message = CHANGES[change]
    with ShardWatcher([open_dataset(watched)]) as watcher:
        watcher.check()
        act(path)
        where = path if change != "moved" else watched
        with pytest.raises(
            UserError, match=f"{where}.*: {message}.*; restore it from a copy, then run the same command again"
        ):
            seen(watcher)


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changed_at_the_end_of_a_run_is_found(watched, change, monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 60)
    path = watched / "data-00001-of-00002.arrow"
    act, message = CHANGES[change]
    with ShardWatcher([open_dataset(watched)]) as watcher:
        act(path)
        with pytest.raises(UserError, match=f"{path if change != 'moved' else watched}.*: {message}"):
            watcher.finish()


def test_a_shard_that_grows_before_it_is_compared_is_told_by_its_size(watched, monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 60)
    path = watched / "data-00001-of-00002.arrow"
    watcher = ShardWatcher([open_dataset(watched)])
    size = path.stat().st_size
    CHANGES["longer"][0](path)
    assert all(watcher._compare(path))
    with pytest.raises(UserError, match=f"{path}.*: has {size + 1} bytes instead of {size}; "):
        watcher.check()


@pytest.mark.parametrize("change", HARMLESS)
def test_a_touched_shard_does_not_end_a_run(watched, change, monkeypatch):
    path, compared = watched / "data-00001-of-00002.arrow", []
    compare = ShardWatcher._compare
    monkeypatch.setattr(ShardWatcher, "_compare", lambda self, path: compared.append(path) or compare(self, path))
    with ShardWatcher([open_dataset(watched)]) as watcher:
        deadline = time.monotonic() + 10
        while watcher._unread and time.monotonic() < deadline:  # the first comparison accepts the change as well
            time.sleep(0.005)
        HARMLESS[change](path)
        # `finish` would compare again what the thread has begun
        while (compared.count(path) < 2 or watcher._changed) and time.monotonic() < deadline:
            watcher.check()
            time.sleep(0.005)
        watcher.finish()
    assert compared.count(path) == 2, "once at the start, and once after it was touched"


def test_every_shard_is_compared_once_per_run(watched):
    """A flipped pixel is noticed by no check when the dataset is opened."""
    path = watched / "data-00001-of-00002.arrow"
    zeros(path)
    shards = open_dataset(watched)
    with ShardWatcher([shards]) as watcher, pytest.raises(UserError, match=f"{path}: differs from its sha256"):
        seen(watcher)


def test_a_missing_moment_is_not_the_end(watched):
    """Some tools delete a file before they put the new one in its place."""
    path = watched / "data-00001-of-00002.arrow"
    watcher = ShardWatcher([open_dataset(watched)])
    whole = path.read_bytes()
    path.unlink()
    watcher._look()
    path.write_bytes(whole)
    watcher.finish()


def test_hashing_takes_one_percent_of_the_cores(watched, monkeypatch):
    """The thread sleeps after each block, in proportion to the time that the block took."""
    monkeypatch.setattr(watching, "BLOCK", 4096)
    monkeypatch.setattr(watching, "cores", lambda: 2)
    monkeypatch.setattr(watching, "EVERY", 60)
    watcher, pauses = ShardWatcher([open_dataset(watched)]), []
    monkeypatch.setattr(watcher._leaving, "wait", lambda pause: pauses.append(pause) or len(pauses) == 11)
    started = time.perf_counter()
    watcher._watch()
    assert len(pauses) == 11
    assert 0 < sum(pauses) / 49 < 1.01 * (time.perf_counter() - started), "49 times as long as the work"
    assert sum(pauses) > 20 * (time.perf_counter() - started)


def test_nothing_to_watch():
    with ShardWatcher([]) as watcher:
        assert not watcher._thread.is_alive()
        watcher.check()
        watcher.finish()


def test_a_source_that_changes_under_a_merge_ends_it(tmp_path, monkeypatch):
    """The merged dataset held the zeros, with a valid checksum."""
    source, out = dataset(tmp_path / "set", "abc", impressions=5), tmp_path / "out"
    write = jobs.make_shard

    def changing(task, path):
        known = write(task, path)
        zeros(source / "data-00001-of-00003.arrow")
        return known

    monkeypatch.setattr(jobs, "make_shard", changing)
    with pytest.raises(UserError, match=r"data-00001-of-00003\.arrow: differs from its sha256; restore it from a copy"):
        merge([source], out, **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_damaged_source_is_not_merged(tmp_path):
    """A flipped pixel is noticed by no check when the dataset is opened, and the copy had a valid checksum."""
    source = dataset(tmp_path / "set", "abc", impressions=5)
    path = source / "data-00001-of-00003.arrow"
    zeros(path)
    open_dataset(source)
    with pytest.raises(UserError, match=f"^{path}: differs from its sha256; restore it from a copy, or make {source}"):
        merge([source], tmp_path / "out", **QUIET)
    assert [each.name for each in tmp_path.iterdir()] == ["set"]
