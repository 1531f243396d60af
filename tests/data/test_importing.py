import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image
from slap_images import prints_of

from fingerprint_accel.data import import_shard, importing, shard_writing
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.listing import list_files
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError

OPTIONS = {"ppi": 500, "workers": 1, "progress": False}


def ridges(phase=0.0, side=300):
    y, x = np.mgrid[:side, :side]
    inside = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.42 * side) ** 2
    return np.where(inside, 128 + 100 * np.cos(x / 1.5 + phase + y / 9), 255).astype(np.uint8)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for finger in (101, 102, 103):
        for impression in (1, 2):
            Image.fromarray(ridges(finger + impression)).save(folder / f"{finger}_{impression}.png")
    return folder


def test_import_is_the_same_for_any_number_of_workers(source, tmp_path):
    summaries = [import_dataset(source, tmp_path / f"set{n}", "fvc", 500, workers=n, progress=False) for n in (1, 2)]
    assert summaries[0].info == summaries[1].info
    assert (summaries[0].info.prints, summaries[0].info.fingers) == (6, 3)
    assert (tmp_path / "set1" / "rejected.jsonl").read_text() == ""
    shards = open_dataset(tmp_path / "set1")
    assert sorted(shards.key_of_finger) == ["101", "102", "103"]
    assert sorted(shards.impressions.tolist()) == [1, 1, 1, 2, 2, 2]


