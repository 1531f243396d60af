"""Processes of a launch, here threads of one: they share the work out, and how one of them ends concerns the others."""

import threading
from datetime import timedelta

import numpy as np
import pytest
from PIL import Image
from torch.distributed import TCPStore

from fingerprint_accel.data import importing, launch, pack_work
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.launch import ALONE, Launch
from fingerprint_accel.data.pack_options import PackOptions
from fingerprint_accel.data.packing import pack
from fingerprint_accel.errors import LostProcessError, UserError
from fingerprint_accel.synthesis import writing
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.writing import write_synthetic_dataset
from tests.data.small_datasets import QUIET, dataset, files, ridges


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Looks that cost nothing here come more often."""
    for name in ("CHECK", "LOOK_AGAIN", "BEAT"):
        monkeypatch.setattr(launch, name, 0.02)


def together(size, work, **options):
    """What `work(launch)` returns, or raises, in each of `size` processes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    found = {}

    def process(rank):
        try:
            with Launch(rank, size, rank, size, store, **options).taking_part() as mine:
                found[rank] = work(mine)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[rank] for rank in range(size)]


@pytest.fixture
def scans(tmp_path):
    """Four parts of files, one of which is none, and a name that fits no layout."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(1, 60):
        Image.fromarray(ridges(number, side=120)).save(folder / f"{number}_1.png", compress_level=1)
    (folder / "7_1.png").write_bytes(b"nothing")
    (folder / "8_1.xyt").write_text("broken")
    (folder / "holiday.png").write_bytes(b"nothing")
    return folder


def importer(tmp_path, monkeypatch):
    source = tmp_path / "scans"
    return lambda out, launch: import_dataset(source, out, "fvc", 500, canvas=96, launch=launch, **QUIET)


def packer(tmp_path, monkeypatch):
    """Of a dataset, and of a folder of images that is imported first."""
    dataset(tmp_path / "one", [f"finger {n}" for n in range(10)])
    sources, options = [tmp_path / "one", tmp_path / "scans"], PackOptions(rows_per_shard=20, encoding="lz4")
    return lambda out, launch: pack(sources, out, options, launch=launch, **QUIET)


def maker(tmp_path, monkeypatch):
    style = Style(canvas=96, ppi=150)
    return lambda out, launch: write_synthetic_dataset(
        out, 4, 1, seed=5, style=style, device="cpu", launch=launch, **QUIET
    )


@pytest.mark.parametrize(
    ("command", "owner", "name", "parts"),
    [
        (importer, importing, "make_part", 4),
        (packer, pack_work.Work, "write_shard", 4),
        (maker, writing, "make_part", 4),
    ],
)
def test_three_processes_go_on_from_what_one_has_left(scans, tmp_path, monkeypatch, command, owner, name, parts):
    """Only what is missing is made, each part once, and the bytes are those of one process."""
    run, original, made = command(tmp_path, monkeypatch), getattr(owner, name), []
    run(tmp_path / "whole", ALONE)

    def interrupted(*arguments):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(number_of(arguments))
        return original(*arguments)

    def counted(*arguments):
        made.append(number_of(arguments))
        return original(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", ALONE)
    monkeypatch.setattr(owner, name, counted)
    summaries = together(3, lambda launch: run(tmp_path / "out", launch))
    assert sorted(made) == list(range(parts))
    assert summaries[0].info == importing.open_dataset(tmp_path / "whole").info
    assert summaries[1:] == [None, None]
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def number_of(arguments):
    first = arguments[0]
    return first.part if hasattr(first, "part") else first[1] if isinstance(first, tuple) else arguments[1]


def test_a_file_that_has_changed_is_imported_anew(scans, tmp_path, monkeypatch):
    run = importer(tmp_path, monkeypatch)
    monkeypatch.setattr(importing, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", ALONE)
    monkeypatch.undo()
    Image.fromarray(ridges(7, side=120)).save(scans / "7_1.png")
    made, make_part = [], importing.make_part
    monkeypatch.setattr(importing, "make_part", lambda task: made.append(task.part) or make_part(task))
    assert run(tmp_path / "out", ALONE).info.prints == 59
    assert len(made) == 1


def test_an_import_cut_off_between_joining_and_deleting(scans, tmp_path, monkeypatch):
    run = importer(tmp_path, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(importing.PartFolder, "remove", lambda parts: None)
        first = run(tmp_path / "out", ALONE)
    before = (tmp_path / "out" / "fingerprint.json").stat().st_ino
    again = run(tmp_path / "out", ALONE)
    assert (again.info, again.rejected, again.impressions_per_finger) == (
        first.info, first.rejected, first.impressions_per_finger,
    )  # fmt: skip
    assert (tmp_path / "out" / "fingerprint.json").stat().st_ino == before
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match="exists already"):
        run(tmp_path / "out", ALONE)


@pytest.mark.parametrize("culprit", [0, 1])
def test_one_line_of_one_process(tmp_path, culprit):
    """A mistake that all make, or one of them alone, is told once, and ends all with exit code 2."""
    (tmp_path / "out").mkdir()
    all_of_them = together(3, lambda launch: import_dataset(tmp_path / "gone", tmp_path / "out", "fvc", launch=launch))

    def work(launch):
        if launch.rank == culprit:
            raise UserError("no such folder")
        launch.wait(lambda: False)

    for found in (all_of_them, together(3, work)):
        assert sorted(type(error).__name__ for error in found) == ["SystemExit", "SystemExit", "UserError"]
        assert {error.code for error in found if isinstance(error, SystemExit)} == {2}


def test_a_bug_or_a_lost_process_ends_the_others(tmp_path):
    def work(launch):
        if launch.rank == 1:
            raise ZeroDivisionError("a bug")
        launch.wait(lambda: False)

    main, culprit, other = together(3, work)
    assert isinstance(culprit, ZeroDivisionError)
    for found in (main, other):
        assert isinstance(found, LostProcessError)
        assert "process 1 of 3 has failed (ZeroDivisionError: a bug); the same command goes on" in str(found)

    def silent(launch):
        if launch.rank == 1:
            launch._leaving.set()
            return threading.Event().wait(2)
        return launch.wait(lambda: False)

    main, _, other = together(3, silent, silence=0.5)
    assert "process 1 of 3 gives no sign of life" in str(main)
    assert isinstance(other, LostProcessError)


def test_a_folder_that_is_not_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "UNSEEN", 0.1)
    for stored, message in ((None, "must lie on a disk that all machines share"), ({"seed": 1}, "seed 1 not 0")):
        _, error = together(2, lambda mine, there=stored: mine.see(lambda: there, {"seed": 0}, tmp_path))
        assert message in str(error)
    main, _ = together(2, lambda mine: mine.main and mine.wait_for_all(lambda: [1], tmp_path, lambda: None))
    assert "parts that were made do not appear there" in str(main)


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    from fingerprint_accel.data import part_folder

    monkeypatch.setattr(part_folder, "cores", lambda: 8)
    assert part_folder.workers_here(0, Launch(local_size=3), tasks=100) == 2
    assert part_folder.workers_here(0, Launch(local_size=16), tasks=100) == 1
    assert part_folder.workers_here(5, Launch(local_size=3), tasks=100) == 5
    assert part_folder.workers_here(5, Launch(local_size=3), tasks=0) == 1
    assert np.array_equal(sorted([*Launch(0, 2).share(range(5)), *Launch(1, 2).share(range(5))]), range(5))
