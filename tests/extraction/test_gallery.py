import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import gallery_reader as module
from fingerprint_accel.extraction import gallery_search
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_parts import part_files
from fingerprint_accel.extraction.gallery_search import _top
from fingerprint_accel.extraction.verifying import verify
from fingerprint_accel.similarity import similarity


def unit(count, dims=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(folder, *counts):
    """A gallery enrolled in several goes, and all its embeddings."""
    gallery, every = Gallery.create(folder, 16, "tests"), []
    for go, count in enumerate(counts):
        every.append(unit(count, seed=go))
        gallery.append(every[-1], [f"{go}-{i}" for i in range(count)])
    return gallery, np.concatenate(every)


@pytest.mark.parametrize("k", [1, 3, 60])
def test_search_is_exact_across_files_blocks_and_probes(tmp_path, monkeypatch, k):
    monkeypatch.setattr(module, "BLOCK", {"float32": 25, "int8": 25})
    monkeypatch.setattr(gallery_search, "PROBES", 7)
    monkeypatch.setattr(gallery_search, "CELL", 2)
    _, references = filled(tmp_path / "gallery", 40, 1, 19)
    gallery, probes = Gallery(tmp_path / "gallery"), unit(17, seed=9)
    hits = gallery.search(probes, k)
    scores = probes @ references.T
    wanted = np.argsort(-scores, axis=1)[:, :k]
    np.testing.assert_array_equal(hits.row, wanted)
    np.testing.assert_allclose(hits.similarity, np.take_along_axis(scores, wanted, axis=1), atol=1e-6)
    assert gallery.names(np.array([39, 40, 41, 0])) == ["0-39", "1-0", "2-0", "0-0"]


@pytest.mark.parametrize("count", [5, 1000, 1024, 4099])
def test_the_short_way_to_the_top_is_right(count):
    scores = torch.randn(6, count, generator=torch.Generator().manual_seed(0))
    scores[0, :] = 0.5  # nothing but ties
    found, wanted = _top(scores, 3), scores.topk(3, dim=1)
    assert torch.equal(found[0], wanted.values)
    assert torch.equal(scores.gather(1, found[1]), wanted.values)


def test_more_hits_than_references_are_all_of_them(tmp_path):
    gallery, _ = filled(tmp_path / "gallery", 4)
    assert gallery.search(unit(2), 10).row.shape == (2, 4)


def test_an_enrolment_that_was_cut_off_leaves_the_gallery_as_it_was(tmp_path, monkeypatch):
    gallery, _ = filled(tmp_path / "gallery", 5)

    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", cut_off)
    with pytest.raises(KeyboardInterrupt):
        gallery.append(unit(3), ["a", "b", "c"])
    monkeypatch.undo()
    again = Gallery(tmp_path / "gallery")
    assert len(again) == 5
    assert not list((tmp_path / "gallery").glob("*.tmp"))
    again.append(unit(3), ["a", "b", "c"])
    assert len(Gallery(tmp_path / "gallery")) == 8


def test_damage_is_found(tmp_path):
    filled(tmp_path / "gallery", 5, 6)
    part = sorted((tmp_path / "gallery").glob("part-000001-*"))[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{part}: differs from its sha256"):
        Gallery(tmp_path / "gallery")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="not a gallery folder"):
        Gallery(tmp_path)
    gallery = Gallery.create(tmp_path / "gallery", 16, "tests")
    with pytest.raises(UserError, match="exists already"):
        Gallery.create(tmp_path / "gallery", 16, "tests")
    with pytest.raises(UserError, match="no print is enrolled yet"):
        gallery.search(unit(1))
    gallery.append(unit(2), ["a", "b"])
    with pytest.raises(UserError, match="embeddings of 16 numbers, the probes have 8"):
        gallery.search(unit(1, dims=8))


def test_files_open_with_arrow_alone(tmp_path):
    _, references = filled(tmp_path / "gallery", 5)
    path = next((tmp_path / "gallery").glob("*.arrow"))
    table = pa.ipc.open_file(path).read_all()
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), references)
    assert table["name"].to_pylist() == [f"0-{i}" for i in range(5)]


