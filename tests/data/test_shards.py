import sys
import time
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
from shard_writer import ShardWriter

from fingerprint_accel.data.mapping import resident_files
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.verifying import verify
from tests.editing import edited

SIDE = 64


def records(count):
    generator = np.random.default_rng(1)
    for row in range(count):
        image = generator.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        minutiae = generator.random((row % 5, 4)).astype(np.float32)
        yield Record(image, f"finger {row % 7} é", row // 7, f"file{row}.png", minutiae)


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "set", ppi=300, canvas=SIDE, rows_per_shard=1024) as writer:
        for record in records(2500):
            writer.add(record)
    return tmp_path / "set"


def test_chunks_of_large_canvases_stay_small(tmp_path, monkeypatch):
    """An Arrow chunk holds less than 2 GiB: 512 prints of 2048 x 2048 would be too many."""
    monkeypatch.setattr("fingerprint_accel.data.shard_writing.BYTES_PER_RECORD_BATCH", 3 * SIDE**2 + 1)
    with ShardWriter(tmp_path / "set", ppi=300, canvas=SIDE) as writer:
        for record in records(7):
            writer.add(record)
    shards = open_dataset(tmp_path / "set")
    assert [len(chunk) for chunk in shards.table["image"].chunks] == [3, 3, 1]


def test_what_is_written_is_read(folder):
    shards, expected = open_dataset(folder), list(records(2500))
    assert len(shards) == 2500
    assert len(shards.info.sha256) == 3
    assert shards.key_of_finger == [f"finger {n} é" for n in range(7)]
    np.testing.assert_array_equal(shards.fingers, np.arange(2500) % 7)
    np.testing.assert_array_equal(shards.impressions, np.arange(2500) // 7)
    for rows in (np.array([0, 1, 2]), np.array([2499, 0, 1024, 1023, 1024]), np.arange(2500)[::-37]):
        images = np.empty((len(rows), SIDE, SIDE), np.uint8)
        shards.read(rows, images)
        minutiae, counts = shards.minutiae(rows)
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(images[place], expected[row].image)
            np.testing.assert_array_equal(shards.image(int(row)), expected[row].image)
            assert counts[place] == len(expected[row].minutiae)
            np.testing.assert_array_equal(minutiae[place, : counts[place]], expected[row].minutiae)
            assert (minutiae[place, counts[place] :] == 0).all()


def test_stock_datasets_opens_it(folder):
    table = datasets.load_from_disk(str(folder))
    assert table.num_rows == 2500
    assert set(table.features) == {"image", "finger", "impression", "finger_key", "source", "minutiae"}
    row, expected = table[1500], list(records(2500))[1500]
    assert np.frombuffer(row["image"], np.uint8).reshape(SIDE, SIDE).tolist() == expected.image.tolist()
    assert row["source"] == "file1500.png"
    np.testing.assert_allclose(row["minutiae"], expected.minutiae.ravel())


def test_same_records_same_bytes(folder, tmp_path):
    with ShardWriter(tmp_path / "again", ppi=300, canvas=SIDE, rows_per_shard=1024) as writer:
        for record in records(2500):
            writer.add(record)
    assert open_dataset(folder).info == open_dataset(tmp_path / "again").info


def test_damage_is_one_clear_line(folder, tmp_path):
    shard = folder / "data-00001-of-00003.arrow"
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(UserError, match=r"data-00001-of-00003\.arrow: differs from its sha256"):
        verify(folder, progress=False)
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="data-00001"):
        open_dataset(folder)
    shard.unlink()
    with pytest.raises(UserError, match="data-00001"):
        open_dataset(folder)
    with pytest.raises(UserError, match="not a dataset folder"):
        open_dataset(tmp_path)
    edited(folder / "fingerprint.json", format_version=99)
    with pytest.raises(UserError, match="format 99"):
        open_dataset(folder)


def test_a_row_that_is_not_in_the_folders_encoding_is_refused(folder):
    """Shards of different encodings were copied together."""
    edited(folder / "fingerprint.json", encoding="lz4")
    with pytest.raises(UserError, match=r"mixed encodings: fingerprint\.json says lz4, but 1024 prints are raw"):
        open_dataset(folder)
    edited(folder / "fingerprint.json", encoding="raw", canvas=32)
    with pytest.raises(UserError, match="says raw, but 1024 prints are not 32 x 32 bytes each"):
        open_dataset(folder)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("column", range(4))
