import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pytest
from shard_writer import ShardWriter

from fingerprint_accel.data.merged_keys import renumbered
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from tests.data.small_datasets import QUIET, SIDE, assert_same_prints, contents, dataset, files, picture
from tests.faults.documents import sign


@pytest.fixture
def source(tmp_path):
    return dataset(tmp_path / "one", [f"finger {n}" for n in range(10)])


@pytest.mark.parametrize("encoding", ["raw", "lz4"])
def test_new_shards_same_prints(source, tmp_path, encoding):
    summary = merge([source], tmp_path / "out", MergeOptions(encoding=encoding, rows_per_shard=6), **QUIET)
    assert (summary.info.prints, summary.info.fingers, summary.info.with_minutiae) == (20, 10, 12)
    assert (summary.info.encoding, summary.info.ppi, summary.info.canvas) == (encoding, 300, SIDE)
    assert list(summary.info.sha256) == [f"data-0000{n}-of-00004.arrow" for n in range(4)]
    assert "median 2" in summary.table()
    assert_same_prints(contents(source), contents(tmp_path / "out"))
    shards = open_dataset(tmp_path / "out")
    assert (np.diff(shards.fingers) == 0).sum() < 7, "sorted by finger it would be 10"
    assert set(shards.fingers) == set(range(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out"]
    table = datasets.load_from_disk(str(tmp_path / "out"))
    assert (table.num_rows, table[3]["source"]) == (20, shards.table["source"][3].as_py())


def test_same_bytes_for_any_number_of_workers(source, tmp_path):
    options = MergeOptions(encoding="lz4", rows_per_shard=8, ppi=250)
    for workers in (1, 2):
        merge([source], tmp_path / f"out{workers}", options, workers=workers, progress=False)
    assert files(tmp_path / "out1") == files(tmp_path / "out2")


def test_lz4_and_back(source, tmp_path):
    merge([source], tmp_path / "small", MergeOptions(encoding="lz4", seed=1), **QUIET)
    merge([tmp_path / "small"], tmp_path / "again", **QUIET)
    assert open_dataset(tmp_path / "again").info.encoding == "lz4", "that of the first source"
    merge([tmp_path / "again"], tmp_path / "large", MergeOptions(encoding="raw"), **QUIET)
    assert_same_prints(contents(source), contents(tmp_path / "large"))
    sizes = [sum(path.stat().st_size for path in (tmp_path / name).glob("*.arrow")) for name in ("small", "large")]
    assert sizes[0] < 0.75 * sizes[1]


@pytest.mark.parametrize("options", [MergeOptions(), MergeOptions(encoding="lz4"), MergeOptions(ppi=250, canvas=64)])
def test_minutiae_that_are_not_finite_are_not_copied(source, tmp_path, monkeypatch, options):
    """Of a dataset that an earlier version wrote, and that is too large to be checked whole on opening."""
    with monkeypatch.context() as patch:
        patch.setattr("shard_writer.plausible", lambda values: True)
        with ShardWriter(tmp_path / "bad", 300, SIDE) as writer:
            for row in range(6):
                points = np.full((2, 4), np.nan if row == 4 else 20, np.float32)
                writer.add(Record(picture(row), f"bad {row}", row, "", points))
    with pytest.raises(UserError, match=r"bad.*\.arrow: minutiae that are not finite .*finger bad 4, impression 4"):
        merge([source, tmp_path / "bad"], tmp_path / "out", options, **QUIET)
    monkeypatch.setattr("fingerprint_accel.data.shards.CHECKED_AT_ONCE", 0)
    with pytest.raises(UserError, match=r"bad.*\.arrow: minutiae that are not finite .*finger bad 4, impression 4"):
        merge([source, tmp_path / "bad"], tmp_path / "out", options, **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["bad", "one"]


def test_merging_keeps_fingers_apart(source, tmp_path):
    other = dataset(tmp_path / "two", ["finger 9", "finger 10", "finger 11"], first=100)
    namesake = dataset(tmp_path / "deep" / "two", ["finger 9", "new"], first=200, encoding="lz4")
    summary = merge([source, other, namesake], tmp_path / "out", **QUIET)
    assert (summary.info.prints, summary.info.fingers, summary.info.encoding) == (30, 15, "raw")
    found = contents(tmp_path / "out")
    keys = {key for key, _ in found}
    assert keys == {
        *(f"finger {n}" for n in range(9)),
        *("one/finger 9", "two/finger 9", "two-2/finger 9", "finger 10", "finger 11", "new"),
    }
    for key, row in (("one/finger 9", 18), ("two/finger 9", 100), ("two-2/finger 9", 200), ("new", 202)):
        for impression in (0, 1):
            np.testing.assert_array_equal(found[key, impression][0], picture(row + impression))


def test_fingers_are_selected_by_their_keys(source, tmp_path):
    other = dataset(tmp_path / "two", ["finger 9", "anna/7"], first=100)
    merge([source, other], tmp_path / "test", MergeOptions(keep="finger [02468]|anna/.*"), **QUIET)
    merge([source, other], tmp_path / "train", MergeOptions(drop="finger [02468]|anna/.*"), **QUIET)
    test, train = contents(tmp_path / "test"), contents(tmp_path / "train")
    assert {key for key, _ in test} == {*(f"finger {n}" for n in (0, 2, 4, 6, 8)), "anna/7"}
    assert {key for key, _ in train} == {*(f"finger {n}" for n in (1, 3, 5, 7)), "one/finger 9", "two/finger 9"}
    merge([source, other], tmp_path / "all", **QUIET)
    assert_same_prints(contents(tmp_path / "all"), {**test, **train})
    assert sorted(set(open_dataset(tmp_path / "test").fingers)) == list(range(6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MergeOptions(drop="anna"), "--drop 'anna': no finger key matches; .* such as 'finger 0'"),
        (MergeOptions(keep="[0-9"), r"--keep '\[0-9': not a regular expression"),
        (MergeOptions(keep="finger 1", drop="finger .*"), "no finger is left"),
    ],
)
def test_a_selection_that_selects_nothing(source, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        merge([source], tmp_path / "out", options, **QUIET)
    assert not (tmp_path / "out").exists()


def test_a_prefixed_key_meets_no_other(tmp_path):
    one = dataset(tmp_path / "one", ["a", "one/a"])
    two = dataset(tmp_path / "two", ["a"])
    merge([one, two], tmp_path / "out", **QUIET)
    assert set(open_dataset(tmp_path / "out").key_of_finger) == {"one-2/a", "one/a", "two/a"}


def test_joining_fingers(source, tmp_path):
    other = dataset(tmp_path / "two", ["finger 9", "finger 10"], impressions=3, first=100)
    options = MergeOptions(join_fingers=True)
    summary = merge([source, other], tmp_path / "out", options, **QUIET)
    assert (summary.info.prints, summary.info.fingers) == (26, 11)
    found = contents(tmp_path / "out")
    assert sorted(number for key, number in found if key == "finger 9") == [0, 1, 2, 3, 4]
    for impression, row in ((0, 18), (1, 19), (2, 102), (3, 100), (4, 101)):
        np.testing.assert_array_equal(found["finger 9", impression][0], picture(row), err_msg=str(impression))


def test_renumbering():
    finger = np.array([0, 0, 1, 0, 0, 0, 1])
    impression = np.array([5, 1, 3, 5, 1, 2, 4])
    origin = np.array([0, 0, 0, 1, 1, 1, 1])
    assert renumbered(finger, impression, origin).tolist() == [5, 1, 3, 7, 6, 2, 4]


def test_impressions_above_16_bits_collide_with_no_other_finger():
    finger, impression = np.array([0, 0, 1, 1]), np.array([2**16, 2**17, 0, 2**16])
    origin = np.array([0, 0, 1, 1])
    assert renumbered(finger, impression, origin).tolist() == impression.tolist(), "all of them differ"
    dates = np.array([20190401120000, 20190401120000, 20190401120000, 2**62])
    assert renumbered(finger, dates, origin).tolist() == [20190401120000, 20190401120001, 20190401120000, 2**62]


def test_no_number_after_the_largest_impression():
    with pytest.raises(UserError, match=f"impression {2**63 - 1}: no higher number is left"):
        renumbered(np.zeros(2, np.int64), np.full(2, 2**63 - 1), np.array([0, 1]))


def test_impressions_as_large_as_dates_are_joined(tmp_path):
    sources = []
    for name in ("one", "two"):
        with ShardWriter(tmp_path / name, 300, SIDE) as writer:
            writer.add(Record(picture(0), "a", 20240131, "", np.empty((0, 4), np.float32)))
        sources.append(tmp_path / name)
    merge(sources, tmp_path / "out", MergeOptions(join_fingers=True), **QUIET)
    assert sorted(open_dataset(tmp_path / "out").impressions.tolist()) == [20240131, 20240132]


def test_a_damaged_shard(source, tmp_path):
    shard = source / "data-00001-of-00003.arrow"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=r"data-00001-of-00003.arrow: missing or damaged"):
        merge([source], tmp_path / "out", **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_damaged_lz4_row(tmp_path):
    source = dataset(tmp_path / "one", ["a", "b"], encoding="lz4")
    (path,) = source.glob("*.arrow")
    data = bytearray(path.read_bytes())
    first = pa.ipc.open_stream(bytes(data)).read_all()["image"][0].as_py()
    at = bytes(data).index(first)
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)
    sign(source, path)  # as if it was damaged before its checksum was computed
    with pytest.raises(UserError, match=r"one/data-00000-of-00001.arrow: holds a damaged print \(.*; copy or import"):
        merge([source], tmp_path / "out", MergeOptions(encoding="raw"), **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_mistakes_name_the_remedy(source, tmp_path, monkeypatch):
    def refused(match, sources, out, options=None, **more):
        with pytest.raises(UserError, match=match) as caught:
            merge(sources, out, options, **{**QUIET, **more})
        assert len(str(caught.value).splitlines()) == 1

    out = tmp_path / "out"
    refused("no source: give at least one dataset folder", [], out)
    refused("gone: not a dataset folder", [source, tmp_path / "gone"], out)
    refused("lies in the source", [source], source / "out")
    refused("lies in the source", [source], source, overwrite=True)
    refused("contains the source", [source], tmp_path, overwrite=True)
    refused("given 2 times", [source, source], out)
    refused("--dataset-ppi 7: must lie", [source], out, MergeOptions(ppi=7))
    refused("--canvas 7: must lie", [source], out, MergeOptions(canvas=7))
    refused("--rows-per-shard -1: must not be", [source], out, MergeOptions(rows_per_shard=-1))
    refused("--encoding zip", [source], out, MergeOptions(encoding="zip"))
    info = source / "fingerprint.json"
    info.rename(tmp_path / "elsewhere.json")
    refused("no fingerprint.json beside its shards", [source], out)
    (tmp_path / "elsewhere.json").rename(info)
    (tmp_path / "empty").mkdir()
    refused("empty: not a dataset folder; if it holds images, import them with `import`", [tmp_path / "empty"], out)
    enhanced = dataset(tmp_path / "enhanced", ["x"], enhanced=True)
    refused(f"{enhanced}: enhanced, but .*one is not; first merge .*one with --enhance", [source, enhanced], out)
    refused("enhanced already; leave out --enhance", [enhanced], out, MergeOptions(enhance=lambda image, ppi: image))
    full = SimpleNamespace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    refused(r"0.0 GB needed, but only 0.0 GB are free; free some space", [source], out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "enhanced", "one"]
    full.free = 70_000
    merge([source], out, MergeOptions(encoding="lz4"), **QUIET)  # what lz4 saves counts
    refused("exists already; choose another folder, or add --overwrite", [source], out)