def test_an_enrolment_can_be_repeated(tmp_path):
    """As after a kill between the rename that enrols and the end of the command."""
    gallery, every = filled(tmp_path / "gallery", 5, 3)
    names = [f"0-{i}" for i in range(5)]
    assert Gallery(tmp_path / "gallery").append(every[:5], names) == 0
    rounded = every[:5] * np.float32(1 + 1e-6)
    assert gallery.append(rounded, names) == 0
    assert gallery.append(np.concatenate([every[:1], unit(1, seed=8)]), ["0-0", "newer"]) == 1
    again = Gallery(tmp_path / "gallery")
    assert len(again) == len(gallery) == 9
    assert again.names(np.arange(7, 9)) == ["1-2", "newer"]


def test_another_image_of_a_name_is_refused_or_replaces_the_first(tmp_path):
    gallery, every = filled(tmp_path / "gallery", 5, 3)
    other = unit(2, seed=7)
    with pytest.raises(UserError, match=r"0-1: already enrolled from another image; --replace replaces it"):
        gallery.append(other, ["new", "0-1"])
    assert len(Gallery(tmp_path / "gallery")) == 8, "all or none"
    assert gallery.append(other, ["new", "0-1"], replace=True) == 2
    again = Gallery(tmp_path / "gallery")
    assert again.names(np.arange(9)) == ["0-0", "0-2", "0-3", "0-4", "1-0", "1-1", "1-2", "new", "0-1"]
    np.testing.assert_array_equal(again.vectors(np.arange(9)), np.concatenate([every[[0, 2, 3, 4, 5, 6, 7]], other]))
    assert gallery.append(other, ["new", "0-1"], replace=True) == 0
    same = np.concatenate([unit(1, seed=9)] * 2)
    assert gallery.append(same, ["twice", "twice"]) == 1, "listed twice, enrolled once"
    with pytest.raises(UserError, match="thrice: two different prints have this name"):
        gallery.append(other, ["thrice", "thrice"])


def test_a_gallery_that_was_begun_can_be_gone_on_with(tmp_path, monkeypatch):
    folder = tmp_path / "gallery"
    monkeypatch.setattr(module.Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Gallery.create(folder, 16, "tests")
    monkeypatch.undo()
    assert not list(folder.iterdir())
    assert len(Gallery.open_or_create(folder, 16, "tests")) == 0
    assert Gallery.open_or_create(folder, 16, "tests").append(unit(2), ["a", "b"]) == 2
    with pytest.raises(
        UserError, match=r"filled by another model \(tests, not others\); give the model that filled it"
    ):
        Gallery.open_or_create(folder, 16, "others")
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


def test_a_lost_description_is_in_the_files_too(tmp_path):
    filled(tmp_path / "gallery", 5)
    description = tmp_path / "gallery" / "gallery.json"
    before = description.read_text()
    description.unlink()
    gallery = Gallery(tmp_path / "gallery")
    assert (gallery.dims, gallery.model, len(gallery)) == (16, "tests", 5)
    gallery.append(unit(1, seed=9), ["new"])
    now, before = json.loads(description.read_text()), json.loads(before)
    assert now.pop("parts") == [path.name for path in part_files(gallery.folder)]
    assert {**before, "parts": [], "checksum": ""} == {**now, "parts": [], "checksum": ""}


def test_a_missing_file_of_prints_is_named(tmp_path):
    """Its prints were missing in every answer, and nobody knew."""
    gallery, folder = filled(tmp_path / "gallery", 5, 1)[0], tmp_path / "gallery"
    lost = part_files(folder)[0]
    lost.unlink()
    for use in (lambda: Gallery(folder), lambda: Gallery.open_or_create(folder, 16, "tests"), lambda: verify(folder)):
        with pytest.raises(UserError, match=rf"{lost}: missing, and its prints with it; .*, or delete gallery\.json"):
            use()
    with pytest.raises(UserError, match="missing, and its prints with it"):
        gallery.append(unit(1, seed=8), ["newer"])
    (folder / "gallery.json").unlink()
    assert len(Gallery(folder)) == 1
    Gallery.open_or_create(folder, 16, "tests").append(unit(1, seed=8), ["newer"])
    (part, _) = part_files(folder)
    for path in part_files(folder):
        path.unlink()
    with pytest.raises(UserError, match=f"{part}: missing"):
        Gallery.open_or_create(folder, 16, "another model")


def test_enrolments_at_once_are_all_in(tmp_path):
    Gallery.create(tmp_path / "gallery", 16, "tests")
    galleries = [Gallery(tmp_path / "gallery") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: galleries[i].append(unit(3, seed=i), [f"{i}-{j}" for j in range(3)]), range(4)))
    found = Gallery(tmp_path / "gallery")
    assert sorted(found.names(np.arange(len(found)))) == [f"{i}-{j}" for i in range(4) for j in range(3)]
    assert sorted(path.name[:11] for path in (tmp_path / "gallery").glob("*.arrow")) == [
        f"part-00000{i}" for i in range(4)
    ]


