"""Work that is made shard by shard: whatever ends it, the same call goes on and ends with the same bytes."""

import contextlib
import functools
import json
import os
import shutil
import signal
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from fingerprint_accel import jobs
from fingerprint_accel import staging as stages
from fingerprint_accel.errors import UserError
from fingerprint_accel.executors import InProcess, open_workers
from fingerprint_accel.jobs import Job, run
from fingerprint_accel.outputs import FolderKind, exclusive_lock, json_with
from fingerprint_accel.staging import make_shard, state_of_files

KIND = FolderKind("a folder of numbers", json_with("sum.json", "sum"), r"sum\.json|\d+\.txt")


def write_number(number, path):
    path.write_text(str(number))
    return {"number": number}


class Numbers(Job):
    """Writes the squares of 0, 1, ... in a file each, and their sum beside them."""

    label, kind, pattern, bytes_per_print = "squaring", KIND, "{}.txt", 100

    def __init__(self, count=4, seed=0, source=None):
        self.arguments = {"count": count, "seed": seed}
        self.sizes = [10] * count
        self.source = source
        self.tasks = []

    def task(self, shard):
        self.tasks.append(shard)
        return functools.partial(write_number, shard**2 + self.arguments["seed"])

    def is_current(self, shard, facts):
        return self.source is None or self.source.exists()

    def publish(self, folder, facts):
        (folder / "sum.json").write_text(json.dumps({"sum": sum(known["number"] for known in facts)}))


def make(out, job=None, executor=None, **options):
    return run(job or Numbers(), out, executor or InProcess(), progress=False, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path):
    make(tmp_path / "whole")
    return files(tmp_path / "whole")


