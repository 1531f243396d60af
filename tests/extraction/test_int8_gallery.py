"""Galleries of int8 templates do what galleries of float32 templates do, in a quarter of the space."""

import json

import numpy as np
import pyarrow as pa
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import gallery_reader as module
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_parts import Known, part_files
from fingerprint_accel.extraction.int8_templates import dequantise, quantise
from fingerprint_accel.extraction.verifying import verify
from fingerprint_accel.similarity import masked_similarity

DIMS, CELLS = 64, 16


def dense(count, seed=0):
    """Dense templates of which each shows about two thirds of the cells."""
    generator = np.random.default_rng(seed)
    shown = (generator.random((count, CELLS)) < 0.7).repeat(DIMS // CELLS, axis=1)
    vectors = (generator.standard_normal((count, DIMS)) * shown).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def filled(tmp_path):
    """An int8 gallery of two files, and the templates that were enrolled."""
    gallery = Gallery.create(tmp_path / "known", DIMS, "tests", CELLS, "int8")
    for go, count in enumerate((200, 100)):
        gallery.append(dense(count, go), [Known(f"{go}-{i}", f"person {i % 50}", i % 11) for i in range(count)])
    return Gallery(tmp_path / "known"), np.concatenate([dense(200, 0), dense(100, 1)])


def test_search_compares_what_is_stored(filled, monkeypatch):
    monkeypatch.setitem(module.BLOCK, "int8", 32)
    gallery, templates = filled
    assert gallery.template == json.loads((gallery.folder / "gallery.json").read_text())["template"] == "int8"
    stored = dequantise(*quantise(templates))
    np.testing.assert_array_equal(gallery.vectors(np.arange(300)), stored)
    probes, among = dense(7, 5), gallery.selected(3)
    for chosen, known in ((None, np.ones(300, bool)), (among, among)):
        scores = np.where(known, masked_similarity(probes, stored, CELLS), -np.inf)
        hits = gallery.search(probes, 4, among=chosen)
        np.testing.assert_array_equal(hits.row, np.argsort(-scores, axis=1)[:, :4])
        np.testing.assert_array_equal(gallery.search(probes[:, None], 4, among=chosen).row, hits.row)
    exact = masked_similarity(probes, templates, CELLS)
    assert np.abs(masked_similarity(probes, stored, CELLS) - exact).max() < 0.01


def test_the_files_take_a_quarter(tmp_path):
    sizes = {}
    for template in ("float32", "int8"):
        gallery = Gallery.create(tmp_path / template, 512, "tests", 64, template)
        vectors = np.random.default_rng(0).standard_normal((1000, 512)).astype(np.float32)
        gallery.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), [str(row) for row in range(1000)])
        (part,) = part_files(gallery.folder)
        sizes[template] = part.stat().st_size
    assert sizes["float32"] - sizes["int8"] == pytest.approx(1000 * (2048 - 516), abs=1000)
    assert sizes["int8"] < 1000 * 600


def test_enrolment_replacement_removal_index_and_checks(filled):
    gallery, templates = filled
    known = gallery.known(np.arange(300))
    assert gallery.append(templates[:200], known[:200]) == 0, "the same templates once more"
    with pytest.raises(UserError, match="0-3: already enrolled from another image"):
        gallery.append(dense(1, 9), [known[3]])
    assert gallery.append(dense(1, 9), [known[3]], replace=True) == 1
    assert gallery.search(dense(1, 9), 1).similarity[0, 0] > 0.999
    assert gallery.remove(person="person 7") == 6
    assert len(Gallery(gallery.folder)) == 294
    pytest.importorskip("faiss")
    searched = ApproximateSearch(gallery).search(dense(5, 6), 3)
    np.testing.assert_array_equal(searched.row, gallery.search(dense(5, 6), 3).row)
    assert verify(gallery.folder, progress=False)[0] == 4  # the files of prints and the index


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 0.9])
def test_scales_that_no_enrolment_writes_are_never_answered(filled, value, monkeypatch):
    monkeypatch.setattr("fingerprint_accel.extraction.gallery_parts.is_intact", lambda path: True)  # as a stranger's
    gallery, _ = filled
    *_, path = part_files(gallery.folder)
    batch = pa.ipc.open_file(path).get_batch(0)
    scales = batch["scale"].to_numpy().copy()
    scales[5] *= value
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch.set_column(batch.schema.get_field_index("scale"), "scale", pa.array(scales)))
    opened = Gallery(gallery.folder)
    for act in (lambda: opened.search(dense(1, 5), 2), lambda: opened.vectors(np.array([205]))):
        with pytest.raises(UserError, match=f"{path}: contains embeddings that are not finite and of unit length"):
            act()


def test_a_part_without_scales_is_refused(filled):
    gallery, _ = filled
    path = part_files(gallery.folder)[0]
    batch = pa.ipc.open_file(path).get_batch(0).drop_columns(["scale"])
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fingerprint_accel.extraction.gallery_parts.is_intact", lambda path: True)
        with pytest.raises(UserError, match=r"damaged \(a column is missing or repeated\)"):
            Gallery(gallery.folder)