CELLS, DIMS = 16, 64


def dense(count, seed=0):
    """(count, DIMS) of unit length, of which a print shows 60 % of the cells."""
    rng = np.random.default_rng(seed)
    shown = rng.uniform(size=(count, CELLS, 1)) < 0.6
    vectors = (rng.standard_normal((count, CELLS, DIMS // CELLS)) * shown).reshape(count, DIMS).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_dense_templates_are_searched_by_masked_similarity(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", {"float32": 25, "int8": 25})
    monkeypatch.setattr(gallery_search, "PROBES", 7)
    references, probes = dense(60), dense(17, seed=9)
    gallery = Gallery.create(tmp_path / "gallery", DIMS, "tests", CELLS)
    for start in (0, 40):
        gallery.append(references[start : start + 40], [str(row) for row in range(start, min(60, start + 40))])
    hits = Gallery(tmp_path / "gallery").search(probes, 5)
    scores = similarity(probes, references, CELLS)
    wanted = np.argsort(-scores, axis=1)[:, :5]
    np.testing.assert_array_equal(hits.row, wanted)
    np.testing.assert_allclose(hits.similarity, np.take_along_axis(scores, wanted, axis=1), atol=1e-6)
    assert (wanted[:, 0] != (probes @ references.T).argmax(axis=1)).any(), "dot products rank otherwise"


def test_the_best_candidates_are_compared_with_every_hypothesis(tmp_path, monkeypatch):
    """The right hypothesis comes second: nothing as they are, found with both if they are candidates."""
    references = dense(60)
    gallery = Gallery.create(tmp_path / "gallery", DIMS, "tests", CELLS)
    gallery.append(references, [str(row) for row in range(60)])
    probes = dense(20, seed=9)
    hypotheses = np.stack([probes, references[:20]], axis=1)
    hits = gallery.search(hypotheses, 3)
    np.testing.assert_array_equal(hits.row[:, 0], np.arange(20))
    wanted = np.sort(np.stack([similarity(probe, references, CELLS).max(axis=0) for probe in hypotheses]), axis=1)
    np.testing.assert_allclose(hits.similarity, wanted[:, :-4:-1], atol=1e-6)
    monkeypatch.setattr(module, "RESCORED", 4)
    few = gallery.search(hypotheses, 1)
    proposed = gallery.search(probes, 4).row
    assert (few.row == proposed).any(axis=1).all(), "only candidates can be hits"
    with pytest.raises(UserError, match="embeddings of 64 numbers, the probes have 32"):
        gallery.search(hypotheses[:, :, :32])


def test_a_gallery_remembers_its_cells_and_older_ones_have_none(tmp_path):
    Gallery.create(tmp_path / "gallery", DIMS, "tests", CELLS).append(dense(3), ["a", "b", "c"])
    description = tmp_path / "gallery" / "gallery.json"
    facts = json.loads(description.read_text())
    description.unlink()
    assert Gallery(tmp_path / "gallery").cells == CELLS, "from the files of prints"
    for path in (tmp_path / "gallery").glob("part-*"):
        path.unlink()
    del facts["cells"], facts["checksum"], facts["parts"]
    description.write_text(json.dumps(facts))
    assert Gallery(tmp_path / "gallery").cells == 0


def test_embeddings_that_do_not_fit_their_names_are_refused(tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", 16, "tests")
    for embeddings, names in ((unit(2), ["a"]), (unit(2)[:, :8], ["a", "b"])):
        with pytest.raises(UserError, match=rf"{len(names)} names need embeddings \({len(names)}, 16\), not \(2, "):
            gallery.append(embeddings, names)
    assert len(gallery) == 0
