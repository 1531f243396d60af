import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.data import shard_writing
from fingerprint_accel.data.loader import subset_of_fingers
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.data.persons import person_in
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.truth import GRID
from fingerprint_accel.errors import UserError
from fingerprint_accel.synthesis import writing
from fingerprint_accel.synthesis.geometry import contact_cells
from fingerprint_accel.synthesis.impressions import impression_keys
from fingerprint_accel.synthesis.orientation import CLASSES, finger_size
from fingerprint_accel.synthesis.sensors import DEFAULT, QUALITIES, SENSORS, Style
from fingerprint_accel.synthesis.skin import finger_keys, finger_name
from fingerprint_accel.synthesis.source import open_source
from fingerprint_accel.synthesis.touch import Touch
from fingerprint_accel.synthesis.writing import Plan, write_synthetic_dataset

OPTIONS = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four fingers of seed 5 with three impressions each."""
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    write_synthetic_dataset(folder, 4, 3, seed=5, workers=1, **OPTIONS)
    return folder


def images(folder):
    """(finger_key, impression) -> image, minutiae."""
    shards = open_dataset(folder)
    minutiae, counts = shards.minutiae(np.arange(len(shards)))
    found = {}
    for row in range(len(shards)):
        key = (shards.key_of_finger[shards.fingers[row]], int(shards.impressions[row]))
        found[key] = (shards.image(row), minutiae[row, : counts[row]])
    return found


def assert_same_images(ours, whole):
    whole = images(whole)
    for key, (image, minutiae) in images(ours).items():
        np.testing.assert_array_equal(image, whole[key][0])
        np.testing.assert_array_equal(minutiae, whole[key][1])


def files(folder):
    """Bytes of all files in a folder, by name."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_the_same_bytes_again(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    write_synthetic_dataset(tmp_path / "set", 4, 3, seed=5, workers=1, overwrite=True, **OPTIONS)
    assert files(tmp_path / "set") == files(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "nothing else is left"


def test_several_shards_hold_the_same_prints_and_two_workers_write_the_same_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writing, "LEAST_ROWS", 6)
    monkeypatch.setattr(writing, "PIXELS_AT_ONCE", 2 * 320**2)
    for workers in (1, 2):
        write_synthetic_dataset(tmp_path / f"{workers}", 4, 3, seed=5, workers=workers, **OPTIONS)
    assert len(list((tmp_path / "1").glob("*.arrow"))) == 2, "of two fingers each"
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"], "nothing else is left"
    assert_same_images(tmp_path / "1", folder)


def test_several_fingers_at_once(folder, monkeypatch):
    """As on a GPU: same prints, though angles may differ in their last bit."""
    plan = Plan(4, 3, 5, 0, Style(), "cpu")
    monkeypatch.setattr(writing, "PIXELS_AT_ONCE", 5 * 320**2)
    monkeypatch.setitem(writing.FINGERS_AT_ONCE, "cpu", 3)
    rows = [row for some in writing._rendered(plan, np.arange(4)) for row in some]
    whole = images(folder)
    assert len(rows) == len(whole)
    for row in rows:
        image, minutiae = whole[f"synthetic-5-{row.finger:06d}", row.impression]
        assert row.image.tobytes() == image.tobytes()
        np.testing.assert_allclose(row.minutiae, minutiae, atol=1e-6)


def test_a_finger_is_the_same_in_any_set(folder, tmp_path):
    write_synthetic_dataset(tmp_path / "set", 1, 2, seed=5, first_finger=3, workers=1, **OPTIONS)
    assert set(images(tmp_path / "set")) == {("synthetic-5-000003", 0), ("synthetic-5-000003", 1)}
    assert_same_images(tmp_path / "set", folder)


def test_persons_have_ten_fingers(folder, tmp_path):
    write_synthetic_dataset(tmp_path / "set", 1, 1, seed=5, first_finger=3, workers=1, persons=True, **OPTIONS)
    ((key, impression), (image, _)), *_ = images(tmp_path / "set").items()
    assert (key, impression) == ("synthetic-5-p00000_04", 0)
    assert image.tobytes() == images(folder)["synthetic-5-000003", 0][0].tobytes()
    names = [finger_name(5, number, 1, True) for number in range(25)]
    read = [person_in(name) for name in names]
    assert read[:2] == [("synthetic-5-p00000", 1), ("synthetic-5-p00000", 2)]
    assert read[9:11] == [("synthetic-5-p00000", 10), ("synthetic-5-p00001", 1)]
    assert len(set(names)) == 25
    assert {person_in(finger_name(5, number, 4, True))[0] for number in range(10)} == {"synthetic-5-p00000s4"}


def test_what_a_row_holds(folder):
    rows = datasets.load_from_disk(str(folder))
    assert len(rows) == 12
    assert len({row["finger_key"] for row in rows}) == 4
    assert sorted(rows["impression"]) == sorted(4 * [0, 1, 2])
    assert {row["source"].rsplit("/", 1)[0] for row in rows} == {"synthetic/default"}
    assert {row["source"].rsplit("/", 1)[1] for row in rows} <= set(CLASSES)
    shards = open_dataset(folder)
    assert (np.diff(shards.fingers) == 0).sum() < 6, "sorted by finger it would be 8"
    sources = {(row["finger_key"], row["source"]) for row in rows}
    assert len(sources) == 4, "the class belongs to the finger"