@pytest.fixture
def out(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "out"


def staging(out):
    (found,) = out.parent.glob(".out.*.partial")
    return found


def test_a_folder_is_made(out, whole):
    assert make(out) == 40
    assert (
        files(out) == whole == {"0.txt": b"0", "1.txt": b"1", "2.txt": b"4", "3.txt": b"9", "sum.json": b'{"sum": 14}'}
    )
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with pytest.raises(UserError, match="out: exists already; choose another folder, or add --overwrite"):
        make(out)
    make(out, Numbers(count=2), overwrite=True)
    assert set(files(out)) == {"0.txt", "1.txt", "sum.json"}


def test_processes_make_the_same(out, whole):
    with open_workers(2) as team:
        assert make(out, executor=team.executor) == 40
    assert files(out) == whole


def killed_at(marks, number, path):
    """Write a number, but kill the process the first time for each mark that does not exist yet."""
    for mark in marks:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return write_number(number, path)


class Fragile(Numbers):
    """Numbers whose worker for shard 2 dies as often as there are marks."""

    def __init__(self, marks):
        super().__init__()
        self.marks, self.lost = marks, []

    def task(self, shard):
        return functools.partial(killed_at, self.marks if shard == 2 else [], shard**2)

    def find_fault(self, shard, draft):
        assert draft.exists()
        self.lost.append(shard)


def test_shards_whose_worker_died_are_made_again(out, whole, tmp_path):
    job = Fragile([tmp_path / "1", tmp_path / "2"])
    with open_workers(2) as team:
        assert make(out, job, team.executor) == 40
    assert files(out) == whole
    assert job.lost.count(2) == 2


def test_a_shard_whose_workers_die_again_and_again_ends_the_command(out, tmp_path):
    job = Fragile([tmp_path / str(number) for number in range(9)])
    with pytest.raises(UserError, match="a worker process was killed"), open_workers(2) as team:
        make(out, job, team.executor)
    assert job.lost.count(2) == jobs.MOST_DEATHS


class Broken(Executor):
    """Executor whose process dies as often as stated, each time before it begins a shard."""

    def __init__(self, times):
        self.times = times

    def submit(self, function, *arguments):
        future = Future()
        if self.times:
            self.times -= 1
            future.set_exception(BrokenExecutor())
        else:
            future.set_result(function(*arguments))
        return future


def test_workers_may_die_between_two_shards(out, whole):
    assert make(out, executor=Broken(jobs.MOST_DEATHS)) == 40
    assert files(out) == whole


def test_workers_that_die_without_a_shard_again_and_again_end_the_command(out):
    with pytest.raises(UserError, match="a worker process was killed"):
        make(out, executor=Broken(jobs.MOST_DEATHS + 1))


def deadly(function, at):
    """`function`, interrupted in its call number `at`, from 0."""
    calls = []

    def wrapped(*arguments, **named):
        calls.append(arguments)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return wrapped


# (what is interrupted, calls before each shard, calls after the last shard)
MOMENTS = {
    "a task": (jobs, "make_shard", 1),
    "the hash": (stages, "file_sha256", 1),
    "a sync": (stages, "fsync_path", 1),
    "a rename": (Path, "replace", 2),
}


@pytest.mark.parametrize("shard", range(4))
@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_at_every_shard(out, whole, moment, shard, monkeypatch):
    owner, name, per_shard = MOMENTS[moment]
    for step in range(per_shard):
        with monkeypatch.context() as patch:
            # the first renaming is that of the arguments
            first = 1 if moment == "a rename" else 0
            patch.setattr(owner, name, deadly(getattr(owner, name), first + per_shard * shard + step))
            with pytest.raises(KeyboardInterrupt) as caught:
                make(out)
        kept = f"{shard} of 4 shards are finished; run the same command again to continue"
        assert str(caught.value) == (kept if shard else "nothing was saved yet: no shard is finished")
        assert not out.exists()
        finished = sorted(path.name for path in (staging(out) / "records").glob("*.txt.json"))
        assert finished == [f"{number}.txt.json" for number in range(shard)]
        kept = {name: (staging(out) / name).stat().st_ino for name in (f"{number}.txt" for number in range(shard))}
        job = Numbers()
        assert make(out, job) == 10 * (4 - shard)
        assert job.tasks == list(range(shard, 4)), "a finished shard is not made again"
        assert files(out) == whole
        assert all((out / name).stat().st_ino == inode for name, inode in kept.items())
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        shutil.rmtree(out)


@pytest.mark.parametrize("moment", ["publish", "put_in_place", "rmtree"])
def test_interrupted_at_the_end(out, whole, moment, monkeypatch):
    owner = {"publish": Numbers, "put_in_place": jobs, "rmtree": shutil}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, deadly(getattr(owner, moment), {"rmtree": 2}.get(moment, 0)))
        with pytest.raises(KeyboardInterrupt):
            make(out)
    assert out.exists() == (moment == "rmtree")
    assert make(out) == 0
    assert files(out) == whole
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_interrupted_replacement_keeps_what_was_there(out, monkeypatch):
    make(out)
    before = files(out)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "make_shard", deadly(jobs.make_shard, 2))
        with pytest.raises(KeyboardInterrupt):
            make(out, Numbers(seed=1), overwrite=True)
    assert files(out) == before
    assert make(out, Numbers(seed=1), overwrite=True) == 20
    assert files(out)["sum.json"] == b'{"sum": 18}'


def interrupted(out, monkeypatch, job=None):
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "make_shard", deadly(jobs.make_shard, 2))
        with pytest.raises(KeyboardInterrupt):
            make(out, job)


def test_shards_of_another_command(out, monkeypatch):
    interrupted(out, monkeypatch)
    left = staging(out)
    with pytest.raises(
        UserError, match=r"partial: holds unfinished shards of another command \(seed 0 there, 1 here\); stop"
    ):
        make(out, Numbers(seed=1))
    assert left.exists()
    make(out, Numbers(seed=1), overwrite=True)
    assert not left.exists()
    assert files(out)["1.txt"] == b"2"


