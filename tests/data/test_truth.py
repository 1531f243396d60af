"""Pose and contact of synthetic prints: in the dataset folder, in batches, and through `merge`."""

import datasets
import numpy as np
import pytest
import torch
from shard_writer import ShardWriter

from fingerprint_accel.data.batch import BatchLayout
from fingerprint_accel.data.loader import Subset, subset_of_fingers
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.truth import CONTACT_BYTES, GRID, UNKNOWN, Truth, overlaps, pack_contact, unpack_contact
from tests.data.small_datasets import QUIET, SIDE, dataset, picture

ROWS = 12


def disc(x, y, radius, cells=GRID):
    """(cells, cells) bool: cells of a canvas of side 1 whose middle is inside a disc."""
    rows, columns = (np.indices((cells, cells)) + 0.5) / cells
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def truth(row):
    return Truth(np.array([row / 10, 3.5 - row, row / 4], np.float32), pack_contact(disc(0.5 + row / 100, 0.45, 0.3)))


@pytest.fixture
def known(tmp_path):
    """ROWS prints of six fingers that know their truth, but for the last two."""
    with ShardWriter(tmp_path / "known", 300, SIDE, rows_per_shard=5, truth=True) as writer:
        for row in range(ROWS):
            points = np.full((row % 3, 4), row, np.float32)
            writer.add(Record(picture(row), f"{row // 2}", row % 2, "", points, truth(row) if row < 10 else None))
    return tmp_path / "known"


def truths(folder):
    """Finger key and impression -> pose (3,) and contact (GRID, GRID) of every print."""
    shards = open_dataset(folder)
    pose, contact = np.empty((len(shards), 3), np.float32), np.empty((len(shards), GRID, GRID), bool)
    shards.truth(np.arange(len(shards)), pose, contact)
    keys = [shards.key_of_finger[finger] for finger in shards.fingers]
    names = zip(keys, shards.impressions.tolist(), strict=True)
    return dict(zip(names, zip(pose, contact, strict=True), strict=True))


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, (pose, contact) in ours.items():
        np.testing.assert_array_equal(pose, theirs[name][0])
        np.testing.assert_array_equal(contact, theirs[name][1])


def test_packing_the_bits():
    contact = np.random.default_rng(0).random((GRID, GRID)) < 0.5
    packed = pack_contact(contact)
    assert len(packed) == CONTACT_BYTES == 200
    assert packed == np.packbits(contact).tobytes()
    np.testing.assert_array_equal(unpack_contact(packed), contact)
    assert not unpack_contact(UNKNOWN.contact).any()


def test_overlaps():
    np.testing.assert_allclose(overlaps(np.array([0, 1.5, 3]), np.arange(4)), [[1, 0.5, 0], [0, 0.5, 1]])


def test_what_a_row_holds(known):
    rows = datasets.load_from_disk(str(known))
    assert rows.features["pose"] == datasets.List(datasets.Value("float32"), length=3)
    assert rows.features["contact"] == datasets.Value("binary")
    assert rows[4]["pose"] == truth(4).pose.tolist()
    assert rows[4]["contact"] == truth(4).contact
    assert np.isnan(rows[11]["pose"]).all()
    assert rows[11]["contact"] == bytes(200)


