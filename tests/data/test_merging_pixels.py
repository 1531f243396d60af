"""Merging onto another resolution or canvas: what happens to the pixels and minutiae of a print."""

import numpy as np
import pytest
from shard_writer import ShardWriter

from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from tests.data.small_datasets import QUIET, SIDE, assert_same_prints, contents, dataset


@pytest.fixture
def source(tmp_path):
    return dataset(tmp_path / "one", [f"finger {n}" for n in range(10)])


def dots(folder, points, side=200):
    image = np.full((side, side), 255, np.uint8)
    for x, y in points:
        image[y - 3 : y + 4, x - 3 : x + 4] = 0  # around (x + 0.5, y + 0.5)
    minutiae = np.array([(x + 0.5, y + 0.5, 1.5, 0.5) for x, y in points], np.float32)
    with ShardWriter(folder, 500, side) as writer:
        writer.add(Record(image, "a", 0, "", minutiae))
    return folder


@pytest.mark.parametrize(("ppi", "canvas"), [(300, 200), (300, 120), (500, 260), (500, 151), (750, 301), (333, 100)])
def test_minutiae_follow_the_pixels(tmp_path, ppi, canvas):
    source = dots(tmp_path / "dots", [(100, 100), (60, 100), (100, 130), (8, 190)])
    merge([source], tmp_path / "out", MergeOptions(ppi=ppi, canvas=canvas), **QUIET)
    shards = open_dataset(tmp_path / "out")
    assert (shards.info.ppi, shards.info.canvas) == (ppi, canvas)
    minutiae, counts = shards.minutiae(np.array([0]))
    scale = ppi / 500
    expected = [(x, y) for x, y in ((100, 100), (60, 100), (100, 130), (8, 190)) if _inside(x, y, scale, canvas)]
    assert counts[0] == len(expected)
    ink = 255.0 - shards.image(0)
    rows, columns = np.indices(ink.shape) + 0.5
    for (x, y), point in zip(expected, minutiae[0], strict=False):
        assert point[:2] == pytest.approx(
            [(x + 0.5 - 100) * scale + canvas / 2, (y + 0.5 - 100) * scale + canvas / 2], abs=0.51
        )
        assert tuple(point[2:]) == (1.5, 0.5)
        near = (np.abs(columns - point[0]) < 8 * scale) & (np.abs(rows - point[1]) < 8 * scale)
        weight = ink * near
        assert weight.sum() == pytest.approx(255 * (7 * scale) ** 2, rel=0.05)
        assert (weight * columns).sum() / weight.sum() == pytest.approx(point[0], abs=0.1)
        assert (weight * rows).sum() / weight.sum() == pytest.approx(point[1], abs=0.1)
    if scale < 1 and canvas == 200:
        assert (shards.image(0)[:30] == 255).all(), "white where the old canvas does not reach"


def _inside(x, y, scale, canvas):
    return all(0 <= (value + 0.5 - 100) * scale + canvas / 2 < canvas for value in (x, y))


def test_another_canvas_moves_pixels_as_they_are(source, tmp_path):
    merge([source], tmp_path / "large", MergeOptions(canvas=SIDE + 20), **QUIET)
    ours, theirs = contents(source), contents(tmp_path / "large")
    for key, (image, minutiae, _) in ours.items():
        large = theirs[key][0]
        np.testing.assert_array_equal(large[10:-10, 10:-10], image)
        assert (large[:10] == 255).all()
        assert [[x + 10, y + 10, *rest] for x, y, *rest in minutiae] == theirs[key][1]
    merge([tmp_path / "large"], tmp_path / "back", MergeOptions(canvas=SIDE), **QUIET)
    assert_same_prints(ours, contents(tmp_path / "back"))


def test_fine_ridges_do_not_alias(tmp_path):
    """Lines closer than the new pixels become grey, not coarse lines."""
    with ShardWriter(tmp_path / "fine", 1000, 400) as writer:
        stripes = np.tile(np.where(np.arange(400) % 3 < 1, 0, 255).astype(np.uint8), (400, 1))
        writer.add(Record(stripes, "a", 0, "", np.empty((0, 4), np.float32)))
    merge([tmp_path / "fine"], tmp_path / "out", MergeOptions(ppi=250, canvas=100), **QUIET)
    middle = open_dataset(tmp_path / "out").image(0)[20:80, 20:80].astype(float)
    assert middle.mean() == pytest.approx(170, abs=2)
    assert middle.std() < 12, "plain picking of pixels would have 120"


def test_real_prints_in_flx_naming(shared_data, tmp_path):
    if not (shared_data / "flx_example").is_dir():
        pytest.skip("no flx_example")
    summary = import_dataset(shared_data / "flx_example", tmp_path / "out", "flx", 500, **QUIET)
    assert (summary.info.prints, summary.info.fingers, summary.info.with_minutiae) == (100, 10, 100)


def darker(image, ppi):
    return image // 2 + np.uint8(ppi % 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_enhancing(source, tmp_path, workers):
    """The function that is passed in sees every canvas once, as it will be stored, in any process."""
    options = MergeOptions(ppi=251, canvas=70, enhance=darker, rows_per_shard=4)
    summary = merge([source], tmp_path / "out", options, workers=workers, progress=False)
    assert summary.info.enhanced
    plain = MergeOptions(ppi=251, canvas=70)
    assert not merge([source], tmp_path / "plain", plain, **QUIET).info.enhanced
    ours, theirs = contents(tmp_path / "plain"), contents(tmp_path / "out")
    for key, (image, minutiae, name) in ours.items():
        np.testing.assert_array_equal(theirs[key][0], image // 2 + 1)
        assert theirs[key][1:] == (minutiae, name)
    again = merge([tmp_path / "out"], tmp_path / "again", MergeOptions(encoding="lz4"), **QUIET)
    assert again.info.enhanced, "it stays so"
