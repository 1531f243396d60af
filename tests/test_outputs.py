"""What a command may replace: only what the same kind of command has written, and never what it reads."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image
from shard_writer import ShardWriter

from fingerprint_accel import outputs
from fingerprint_accel.cli import main
from fingerprint_accel.cli.data import inspect
from fingerprint_accel.cli.extraction import compare, minutiae
from fingerprint_accel.cli.gallery import enroll
from fingerprint_accel.cli.models import export
from fingerprint_accel.compat.flx_weights import convert
from fingerprint_accel.config import Config
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shard_writing import DATASET
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.evaluation.calibration import calibrate_command
from fingerprint_accel.evaluation.run import evaluate_command
from fingerprint_accel.extraction.bulk import extract_all
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.outputs import check_file, check_folder, exclusive_lock, mark, put_in_place, recover
from fingerprint_accel.recipe import run_training
from fingerprint_accel.synthesis.writing import write_synthetic_dataset
from tests.data.small_datasets import QUIET, dataset, ridges

ROOT = Path(__file__).resolve().parent.parent


def tree(folder):
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def scans(tmp_path):
    """Two fingers with two impressions each, and notes of the user beside them."""
    folder = tmp_path / "own" / "scans"
    folder.mkdir(parents=True)
    for finger in (1, 2):
        for impression in (1, 2):
            Image.fromarray(ridges(finger + impression)).save(folder / f"{finger}_{impression}.png")
    (folder / "notes.txt").write_text("mine")
    return folder


FOLDERS = {
    "import": lambda scans, prints, out: import_dataset(scans, out, "fvc", 500, overwrite=True, **QUIET),
    "merge": lambda scans, prints, out: merge([prints], out, overwrite=True, **QUIET),
    "synth": lambda scans, prints, out: write_synthetic_dataset(out, 1, 1, overwrite=True, **QUIET),
    "extract": lambda scans, prints, out: extract_all(scans, out, "small", 500, overwrite=True, progress=False),
    "enroll": lambda scans, prints, out: enroll(out, [scans / "1_1.png"], "small", 500, 1),
    "save_pretrained": lambda scans, prints, out: FingerprintExtractor.from_pretrained("small").save_pretrained(out),
    "convert-flx": lambda scans, prints, out: convert(scans / "notes.txt", out),
    "calibrate": lambda scans, prints, out: calibrate_command("small", prints, out),
    "evaluate": lambda scans, prints, out: evaluate_command("small", prints, "fvc", out, 8),
    "minutiae": lambda scans, prints, out: minutiae([scans / "1_1.png"], "small", out, "xyt", 500, 0.2),
    "recipe": lambda scans, prints, out: run_training(Config(data=str(prints), out=str(out))),
}


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("command", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_of_documents_is_not_replaced(command, scans, prints, tmp_path):
    """Names are those that commands write, so that a name alone does not make a folder one's own."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("thesis.txt", "metrics.json", "1_1.xyt", "config.yaml", "config.json", "fingerprint.json"):
        (documents / name).write_text('{"title": "thesis"}')
    before = tree(tmp_path)
    with pytest.raises(UserError, match="documents: exists already") as caught:
        command(scans, prints, documents)
    assert len(str(caught.value).splitlines()) == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ["import", "extract"])
@pytest.mark.parametrize(("out", "words"), [(".", "lies in"), ("..", "contains"), ("inside", "lies in")])
def test_what_is_read_is_not_replaced(command, out, words, scans, prints, tmp_path):
    before = tree(tmp_path)
    with pytest.raises(UserError, match=f"{words} the source"):
        FOLDERS[command](scans, prints, scans.parent if out == ".." else scans / out)
    assert tree(tmp_path) == before


