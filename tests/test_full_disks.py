"""A disk that is full, read-only or gone ends a command in one line. What is finished is kept, and nothing else."""

import contextlib
import ctypes
import errno
import os
import resource
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fingerprint_accel import jobs
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.bulk import Options, extract_all
from fingerprint_accel.extraction.verifying import verify
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.writing import write_synthetic_dataset
from tests.data.small_datasets import QUIET, dataset, files, ridges


@pytest.fixture
def limit():
    """Files may only get so many bytes, as with `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for finger in range(3):
        for impression in range(2):
            Image.fromarray(ridges(finger)).save(folder / f"{finger}_{impression}.png", dpi=(500, 500))
    return folder


@pytest.fixture
def commands(scans, tmp_path):
    source = dataset(tmp_path / "source", ["a", "b", "c"], impressions=5)
    return {
        "import": lambda out: import_dataset(scans, out, "flx", **QUIET),
        "merge": lambda out: merge([source], out, MergeOptions(rows_per_shard=7), **QUIET),
        "synth": lambda out: write_synthetic_dataset(out, 2, 2, style=Style(canvas=128), **QUIET),
        "extract": lambda out: extract_all(scans, out, "small", options=Options("binary"), progress=False),
    }


@pytest.mark.parametrize(
    ("verb", "size"),
    [("import", 100), ("import", 4000), ("merge", 100), ("merge", 4000), ("synth", 4000), ("extract", 500)],
)
def test_a_full_disk_is_one_line_and_the_command_goes_on(commands, verb, size, tmp_path, limit):
    out = tmp_path / "here" / "out"
    command = commands[verb]
    with (
        limit(size),
        pytest.raises(UserError, match=r"cannot be written \(File too large\); .*run the same command again"),
    ):
        command(out)
    assert not out.exists()
    command(out)
    verify(out, progress=False)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def fail_at(patch, at, number):
    """Lets one sync or renaming fail, in the order in which they are called."""
    calls = []

    def failing(original):
        def wrapped(*arguments, **named):
            calls.append(arguments)
            if len(calls) == at + 1:
                raise OSError(number, os.strerror(number))
            return original(*arguments, **named)

        return wrapped

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename")):
        patch.setattr(owner, name, failing(getattr(owner, name)))


def test_every_failing_write_of_a_merge_is_one_line(tmp_path, monkeypatch):
    """Each sync and each rename fails once: the message names a file, and the same command ends with the same bytes."""
    source = dataset(tmp_path / "source", ["a", "b", "c"], impressions=5)
    make = lambda out: merge([source], out, MergeOptions(rows_per_shard=7), **QUIET)  # noqa: E731
    make(tmp_path / "whole")
    whole = files(tmp_path / "whole")
    for at in range(100):
        out = tmp_path / f"try{at}" / "out"
        with monkeypatch.context() as patch:
            fail_at(patch, at, errno.ENOSPC)
            try:
                make(out)
            except UserError as error:
                assert str(tmp_path) in str(error)
                assert os.strerror(errno.ENOSPC) in str(error)
                assert "run the same command again" in str(error)
            else:
                break
        if out.exists():  # only its name was not flushed
            verify(out, progress=False)
        make(out)
        assert files(out) == whole
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert 15 < at < 99


def test_finished_shards_are_kept(tmp_path, monkeypatch):
    source = dataset(tmp_path / "source", ["a", "b", "c"], impressions=5)
    write, out = jobs.make_shard, tmp_path / "out"

    def full(task, path):
        if "00002" in path.name[:10]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(task, path)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "make_shard", full)
        with pytest.raises(UserError) as caught:
            merge([source], out, MergeOptions(rows_per_shard=7), **QUIET)
    assert str(caught.value).endswith(
        "data-00002-of-00003.arrow: cannot be written (No space left on device); free some space; 2 of 3 shards are "
        "finished; run the same command again to continue"
    )
    made = []
    monkeypatch.setattr(jobs, "make_shard", lambda task, path: made.append(path.name) or write(task, path))
    merge([source], out, MergeOptions(rows_per_shard=7), **QUIET)
    assert made == ["data-00002-of-00003.arrow"]


@pytest.mark.parametrize("what", ["parent", "staging folder"])
def test_a_folder_that_is_deleted_meanwhile(tmp_path, what, monkeypatch):
    source = dataset(tmp_path / "source", ["a", "b", "c"], impressions=5)
    out = tmp_path / "here" / "out"
    write = jobs.make_shard

    def gone(task, path):
        if path.name.startswith("data-00001"):
            shutil.rmtree(path.parents[1] if what == "parent" else path.parent)
        return write(task, path)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "make_shard", gone)
        with pytest.raises(UserError, match=rf"{tmp_path}/here/.*partial: not found"):
            merge([source], out, MergeOptions(rows_per_shard=7), **QUIET)
    merge([source], out, MergeOptions(rows_per_shard=7), **QUIET)
    assert len(open_dataset(out)) == 15


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 KB, if this process may mount one."""
    disk, libc = tmp_path / "disk", ctypes.CDLL(None, use_errno=True)
    disk.mkdir()
    if libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 0, b"size=204800") != 0:
        pytest.skip("this process may not mount a file system")
    yield disk
    libc.umount2(str(disk).encode(), 2)


@pytest.mark.parametrize("verb", ["import", "merge", "extract"])
def test_a_small_disk(commands, verb, small_disk, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1e12, 0, 1e12))
    ballast, out = small_disk / "ballast", small_disk / "out"
    ballast.write_bytes(bytes(190_000))
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\); free some space; .*run the same"
    ):
        commands[verb](out)
    assert not out.exists()
    ballast.unlink()
    if verb == "import":  # its prints are larger than the disk
        return
    commands[verb](out)
    verify(out, progress=False)


@pytest.mark.parametrize("verb", ["import", "merge", "synth", "extract"])
def test_what_is_done_is_on_the_disk(commands, verb, tmp_path, monkeypatch):
    """When OUT gets its name, all its files and its list of files are flushed; then the names of new parents are."""
    out = tmp_path / "new" / "deeper" / "out"
    flushed, named = {}, []
    fsync, rename = os.fsync, Path.rename

    def recorded(descriptor):
        fsync(descriptor)
        state = os.fstat(descriptor)
        flushed[state.st_ino] = state.st_mtime_ns

    def renamed(path, target):
        if Path(target) == out:
            for each in [path, *path.iterdir()]:
                state = each.stat()
                assert flushed.get(state.st_ino) == state.st_mtime_ns or each.name == "records", each
            named.append(path)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Path, "rename", renamed)
    commands[verb](out)
    assert len(named) == 1
    for folder in (tmp_path, tmp_path / "new"):
        state = folder.stat()
        assert flushed[state.st_ino] == state.st_mtime_ns, folder
    assert flushed[out.parent.stat().st_ino], "the lock is deleted after it was flushed"