def test_rows_are_shuffled_over_fingers(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for finger in range(1, 11):
        for impression in range(1, 5):
            Image.fromarray(ridges(finger)).save(folder / f"{finger}_{impression}.png")
    import_dataset(folder, tmp_path / "set", "fvc", **OPTIONS)
    fingers = open_dataset(tmp_path / "set").fingers
    assert (np.diff(fingers) == 0).sum() < 15, "sorted by finger it would be 30"


def test_every_bad_file_is_imported_rightly_or_listed(source, tmp_path):
    whole = (source / "101_1.png").read_bytes()
    good = Image.fromarray(ridges())
    bad = {
        "104_1.png": whole[: len(whole) // 2],
        "105_1.png": b"",
        "108_1.tif": b"this is text",
    }
    for name, data in bad.items():
        (source / name).write_bytes(data)
    Image.new("L", (400, 400), 255).save(source / "106_1.png")
    Image.new("L", (1, 1), 0).save(source / "107_1.png")
    Image.new("1", (10_000, 10_000)).save(source / "109_1.png")
    good.save(source / "holiday.png")
    good.convert("CMYK").save(source / "201_1.tif")
    Image.fromarray(ridges().astype(np.uint16) * 257).save(source / "202_1.png")
    good.save(source / "203_1.gif", save_all=True, append_images=[Image.new("L", (300, 300), 255)])
    good.convert("RGB").save(source / "204_1.jpg")
    (source / "README.txt").write_text("not an image")
    summary = import_dataset(source, tmp_path / "set", "fvc", **OPTIONS)
    lines = [json.loads(line) for line in (tmp_path / "set" / "rejected.jsonl").read_text().splitlines()]
    reasons = {line["path"]: line["reason"] for line in lines}
    assert set(reasons) == {*bad, "106_1.png", "107_1.png", "109_1.png", "holiday.png", "README.txt", "203_1.gif"}
    assert reasons["203_1.gif"] == "further pages: only the first of 2 is imported"
    assert reasons["README.txt"] == "not an image (.txt)"
    assert reasons["105_1.png"] == "empty file: copy it again"
    assert reasons["106_1.png"].startswith("blank: ")
    assert reasons["109_1.png"].startswith("too large")
    assert reasons["holiday.png"] == "name does not look like 101_1.tif"
    assert summary.rejected.total() == 9
    shards = open_dataset(tmp_path / "set")
    assert {"201", "202", "203", "204"} <= set(shards.key_of_finger)
    reference = shards.image(int(np.flatnonzero(shards.fingers == shards.key_of_finger.index("202"))[0])).astype(int)
    for key in ("201", "203", "204"):
        row = int(np.flatnonzero(shards.fingers == shards.key_of_finger.index(key))[0])
        assert np.abs(shards.image(row) - reference).mean() < 3, f"finger {key} is the same picture"


def test_csv(source, tmp_path):
    listing = source / "list.csv"
    listing.write_text(
        "path,finger,impression,ppi\n"
        "101_1.png,Zoë left 007,0,500\n"
        f"{source / '101_2.png'},Zoë left 007,1,\n"
        "102_1.png,,0,500\n"
        "102_2.png,b,x,500\n"
        "gone.png,b,0,500\n"
    )
    summary = import_dataset(listing, tmp_path / "set", "csv", **OPTIONS)
    assert open_dataset(tmp_path / "set").key_of_finger == ["Zoë left 007"]
    assert summary.info.prints == 2
    assert summary.rejected == {"no finger": 1, "impression and ppi must be whole numbers": 1, "cannot be read": 1}


def test_two_files_for_one_impression(source, tmp_path):
    """The first counts; the other is listed, with the file that it repeats."""
    Image.fromarray(ridges()).save(source / "101_1.bmp")
    summary = import_dataset(source, tmp_path / "set", "fvc", **OPTIONS)
    assert summary.info.prints == 6
    assert summary.rejected == {"same finger and impression": 1}
    line = json.loads((tmp_path / "set" / "rejected.jsonl").read_text())
    assert line == {"path": "101_1.png", "reason": "same finger and impression: as 101_1.bmp"}


@pytest.mark.parametrize("lowest", [0, 1])
def test_flx_impressions_count_from_zero(tmp_path, lowest):
    folder = tmp_path / "scans" / "deep" / "er"
    folder.mkdir(parents=True)
    for finger in (lowest, lowest + 1):
        for impression in range(lowest, lowest + 3):
            Image.fromarray(ridges(finger + impression)).save(folder / f"{finger}_{impression}.png")
    import_dataset(tmp_path / "scans", tmp_path / "set", "flx", **OPTIONS)
    shards = open_dataset(tmp_path / "set")
    assert sorted(shards.impressions.tolist()) == [0, 0, 1, 1, 2, 2]
    assert sorted(shards.key_of_finger) == [str(lowest), str(lowest + 1)]


def test_minutiae_beside_the_image_or_elsewhere(source, tmp_path):
    (source / "101_1.xyt").write_text("150 150 45 80\n100 150 10 20\n")
    (source / "101_2.xyt").write_text("broken")
    summary = import_dataset(source, tmp_path / "set", "fvc", **OPTIONS)
    assert summary.info.with_minutiae == 1
    assert summary.rejected == {"minutiae": 1}
    assert summary.info.prints == 6, "a damaged minutiae file does not cost the image"
    shards = open_dataset(tmp_path / "set")
    minutiae, counts = shards.minutiae(np.arange(6))
    found = minutiae[counts > 0][0]
    np.testing.assert_allclose(found[0, 0] - found[1, 0], 50 * 300 / 500, atol=1e-3)
    elsewhere = tmp_path / "templates"
    elsewhere.mkdir()
    shutil.copy(source / "101_1.xyt", elsewhere / "103_2.xyt")
    summary = import_dataset(source, tmp_path / "other", "fvc", minutiae=elsewhere, **OPTIONS)
    assert summary.info.with_minutiae == 1


def test_minutiae_that_are_not_finite_do_not_cost_the_image(source, tmp_path):
    """They were imported, and ended the training in an IndexError that named nothing."""
    (source / "101_1.xyt").write_text("150 150 45 80\n150 nan 10 20\n")
    (source / "101_2.xyt").write_text("150 150 45 80\n150 150 1e300 20\n")
    (source / "102_1.xyt").write_text("150 150 45 80\n")
    summary = import_dataset(source, tmp_path / "set", "fvc", **OPTIONS)
    assert (summary.info.prints, summary.info.with_minutiae) == (6, 1)
    lines = [json.loads(line) for line in (tmp_path / "set" / "rejected.jsonl").read_text().splitlines()]
    assert {line["path"]: line["reason"] for line in lines} == {
        str(source / name): "minutiae: minutia 2 has numbers that are not finite or above 65535"
        for name in ("101_1.xyt", "101_2.xyt")
    }


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("socofing", {}, "try --layout fvc"),
        ("fvc", {"ppi": 7}, "--ppi 7"),
        ("csv", {}, "cannot be read"),
    ],
)
def test_mistakes_name_the_remedy(source, tmp_path, layout, options, message):
    with pytest.raises(UserError, match=message):
        import_dataset(source, tmp_path / "set", layout, **{**OPTIONS, **options})
    assert not list(tmp_path.glob("*set*")), "nothing half-made is left"