def test_the_command_line_ends_with_exit_code_2(scans, tmp_path, monkeypatch, capsys):
    before = tree(tmp_path)
    words = ["import", str(scans), "--out", str(scans), "--layout", "fvc", "--ppi", "500", "--overwrite"]
    monkeypatch.setattr(sys, "argv", ["fingerprint-accel", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert (
        capsys.readouterr().err == f"error: {scans}: lies in the source {scans}; choose a folder outside the source\n"
    )
    assert tree(tmp_path) == before


def test_a_source_by_another_name_is_seen(scans, tmp_path):
    (tmp_path / "link").symlink_to(scans.parent)
    with pytest.raises(UserError, match="contains the source"):
        import_dataset(scans, tmp_path / "link", "fvc", 500, overwrite=True, **QUIET)
    with pytest.raises(UserError, match="is a link"):
        (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
        import_dataset(scans, tmp_path / "nowhere", "fvc", 500, overwrite=True, **QUIET)
    assert (scans / "notes.txt").read_text() == "mine"


def test_a_dataset_with_files_of_the_user_is_not_replaced(scans, tmp_path):
    out = dataset(tmp_path / "set", ["a", "b"])
    (out / "labels.csv").write_text("mine")
    with pytest.raises(UserError, match=r"set: contains labels.csv, which is not part of a dataset folder"):
        FOLDERS["import"](scans, None, out)
    assert (out / "labels.csv").read_text() == "mine"
    (out / "labels.csv").unlink()
    (out / "cache-0123456789abcdef.arrow").write_bytes(b"")  # as `datasets` leaves them
    FOLDERS["import"](scans, None, out)
    assert open_dataset(out).info.prints == 4
    assert not (out / "cache-0123456789abcdef.arrow").exists()


def test_what_came_while_the_command_ran_is_not_deleted(tmp_path):
    out = dataset(tmp_path / "set", ["a", "b"])
    writer = ShardWriter(out, 300, 64, overwrite=True)
    (out / "labels.csv").write_text("mine")
    staged = tmp_path / "staged"
    shutil.copytree(out, staged)
    with pytest.raises(UserError, match=r"contains labels.csv"):
        put_in_place(staged, out, DATASET)
    writer.__exit__(KeyboardInterrupt, None, None)
    assert (out / "labels.csv").read_text() == "mine"


def test_empty_folders_are_taken(scans, tmp_path):
    (tmp_path / "empty").mkdir()
    import_dataset(scans, tmp_path / "empty", "fvc", 500, **QUIET)
    assert open_dataset(tmp_path / "empty").info.prints == 4


NAMES = {
    ".": "is or contains the current folder",
    "..": "is or contains the current folder",
    "x" * 250: "the name has 250 bytes, which is too long; use at most 237 bytes",
    "x" * 5000: "the name has 5000 bytes, which is too long",
    "file": "is a file; give the name of a new folder",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:5])
def test_names_that_cannot_be(name, scans, tmp_path, monkeypatch):
    work = tmp_path / "work" / "here"
    work.mkdir(parents=True)
    (work / "file").write_text("mine")
    monkeypatch.chdir(work)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=NAMES[name]):
            import_dataset(scans, Path(name), "fvc", 500, overwrite=overwrite, **QUIET)
    assert tree(work) == {"file": b"mine"}


def test_a_name_in_a_file_is_one_line(scans, tmp_path, capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        import_dataset(scans, scans / "1_1.png" / "out", "fvc", 500, **QUIET)
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_files_of_the_user_are_not_replaced(scans, prints, tmp_path):
    mine = scans / "1_1.png"
    before = tree(tmp_path)
    with pytest.raises(UserError, match="is also an input of this command"):
        compare(mine, scans / "2_1.png", "small", 500, False, mine)
    with pytest.raises(UserError, match=r"2_2.png: exists already and was not written by this command"):
        compare(mine, mine, "small", 500, False, scans / "2_2.png")
    with pytest.raises(UserError, match="exists already and was not written by this command"):
        inspect(prints, out=mine)
    for wanted in ({"onnx": scans / "notes.txt"}, {"int8": mine}, {"torch_file": mine}):
        with pytest.raises(UserError, match="exists already and was not written by this command"):
            export("small", **wanted)
    assert tree(tmp_path) == before


def test_own_files_are_replaced(prints, tmp_path):
    for fingers in (1, 2):
        inspect(prints, out=tmp_path / "sheet.png", fingers=fingers)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 2 * (320 + 18)
    with pytest.raises(UserError, match="not written by this command"):
        check_file(tmp_path / "sheet.png", "exported model")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        inspect(prints, out=tmp_path / "folder.png")


def test_results_of_a_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/heads.py"])
    written = runpy.run_path(str(ROOT / "benchmarks" / "results_file.py"))
    out = tmp_path / "results" / "heads.json"
    for value in (1, 2):
        written["check_results"](out)
        written["write_results"](out, {"value": value})
    assert json.loads(out.read_text()) == {"written_by": mark("benchmark heads"), "value": 2}
    out.write_text("{}")
    with pytest.raises(UserError, match="exists already and was not written by this command"):
        written["check_results"](out)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_looks_before_it_measures(name, tmp_path):
    """Each that has --out ends in one line where a file of the user is in its place."""
    text = (ROOT / "benchmarks" / name).read_text()
    if "out: Path | None" not in text or "def main(" not in text:
        return
    assert re.search(r"check_results\((out|file)\)", text) and ".write_text(json" not in text


def test_committed_results_may_be_replaced():
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        check_file(path, json.loads(path.read_text())["written_by"].removeprefix("fingerprint_accel "))


def test_a_model_folder_is_replaced_but_not_what_lies_in_it(tmp_path):
    extractor = FingerprintExtractor.from_pretrained("small")
    extractor.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model", {"note": "second"})
    assert json.loads((tmp_path / "model" / "config.json").read_text())["notes"] == {"note": "second"}
    (tmp_path / "model" / "small.onnx").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"contains small.onnx, which is not part of a model folder"):
        extractor.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "small.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("streams", ["", "2>&1"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["inspect PRINTS --out OUT/a.png", "--help", "import --help"])
def test_a_closed_pipe_is_no_error(words, unbuffered, streams, prints, tmp_path):
    """`inspect DATASET | head -1`: the reader ends before or while the output is written."""
    words = words.replace("PRINTS", str(prints)).replace("OUT", str(tmp_path))
    command = f"{sys.executable} -m fingerprint_accel.cli {words} {streams} | head -n 0"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (141, "")


def test_an_error_is_shown_although_the_pipe_is_closed():
    command = f"set -o pipefail; {sys.executable} -m fingerprint_accel.cli inspect nowhere | head -n 0"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: nowhere: not a dataset folder")


def test_a_lock_is_released_by_whoever_ends(tmp_path):
    lock = tmp_path / "lock"
    with exclusive_lock(lock, "held"), pytest.raises(UserError, match="held"), exclusive_lock(lock, "held"):
        raise AssertionError("two hold it")
    assert not lock.exists()
    held, order = threading.Event(), []

    def first():
        with exclusive_lock(lock, "held"):
            held.set()
            threading.Event().wait(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with exclusive_lock(lock, "held", patience=10):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    code = (
        "import os, sys; from pathlib import Path; from fingerprint_accel.outputs import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1]), 'held'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(lock)]).returncode == -9
    with exclusive_lock(lock, "held"):
        pass


def whole_folders(parent):
    return sorted(each.name for each in parent.iterdir() if (each / "fingerprint.json").exists())


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path, monkeypatch, exchanges):
    """Killed between two renames, the command left no folder at OUT. Now it exchanges both where the disk can do it."""
    old = dataset(tmp_path / "set", ["a"])
    new = dataset(tmp_path / "new", ["b", "c"])
    renamed = []

    def rename(path, target, original=Path.rename):
        renamed.append((whole_folders(tmp_path), old.exists() and open_dataset(old).key_of_finger))
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    if not exchanges:
        monkeypatch.setattr(outputs, "_exchange", lambda *_: False)
    put_in_place(new, old, DATASET)
    monkeypatch.undo()
    if exchanges:
        assert renamed == [(["new", "set"], ["b", "c"])]
    else:
        assert renamed == [(["new", "set"], ["a"]), ([".set.old.tmp", "new"], False)]
    assert open_dataset(old).key_of_finger == ["b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    check_folder(old, DATASET)


def test_a_replacement_that_was_interrupted_is_undone(tmp_path, monkeypatch):
    """On NFS, a kill between the two renames leaves no folder: readers say so, and the next command brings it back."""
    old = dataset(tmp_path / "set", ["a"])
    new = dataset(tmp_path / "new", ["b", "c"])

    def rename(path, target, original=Path.rename):
        original(path, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "_exchange", lambda *_: False)
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(new, old, DATASET)
    assert whole_folders(tmp_path) == [".set.old.tmp", "new"]
    with pytest.raises(UserError, match=rf"run it again, or rename {tmp_path}/\.set\.old\.tmp to {old}"):
        open_dataset(old)
    recover(old)
    assert open_dataset(old).key_of_finger == ["a"]
    put_in_place(new, old, DATASET)
    assert open_dataset(old).key_of_finger == ["b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