def test_minutiae_that_are_not_finite_are_not_written(tmp_path, number, column):
    minutiae = np.ones((3, 4), np.float32)
    minutiae[1, column] = number
    with (
        pytest.raises(UserError, match=r"^b\.png: minutiae that are not finite.*\(finger anna, impression 5\)"),
        ShardWriter(tmp_path / "set", ppi=300, canvas=SIDE) as writer,
    ):
        writer.add(Record(np.zeros((SIDE, SIDE), np.uint8), "anna", 5, "b.png", minutiae))
    assert list(tmp_path.iterdir()) == []


def spoilt(folder, rows, monkeypatch):
    """A dataset in which some rows got minutiae that are not finite, as versions before this check wrote them."""
    with monkeypatch.context() as patch:
        patch.setattr("shard_writer.plausible", lambda values: True)
        with ShardWriter(folder, ppi=300, canvas=SIDE, rows_per_shard=1024) as writer:
            for row, record in enumerate(records(2500)):
                if row in rows:
                    record.minutiae[-1, 2] = np.nan
                writer.add(record)
    return folder


@pytest.mark.parametrize("row", [1, 1024 + 899, 2499])
@pytest.mark.parametrize("whole", [True, False])
def test_minutiae_that_are_not_finite_are_found(tmp_path, monkeypatch, row, whole):
    """Few are looked at when the dataset is opened, many when they are read."""
    folder = spoilt(tmp_path / "set", {row}, monkeypatch)
    shard = f"data-{row // 1024:05d}-of-00003.arrow"
    message = rf"{shard}: minutiae that are not .*\(finger finger {row % 7} é, impression {row // 7}\); import it again"
    if whole:
        with pytest.raises(UserError, match=message):
            open_dataset(folder)
    else:
        monkeypatch.setattr("fingerprint_accel.data.shards.CHECKED_AT_ONCE", 1000)
        shards = open_dataset(folder)
        others = np.setdiff1d(np.arange(2500), [row])
        shards.minutiae(others)
        for rows in (np.array([row]), np.array([4, row, 0, 8]), np.arange(2500)):
            with pytest.raises(UserError, match=message):
                shards.minutiae(rows)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for resident pages")
def test_resident_memory_is_bounded(tmp_path, monkeypatch):
    """Every row of 200 MB is read, in random order, and never are more than 128 MB of it mapped."""
    monkeypatch.setattr("fingerprint_accel.data.shards.RESIDENT", 2**25)
    image = np.random.default_rng(0).integers(0, 256, (320, 320), dtype=np.uint8)
    with ShardWriter(tmp_path / "set", 300, 320, rows_per_shard=1024) as writer:
        for row in range(2048):
            writer.add(Record(image, f"{row}", 0, "", np.zeros((0, 4), np.float32)))
    shards = open_dataset(tmp_path / "set")
    before, most = resident_files(), 0
    order = np.random.default_rng(1).permutation(2048)
    out = np.empty((8, 320, 320), np.uint8)
    for start in range(0, 2048, 8):
        shards.read(np.sort(order[start : start + 8]), out)
        most = max(most, resident_files())
    assert (out == image).all()
    assert 2**23 < most - before < 2**27, "32 MB, and what eight prints touch"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for open files")
def test_an_open_dataset_holds_no_file_open(folder):
    """A dataset of 1.5 M prints has 1,465 shards; a process may have 1,024 open files by default."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    shards = open_dataset(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(shards) == 2500


def test_a_million_rows_open_at_once(tmp_path):
    """A tenth of 1.5 M rows: in a tenth of a second and of 150 MB; then any batch comes within a second."""
    image = np.zeros((8, 8), np.uint8)
    minutiae = np.ones((10, 4), np.float32)
    with ShardWriter(tmp_path / "set", 300, 8) as writer:
        for row in range(150_000):
            writer.add(Record(image, f"{row // 10}", row % 10, "", minutiae))
    open_dataset(tmp_path / "set")
    tracemalloc.start()
    started = time.process_time()
    shards = open_dataset(tmp_path / "set")
    assert time.process_time() - started < 0.5, "0.02 s where nothing else runs"
    assert tracemalloc.get_traced_memory()[0] < 15e6
    tracemalloc.stop()
    assert shards.most_minutiae == 10
    assert len(shards.key_of_finger) == 15_000
    assert shards.key_of_finger[1234] == "1234"


def test_an_exception_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "set", ppi=300, canvas=SIDE) as writer:
        writer.add(next(records(1)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_overwritten(folder):
    with pytest.raises(UserError, match="exists already"):
        ShardWriter(folder, ppi=300, canvas=SIDE)
