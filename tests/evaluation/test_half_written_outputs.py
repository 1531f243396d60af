"""What `evaluate`, `calibrate` and `export` write is complete or absent, after a full disk and after a kill."""

import errno
import hashlib
import json
import os
import resource

import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.errors import UserError, write_errors
from fingerprint_accel.evaluation import writing
from fingerprint_accel.evaluation.writing import write_evaluation
from fingerprint_accel.extraction import export
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.models import saved_model
from fingerprint_accel.models.saved_model import write_model, write_notes

VALUES = {"protocol": "fvc", "eer": 0.1, "definitions": {}, "rates": [float("nan"), (1.0, float("inf"))]}
FILES = {"det.png": b"picture", "report.html": b"page"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def digests(folder):
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents(folder).items() if name != "metrics.json"}


@pytest.fixture(params=["new", "again"])
def out(request, tmp_path):
    """A folder that does not exist, or one with an evaluation."""
    folder = tmp_path / "inner" / "out"
    folder.parent.mkdir()
    if request.param == "again":
        write_evaluation(folder, {**FILES, "training.png": b"old"}, {**VALUES, "eer": 0.2}, overwrite=False)
        (folder / "notes.txt").write_text("mine")
    return folder


def test_an_evaluation_states_the_checksums_of_its_files(out):
    write_evaluation(out, FILES, VALUES, overwrite=True)
    values = json.loads((out / "metrics.json").read_text())
    assert values["rates"] == [None, [1.0, None]]
    assert values["eer"] == 0.1
    found = digests(out)
    found.pop("notes.txt", None)
    assert values["sha256"] == found
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def full_after(monkeypatch, module, name, count, number=errno.ENOSPC):
    """The disk is full after `count` calls of a function."""
    original, calls = getattr(module, name), []

    def written(*arguments):
        calls.append(arguments)
        if len(calls) > count:
            raise OSError(number, os.strerror(number), str(arguments[0]))
        return original(*arguments)

    monkeypatch.setattr(module, name, written)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_full_disk_leaves_the_evaluation_that_was_there(count, out, monkeypatch):
    before = contents(out) if out.exists() else None
    full_after(monkeypatch, writing, "write_file", count)
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\); free some space; run the same"
    ):
        write_evaluation(out, FILES, VALUES, overwrite=True)
    assert (contents(out) if out.exists() else None) == before
    assert [path.name for path in out.parent.iterdir()] == (["out"] if before else [])
    monkeypatch.undo()
    write_evaluation(out, FILES, VALUES, overwrite=True)


def test_an_evaluation_that_was_interrupted_is_recognised(out, monkeypatch):
    """Between the renames of its files: the checksums are those of the evaluation before."""
    if not out.exists():  # a new folder is renamed as a whole
        write_evaluation(out, FILES, VALUES, overwrite=False)

    class KilledError(BaseException):
        pass

    def killed(path):
        raise KilledError

    original = type(out).replace
    monkeypatch.setattr(
        type(out), "replace", lambda self, to: killed(to) if to == out / "metrics.json" else original(self, to)
    )
    with pytest.raises(KilledError):
        write_evaluation(out, {**FILES, "det.png": b"another"}, VALUES, overwrite=True)
    monkeypatch.undo()
    assert json.loads((out / "metrics.json").read_text())["sha256"]["det.png"] != digests(out)["det.png"]
    write_evaluation(out, FILES, VALUES, overwrite=True)


def test_an_evaluation_is_not_replaced_that_came_meanwhile(out):
    write_evaluation(out, FILES, VALUES, overwrite=True)
    with pytest.raises(UserError, match="exists already; choose another folder, or add --overwrite"):
        write_evaluation(out, FILES, VALUES, overwrite=False)


CONFIG = {"model": {}, "preprocess": {}, "ppi": 300}


@pytest.mark.parametrize("place", ["write", "sync 1", "sync 2"])
def test_a_full_disk_leaves_the_notes_that_were_there(place, tmp_path, monkeypatch):
    """`config.json` and `README.md` change both or not at all."""
    folder = tmp_path / "model"
    write_model(folder, {"a": torch.zeros(3)}, CONFIG, "card")
    before = contents(folder)
    if place == "write":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    else:
        full_after(monkeypatch, saved_model, "fsync_path", int(place[-1]) - 1)
    try:
        with pytest.raises(UserError, match=r"(config.json|README.md).*: cannot be written"), write_errors():
            write_notes(folder, {**CONFIG, "notes": "x" * 100}, "new card")
    finally:
        if place == "write":
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == before
    monkeypatch.undo()
    write_notes(folder, {**CONFIG, "notes": "x"}, "new card")
    assert json.loads((folder / "config.json").read_text())["sha256"]["README.md"] == digests(folder)["README.md"]


def test_a_full_disk_leaves_the_model_that_was_there(tmp_path, monkeypatch):
    write_model(tmp_path / "model", {"a": torch.zeros(3)}, CONFIG, "card")
    before = contents(tmp_path / "model")
    for place, count in (("write_tensors", 0), ("write_file", 0), ("write_json", 0), ("fsync_path", 0)):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be written"), write_errors():
            full_after(patch, saved_model, place, count)
            write_model(tmp_path / "model", {"a": torch.ones(3)}, CONFIG, "other")
        assert contents(tmp_path / "model") == before
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("there", [b"earlier", None])
def test_a_full_disk_leaves_no_truncated_export(there, tmp_path, monkeypatch):
    """PyTorch's own writer ended the process with SIGABRT."""
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    extractor = FingerprintExtractor(config, PreprocessConfig(crop=256, size=32), ppi=300, canvas=320)
    monkeypatch.setattr(export, "ROUNDS", 1)
    monkeypatch.setattr(export, "TRIED", (1,))
    monkeypatch.setattr(torch.export, "save", lambda program, file, extra_files: file.write(b"x" * 1000))
    loaded = type("Loaded", (), {"module": lambda self: lambda images: extractor(images)})
    monkeypatch.setattr(torch.export, "load", lambda file: loaded())
    path = tmp_path / "model.pt2"
    if there:
        path.write_bytes(there)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(UserError, match=r"model.pt2: cannot be written \(File too large\); raise the limit"):
            export.save_torch(extractor, None, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == ({"model.pt2": there} if there else {})
    assert export.save_torch(extractor, None, path).startswith("0.0 MB, differs from PyTorch by at most 0.0e+00")
    assert np.frombuffer(path.read_bytes(), np.uint8).tolist() == [ord("x")] * 1000