def test_several_shards_and_fingers_without_a_usable_image(source, tmp_path, monkeypatch):
    """Numbers of fingers have no gaps for who opens the dataset, and shards without a print are left out."""
    monkeypatch.setattr(shard_writing, "LEAST_ROWS", 1)
    for name in ("100_1.png", "100_2.png", "102_1.png"):
        (source / name).write_bytes(b"nothing")
    for workers in (1, 2):
        out = tmp_path / f"set{workers}"
        summary = import_dataset(source, out, "fvc", 500, workers=workers, progress=False)
        assert (summary.info.prints, summary.info.fingers, summary.rejected.total()) == (5, 3, 3)
    shards = open_dataset(tmp_path / "set1")
    assert len(shards.info.sha256) == 5
    assert set(shards.fingers) == {0, 1, 2}
    assert sorted(shards.key_of_finger) == ["101", "102", "103"]
    for row, finger in enumerate(shards.fingers):
        assert shards.table["finger_key"][row].as_py() == shards.key_of_finger[finger]
    assert {path.name: path.read_bytes() for path in (tmp_path / "set1").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "set2").iterdir()
    }
    assert datasets.load_from_disk(str(tmp_path / "set1")).num_rows == 5


def test_a_mended_file_is_read_again(source, tmp_path, monkeypatch):
    """Where an import was interrupted, the shards of files that have changed meanwhile are made again."""
    monkeypatch.setattr(shard_writing, "LEAST_ROWS", 1)
    whole = (source / "101_1.png").read_bytes()
    (source / "101_1.png").write_bytes(b"nothing")
    with monkeypatch.context() as patch:
        patch.setattr(importing.ImportJob, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_dataset(source, tmp_path / "set", "fvc", **OPTIONS)
    (source / "101_1.png").write_bytes(whole)
    made = []
    prepare = import_shard.prepare
    monkeypatch.setattr(import_shard, "prepare", lambda file, *how: (made.append(file.name), prepare(file, *how))[1])
    assert import_dataset(source, tmp_path / "set", "fvc", **OPTIONS).info.prints == 6
    assert made == ["101_1.png"]


def test_nothing_could_be_used(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "1_1.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"scans: none of 1 images could be used \(1 x not an image\)"):
        import_dataset(tmp_path / "scans", tmp_path / "set", "fvc", **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]


def test_nothing_to_import(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image file"):
        import_dataset(tmp_path / "empty", tmp_path / "set", "fvc", **OPTIONS)
    with pytest.raises(UserError, match="no such folder"):
        import_dataset(tmp_path / "gone", tmp_path / "set", "fvc", **OPTIONS)


def test_a_large_tree_is_listed_compactly(tmp_path, monkeypatch):
    """Memory per listed file stays far below that of a Python object per field (about 400 bytes)."""
    import tracemalloc

    import pyarrow as pa

    from fingerprint_accel.data import listing, walking

    def walk(count):
        paths = (f"{n // 8:06d}_{n % 8 + 1}.png" for n in range(count))
        monkeypatch.setattr(listing, "walk", lambda *_: (walking.Met(path, walking.IMAGE) for path in paths))

    walk(8)
    list_files(tmp_path, "fvc")  # libraries import what they need
    count = 150_000
    walk(count)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    found = list_files(tmp_path, "fvc")
    python_now, python_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.table) == count
    assert python_now / count < 40
    assert python_peak / count < 130, "one chunk of rows at a time"
    assert (pa.total_allocated_bytes() - before) / count < 60


def test_real_prints_are_all_imported(shared_data, tmp_path):
    for name, layout, ppi, prints, minutiae in (
        ("fvc2002_db1_b", "fvc", 500, 80, 0),
        ("fvc2002_db2_b", "fvc", 569, 80, 0),
        ("flx_example", "flx", 500, 100, 100),
    ):
        summary = import_dataset(shared_data / name, tmp_path / name, layout, ppi, workers=1, progress=False)
        assert (summary.info.prints, summary.info.fingers) == (prints, 10)
        assert summary.rejected.total() == 0
        assert summary.info.with_minutiae == minutiae


def prints_at(folder, ppi, fingers, first=0):
    """Synthetic prints of this resolution."""
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(prints_of(list(range(first, first + fingers)))[0]):
        side = round(560 * ppi / 500)
        Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{first + number}_1.png")


def notes(folder):
    file = folder / "notes.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize(
    ("true", "stated", "named"), [(1000, 500, 1000), (500, 1000, 500), (250, 500, 250), (500, 500, 0)]
)
def test_a_resolution_that_ridges_contradict_is_said(tmp_path, capsys, true, stated, named):
    prints_at(tmp_path / "scans", true, 4)
    summary = import_dataset(tmp_path / "scans", tmp_path / "set", "fvc", stated, workers=1, progress=False)
    about_the_set = [line["note"] for line in notes(tmp_path / "set") if line["path"] == "."]
    if not named:
        assert notes(tmp_path / "set") == []
        return
    assert len(about_the_set) == 1
    assert f"if {stated} ppi is a guess, import again with --ppi {named} --overwrite" in about_the_set[0]
    summary.show()
    assert f"note: {about_the_set[0]}" in capsys.readouterr().out


def test_single_prints_of_another_resolution_are_listed(tmp_path):
    prints_at(tmp_path / "scans", 500, 8)
    prints_at(tmp_path / "scans", 1000, 1, first=90)
    import_dataset(tmp_path / "scans", tmp_path / "set", "fvc", **OPTIONS)
    found = notes(tmp_path / "set")
    assert [line["path"] for line in found] == ["90_1.png"]
    assert "ridges unlike those of the others" in found[0]["note"]


def test_tags_that_contradict_and_dark_paper_are_noted(tmp_path):
    prints_at(tmp_path / "scans", 500, 3)
    with Image.open(tmp_path / "scans" / "0_1.png") as image:
        image.save(tmp_path / "scans" / "0_1.png", dpi=(1000, 1000))
    with Image.open(tmp_path / "scans" / "1_1.png") as image:
        Image.fromarray(255 - np.asarray(image)).save(tmp_path / "scans" / "1_1.png")
    summary = import_dataset(tmp_path / "scans", tmp_path / "set", "fvc", **OPTIONS)
    assert {line["path"]: line["note"] for line in notes(tmp_path / "set")} == {
        "0_1.png": "its tags say 1000 ppi, 500 were used",
        "1_1.png": "light ridges on dark paper: inverted",
    }
    assert summary.notes == {"its tags say 1000 ppi, 500 were used": 1, "light ridges on dark paper": 1}
    shards = open_dataset(tmp_path / "set")
    assert all(shards.image(row).mean() > 150 for row in range(3)), "paper is white"
