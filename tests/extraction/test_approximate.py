"""Searching a gallery by an index: what it finds, and that it follows the gallery."""

import os
import resource
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import approximate
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.similarity import similarity

pytest.importorskip("faiss")
DIMS, MATES = 32, 4


def impressions(fingers, of_each, seed=0):
    """(fingers * of_each, DIMS), cosine of mates about 0.8."""
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((fingers, DIMS)).repeat(of_each, axis=0)
    vectors = (centres + 0.5 * chance.standard_normal(centres.shape)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def gallery(tmp_path):
    """500 fingers in two enrolments."""
    made, vectors = Gallery.create(tmp_path / "gallery", DIMS, "tests"), impressions(500, MATES)
    for go, part in enumerate((vectors[:800], vectors[800:])):
        made.append(part, [f"{go}-{i}" for i in range(len(part))])
    return made


def test_mates_are_found_with_their_exact_similarity(gallery):
    probes = gallery.vectors(np.arange(0, 2000, 40))
    exact, found = gallery.search(probes, MATES), ApproximateSearch(gallery).search(probes, MATES)
    np.testing.assert_array_equal(found.row[:, 0], np.arange(0, 2000, 40))
    assert np.mean([len({*a} & {*b}) / MATES for a, b in zip(found.row, exact.row, strict=True)]) > 0.95
    same = found.row == exact.row
    np.testing.assert_allclose(found.similarity[same], exact.similarity[same], atol=1e-6)


def test_more_cells_looked_into_find_what_exact_search_does(gallery, monkeypatch):
    monkeypatch.setattr(approximate, "FEWEST_CELLS", 10_000)
    probes = impressions(7, 1, seed=5)
    exact, found = gallery.search(probes, 3), ApproximateSearch(gallery).search(probes, 3)
    np.testing.assert_array_equal(found.row, exact.row)
    assert ApproximateSearch(gallery).search(probes, 5000).row.shape == (7, 2000)


def test_the_index_follows_the_gallery(gallery):
    assert ApproximateSearch(gallery).added == 2000
    assert ApproximateSearch(gallery).added == 0
    new = impressions(1, 3, seed=9)
    gallery.append(new, ["a", "b", "c"])
    search = ApproximateSearch(Gallery(gallery.folder))
    assert search.added == 3
    assert gallery.names(search.search(new[:1], 1).row[0]) == ["a"]
    for name in (gallery.part_names[0], "gallery.json"):
        (gallery.folder / name).unlink()
    assert ApproximateSearch(Gallery(gallery.folder)).added == 1203, "made anew: rows have moved"


def test_an_interrupted_index_leaves_the_one_before(gallery, monkeypatch):
    ApproximateSearch(gallery)
    gallery.append(impressions(1, 1, seed=3), ["x"])
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ApproximateSearch(gallery)
    monkeypatch.undo()
    assert len(list(gallery.folder.iterdir())) == 5, "three enrolments, what the gallery is, and the index of before"
    assert ApproximateSearch(gallery).added == 1
    assert len(list(gallery.folder.iterdir())) == 5, "the index of before is gone"


def test_mistakes_are_named(gallery, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="no print is enrolled"):
        ApproximateSearch(Gallery.create(tmp_path / "empty", DIMS, "tests"))
    with pytest.raises(UserError, match="32 numbers, the probes have 16"):
        ApproximateSearch(gallery).search(np.zeros((1, 16), np.float32))
    (index,) = gallery.folder.glob("index-*.faiss")
    index.write_bytes(b"nonsense")
    assert ApproximateSearch(gallery).added == 2000
    assert capsys.readouterr().err == f"{index}: damaged; the index is built again\n"
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'fingerprint-accel\[faiss\]'"):
        ApproximateSearch(gallery)


def test_dense_candidates_are_compared_by_masked_similarity_in_every_hypothesis(tmp_path, monkeypatch):
    """The index proposes 100 of 600 by dot products, the best by masked similarity among them."""
    monkeypatch.setattr(approximate, "FEWEST_CELLS", 10_000)
    monkeypatch.setattr(approximate, "RESCORED", 100)
    rng = np.random.default_rng(0)
    fingers = rng.standard_normal((600, 1, 16, 2))
    shown = rng.uniform(size=(600, 2, 16, 1)) < 0.7
    prints = ((fingers + 0.3 * rng.standard_normal((600, 2, 16, 2))) * shown).reshape(600, 2, DIMS)
    prints = (prints / np.linalg.norm(prints, axis=2, keepdims=True)).astype(np.float32)
    made = Gallery.create(tmp_path / "dense", DIMS, "tests", 16)
    made.append(prints[:, 0], [str(row) for row in range(600)])
    probes = prints[:30, 1]
    found = ApproximateSearch(made).search(probes, 1)
    masked = similarity(probes, prints[:, 0], 16)
    np.testing.assert_array_equal(found.row[:, 0], masked.argmax(axis=1))
    np.testing.assert_allclose(found.similarity[:, 0], masked.max(axis=1), atol=1e-6)
    hypotheses = np.stack([probes, prints[::-1][:30, 1]], axis=1)
    both = ApproximateSearch(made).search(hypotheses, 1)
    best = [similarity(each, prints[row, 0], 16).max() for each, row in zip(hypotheses, both.row, strict=True)]
    np.testing.assert_allclose(both.similarity[:, 0], best, atol=1e-6)
    assert (both.similarity >= found.similarity - 1e-6).all()


def test_a_disk_that_fills_up_is_one_line(tmp_path):
    """FAISS prints an error of closing a file, and goes on: an empty file became the index."""
    gallery = Gallery.create(tmp_path / "gallery", DIMS, "tests")
    gallery.append(impressions(8, 1), [str(number) for number in range(8)])
    before = sorted(gallery.folder.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        with pytest.raises(UserError, match=r"gallery: cannot be written \(File too large\); .*search without --index"):
            ApproximateSearch(gallery)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(gallery.folder.iterdir()) == before
    assert ApproximateSearch(gallery).added == 8


def test_drafts_of_killed_searches_are_deleted(gallery):
    lost = gallery.folder / f".{socket.gethostname()}-{2**22 + 1}-1-index.tmp"  # no process has this number
    elsewhere = gallery.folder / ".another-machine-1-1-index.tmp"
    under_way = gallery.folder / f".{socket.gethostname()}-{os.getpid()}-1-index.tmp"
    for draft in (lost, elsewhere, under_way):
        draft.touch()
    ApproximateSearch(gallery)
    assert (lost.exists(), elsewhere.exists(), under_way.exists()) == (False, True, True)