def test_inputs_that_changed_are_read_again(out, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.touch()
    interrupted(out, monkeypatch, Numbers(source=source))
    source.unlink()
    job = Numbers(source=source)
    assert make(out, job) == 40
    assert job.tasks == [0, 1, 2, 3]


def test_a_damaged_record_or_a_lost_shard_is_made_again(out, whole, monkeypatch):
    interrupted(out, monkeypatch)
    (staging(out) / "records" / "0.txt.json").write_text("{")
    (staging(out) / "1.txt").unlink()
    assert make(out) == 40
    assert files(out) == whole


def refused(path):
    raise UserError("0.png: refused")


def test_a_mistake_leaves_nothing_where_nothing_was_made(out, monkeypatch):
    monkeypatch.setattr(Numbers, "task", lambda job, shard: refused)
    with pytest.raises(UserError, match=r"0\.png: refused"):
        make(out)
    assert not list(out.parent.iterdir())


def test_a_full_disk_is_said_before(out, monkeypatch):
    free = SimpleNamespace(free=3999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"0\.0 GB needed, but only 0\.0 GB are free; free some space"):
        make(out)
    assert not list(out.parent.iterdir())
    free.free = 4000
    make(out)


def test_two_commands_at_once(out):
    lock = out.with_name(".out.lock")
    with (
        exclusive_lock(lock, "busy"),
        pytest.raises(UserError, match="out: another command is writing to it; wait until it ends"),
    ):
        make(out)
    lock.touch()  # of a command that was killed
    make(out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_machine_that_does_not_see_the_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: not found on .*; choose an OUT on a disk that all machines share"):
        make_shard(refused, tmp_path / "nowhere" / "0.txt")


def test_workers_in_another_folder_find_a_relative_out(out, whole, tmp_path, monkeypatch):
    class Elsewhere(InProcess):
        def submit(self, fn, /, *args, **kwargs):
            with contextlib.chdir(tmp_path):
                return super().submit(fn, *args, **kwargs)

    monkeypatch.chdir(out.parent)
    make(Path("out"), executor=Elsewhere())
    assert files(out) == whole


def test_a_bounded_number_is_in_flight(out, monkeypatch):
    monkeypatch.setattr(jobs, "IN_FLIGHT", 2)
    with open_workers(2) as team:
        make(out, Numbers(count=9), team.executor)
    assert files(out)["sum.json"] == b'{"sum": 204}'


def test_drafts_of_lost_workers_are_not_published(out, whole, monkeypatch):
    """A cluster gives the work of a worker that was killed to another."""

    def leaves_a_draft(task, path):
        (path.parent / f".elsewhere-7-{path.name}.tmp").write_bytes(b"cut off")
        return make_shard(task, path)

    monkeypatch.setattr(jobs, "make_shard", leaves_a_draft)
    make(out)
    assert files(out) == whole


def test_names_with_signs_of_patterns(tmp_path, monkeypatch):
    """Only what was left by a command with this OUT counts."""
    out = tmp_path / "a[b]*"
    interrupted(tmp_path / "abx", monkeypatch)
    make(out, Numbers(seed=1))
    assert len(list(tmp_path.glob(".abx.*.partial"))) == 1


def test_state_of_files(tmp_path):
    path = tmp_path / "a"
    before = state_of_files([path])
    path.write_text("1")
    os.utime(path, ns=(5, 5))
    after = state_of_files([path])
    os.utime(path, ns=(6, 6))
    assert len({before, after, state_of_files([path])}) == 3


def test_drafts_that_appear_while_the_folder_is_published_are_deleted(out, whole, monkeypatch):
    """A worker that lost the scheduler still writes. The next command refused the folder because of its draft."""
    place = jobs.put_in_place

    def disturbed(staging, *rest):
        (staging / ".machine-1-1-2.txt.tmp").write_text("half")
        place(staging, *rest)

    monkeypatch.setattr(jobs, "put_in_place", disturbed)
    make(out)
    assert files(out) == whole