@pytest.mark.parametrize("rows", [[0, 1, 6, 11], [9, 0, 5, 5, 10]])
def test_reading_rows_in_any_order(known, rows):
    shards = open_dataset(known)
    subset = Subset(shards, np.arange(ROWS), np.arange(ROWS) // 2)
    batch = subset.read(np.array(rows), np.zeros(len(rows), np.int64), truth=True)
    for row, pose, contact in zip(rows, batch.pose.numpy(), batch.contact.numpy(), strict=True):
        expected = truth(row) if row < 10 else UNKNOWN
        np.testing.assert_array_equal(pose, expected.pose)
        np.testing.assert_array_equal(contact, unpack_contact(expected.contact))
    assert shards.truth_known(np.array(rows)).tolist() == [row < 10 for row in rows]
    assert np.count_nonzero(subset.shards.truth_known(subset.rows)) == 10


def test_a_dataset_without_the_columns(tmp_path):
    shards = open_dataset(dataset(tmp_path / "plain", ["a", "b"]))
    assert not shards.has_truth
    subset = subset_of_fingers(shards, np.ones(2, bool))
    assert np.count_nonzero(subset.shards.truth_known(subset.rows)) == 0
    batch = subset.read(np.arange(4), np.zeros(4, np.int64), truth=True)
    assert batch.pose.isnan().all()
    assert not batch.contact.any()


def test_the_loader_reads_it_where_it_is_asked_for(known):
    subset = subset_of_fingers(open_dataset(known), np.ones(6, bool))
    order = SampleOrder(ROWS, seed=2)
    with subset.loader(order, 4) as plain, subset.loader(order, 4, truth=True) as loader:
        for without, batch, _ in zip(plain, loader, range(6), strict=False):
            assert without.pose is without.contact is None
            assert torch.equal(without.image, batch.image)
            for row, pose, contact in zip(batch.index.tolist(), batch.pose, batch.contact, strict=True):
                expected = truth(row) if row < 10 else UNKNOWN
                np.testing.assert_array_equal(pose.numpy(), expected.pose)
                np.testing.assert_array_equal(contact.numpy(), unpack_contact(expected.contact))
            moved = batch.to("cpu")
            assert (moved.pose.dtype, moved.contact.dtype) == (torch.float32, torch.bool)
            assert without.to("cpu").pose is None


def test_it_lies_in_the_one_piece():
    layout = BatchLayout(3, 5, 2, truth=True)
    flat = layout.empty()
    batch = layout.view(flat)
    assert flat.numel() == 4 * 3 * 8 + 3 * 2 * 4 * 4 + 3 * 3 * 4 + 3 * GRID**2 + 3 * 25
    assert batch.pose.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    batch.pose.fill_(2.5)
    batch.contact.fill_(True)
    batch.image.zero_()
    again = layout.view(flat.clone())
    assert (again.pose == 2.5).all()
    assert again.contact.all()
    assert not again.image.any()


@pytest.mark.parametrize("options", [MergeOptions(rows_per_shard=4), MergeOptions(encoding="lz4")])
def test_merge_keeps_it(known, tmp_path, options):
    merge([known], tmp_path / "out", options, **QUIET)
    assert_same(truths(known), truths(tmp_path / "out"))
    merge([known], tmp_path / "enhanced", MergeOptions(enhance=inverted), **QUIET)
    assert_same(truths(known), truths(tmp_path / "enhanced"))


def inverted(image, ppi):
    return 255 - image


def test_merge_with_prints_that_do_not_know(known, tmp_path):
    plain = dataset(tmp_path / "plain", ["a", "b"])
    merge([plain, known], tmp_path / "both", **QUIET)
    found = truths(tmp_path / "both")
    assert_same(truths(known), {name: found[name] for name in found if name[0] not in "ab"})
    for key in "ab":
        assert np.isnan(found[key, 1][0]).all()
        assert not found[key, 1][1].any()
    assert datasets.load_from_disk(str(tmp_path / "both")).num_rows == ROWS + 4
    merge([plain], tmp_path / "again", **QUIET)
    assert "pose" not in datasets.load_from_disk(str(tmp_path / "again")).features


@pytest.mark.parametrize(("ppi", "canvas"), [(300, 80), (300, 71), (250, 64), (500, 101)])
def test_merge_carries_it_to_another_canvas(tmp_path, ppi, canvas):
    """A square that is dark where the contact is, and its middle where the pose says."""
    x, y = 26, 38
    image = np.full((SIDE, SIDE), 255, np.uint8)
    image[y - 12 : y + 12, x - 12 : x + 12] = 0
    cells = (np.arange(GRID) + 0.5) * SIDE / GRID
    contact = (np.abs(cells - y) < 12)[:, None] & (np.abs(cells - x) < 12)
    pose = np.array([0.3, x - SIDE / 2, y - SIDE / 2], np.float32)
    with ShardWriter(tmp_path / "one", 300, SIDE, truth=True) as writer:
        writer.add(Record(image, "a", 0, "", np.empty((0, 4), np.float32), Truth(pose, pack_contact(contact))))
        writer.add(Record(image, "b", 0, "", np.empty((0, 4), np.float32)))
    merge([tmp_path / "one"], tmp_path / "out", MergeOptions(ppi=ppi, canvas=canvas), **QUIET)
    shards = open_dataset(tmp_path / "out")
    ink = 255.0 - shards.image(0)
    found = truths(tmp_path / "out")
    moved, grid = found["a", 0]
    rows, columns = np.indices(ink.shape) + 0.5 - canvas / 2
    assert moved[0] == np.float32(0.3)
    assert moved[1] == pytest.approx((ink * columns).sum() / ink.sum(), abs=0.1)
    assert moved[2] == pytest.approx((ink * rows).sum() / ink.sum(), abs=0.1)
    middles = ((np.arange(GRID) + 0.5) * canvas / GRID).astype(int)
    dark = ink[np.ix_(middles, middles)] > 127
    assert (grid & dark).sum() / (grid | dark).sum() > 0.8, "a cell or two along the border"
    assert np.isnan(found["b", 0][0]).all()
    assert not found["b", 0][1].any()


def test_to_another_canvas_and_back():
    known = Truth(np.array([0.3, 10.0, -6.0], np.float32), pack_contact(disc(0.5, 0.48, 0.3)))
    larger = known.on_another_canvas(left=-40.0, scale=1.0, before=320, canvas=400)
    back = larger.on_another_canvas(left=40.0, scale=1.0, before=400, canvas=320)
    np.testing.assert_allclose(larger.pose, known.pose)
    np.testing.assert_allclose(back.pose, known.pose)
    before, after, wide = (unpack_contact(part.contact) for part in (known, back, larger))
    assert wide.sum() == pytest.approx(before.sum() * (320 / 400) ** 2, rel=0.04)
    assert (before & after).sum() / (before | after).sum() > 0.92, "cells along the border"