def test_truth_is_that_of_the_source(folder):
    """What `synth` writes is what the endless source gives in its first epoch, to the bit, through the loader too."""
    shards = open_dataset(folder)
    source, _ = open_source("synth:fingers=4,impressions=3,seed=5", 0.0, torch.device("cpu"))
    every = source.read(np.arange(12), np.zeros(12, np.int64), truth=True)
    fingers, impressions = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    touch = Touch(finger_size(finger_keys(5, fingers)), impression_keys(5, fingers, impressions), Style())
    torch.testing.assert_close(every.pose, touch.pose(), rtol=1e-6, atol=1e-5)
    subset = subset_of_fingers(shards, np.ones(4, bool))
    assert np.count_nonzero(subset.shards.truth_known(subset.rows)) == 12
    with subset.loader(SampleOrder(12, 0), 6, truth=True) as loader:
        for batch, _ in zip(loader, range(2), strict=False):
            for place, row in enumerate(batch.index.tolist()):
                finger = int(shards.key_of_finger[shards.fingers[row]].rsplit("-")[-1])
                sample = 3 * finger + int(shards.impressions[row])
                assert torch.equal(batch.pose[place], every.pose[sample])
                assert torch.equal(batch.contact[place], every.contact[sample])
                assert torch.equal(batch.image[place], every.image[sample])
    assert source.read(np.arange(2), np.zeros(2, np.int64)).pose is None


def test_a_cell_is_in_contact_where_half_of_it_is():
    """Against counting the pixels of every cell, on canvases that 40 cells divide or not."""
    for size in (64, 80, 90):
        skin = torch.rand(2, size, size, generator=torch.Generator().manual_seed(size)) < 0.5
        skin[:, : size // 3] = True
        fine = skin.repeat_interleave(GRID, 1).repeat_interleave(GRID, 2).view(2, GRID, size, GRID, size)
        assert torch.equal(contact_cells(skin), 2 * fine.sum(dim=(2, 4)) >= size**2)


def test_minutiae_lie_on_the_print(folder):
    for image, minutiae in images(folder).values():
        assert 10 <= len(minutiae) <= 80
        assert (minutiae[:, :2] >= 0).all()
        assert (minutiae[:, :2] <= 320).all()
        assert (minutiae[:, 2] >= 0).all()
        assert (minutiae[:, 2] <= 2 * np.pi + 1e-3).all()
        assert (minutiae[:, 3] > 0).all()
        assert (minutiae[:, 3] <= 1).all()
        column, row = minutiae[:, :2].astype(int).clip(8, 311).T
        darkest = [image[y - 8 : y + 9, x - 8 : x + 9].min() for x, y in zip(column, row, strict=True)]
        assert np.mean(np.array(darkest) < 200) > 0.9, "where there is ink"


def test_contact_sheet_and_summary(tmp_path):
    style = Style(("capacitive",), "poor", 250, 200, partial=0.25)
    summary = write_synthetic_dataset(tmp_path / "set", 2, 2, style=style, workers=1, **OPTIONS)
    with Image.open(tmp_path / "set" / "contact_sheet.png") as sheet:
        assert sheet.size[1] == 2 * (200 + 18)
    assert (summary.info.ppi, summary.info.canvas, summary.info.prints, summary.made) == (250, 200, 4, 4)
    assert summary.classes.total() == 2
    assert len(summary.minutiae) == 4
    for word in ("minutiae per print", "left loop", "prints/s", str(tmp_path / "set")):
        assert word in summary.table()
    arguments = json.loads((tmp_path / "set" / "synthesis.json").read_text())
    assert (arguments["sensors"], arguments["quality"], arguments["seed"]) == (["capacitive"], "poor", 0)
    assert arguments["partial"] == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fingers": 0}, "--fingers 0"),
        ({"impressions": 0}, "--impressions 0"),
        ({"impressions": 32768}, "--impressions 32768: must lie between 1 and 32767"),
        ({"seed": -1}, "--seed -1"),
        ({"first_finger": -1}, "--first-finger -1"),
        ({"workers": -1}, "--workers -1"),
        ({"device": "tpu"}, "--device tpu"),
        ({"fingers": 10**5, "impressions": 800}, "GB needed"),
    ],
)
def test_mistakes(tmp_path, options, message):
    arguments = {"fingers": 1, "impressions": 1, **OPTIONS, **options}
    with pytest.raises(UserError, match=message):
        write_synthetic_dataset(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match="torch finds no GPU on this machine; use --device cpu"):
        write_synthetic_dataset(tmp_path / "set", 1, 1, device="cuda")


def test_the_command_line_knows_sensors_and_qualities():
    """It names them without importing the generator; here is what keeps the two together."""
    import inspect

    from fingerprint_accel.cli.data import synth

    assert inspect.signature(synth).parameters["sensors"].default == DEFAULT
    for word in (*SENSORS, *QUALITIES):
        assert f"      {word} " in (synth.__doc__ or "")
