"""Which minutiae file becomes whose minutiae, and which is of no one's: by what an import writes."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.listing import Listing
from fingerprint_accel.data.pairing import Pairing
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.templates import iso_bytes
from tests.data.small_datasets import ridges

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


def save_image(path, phase=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ridges(phase)).save(path)


def save_template(path, quality, views=(0,)):
    """An ISO/IEC 19794-2:2005 record with one minutia, known by its quality, percent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    one = iso_bytes(np.array([[150, 150, math.pi / 2, quality / 100]], np.float32), 300, 300, 500)
    view = one[24:]
    body = b"".join(bytes([position]) + view[1:] for position in views)
    path.write_bytes(one[:8] + struct.pack(">I", 24 + len(body)) + one[12:22] + bytes([len(views)]) + one[23:24] + body)


def imported(source, out, layout="folders", **options):
    """Qualities of each print's minutiae, by its source; reasons by path; and how many lines gave them."""
    import_dataset(source, out, layout, 500, progress=False, **{"workers": 1, **options})
    shards = open_dataset(out)
    minutiae, counts = shards.minutiae(np.arange(len(shards)))
    quality = (100 * minutiae[..., 3]).round().astype(int)
    sources = shards.table["source"].to_pylist()
    found = {name: quality[row, : counts[row]].tolist() for row, name in enumerate(sources)}
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return found, {line["path"]: line["reason"] for line in rejected}, len(rejected)


def test_a_folder_of_minutiae_mirrors_the_folder_of_images(tmp_path):
    for number, finger in enumerate(("anna", "bob", "carl")):
        save_image(tmp_path / "scans" / finger / "1.png", number)
    save_template(tmp_path / "templates" / "anna" / "1.iso", 10)
    save_template(tmp_path / "templates" / "bob" / "1.iso", 80)
    found, rejected, _ = imported(tmp_path / "scans", tmp_path / "set", minutiae=tmp_path / "templates")
    assert found == {"anna/1.png": [10], "bob/1.png": [80], "carl/1.png": []}
    assert rejected == {}


def test_a_stem_of_several_images_is_none_of_theirs(tmp_path):
    """The one template 1.iso became the minutiae of all fingers."""
    for number, finger in enumerate(("anna", "bob", "carl")):
        save_image(tmp_path / "scans" / finger / "1.png", number)
    save_image(tmp_path / "scans" / "anna" / "only.png", 4)
    save_template(tmp_path / "templates" / "1.iso", 10)
    save_template(tmp_path / "templates" / "only.iso", 20)
    save_template(tmp_path / "templates" / "carl" / "1.iso", 80)
    answers = [
        imported(tmp_path / "scans", tmp_path / f"set{workers}", minutiae=tmp_path / "templates", workers=workers)
        for workers in (1, 2)
    ]
    found, rejected, lines = answers[0]
    assert answers[1] == answers[0]
    assert found == {"anna/1.png": [], "anna/only.png": [20], "bob/1.png": [], "carl/1.png": [80]}
    assert lines == 1
    assert "fits 3 prints" in rejected[str(tmp_path / "templates" / "1.iso")]


def test_an_image_that_is_rejected_has_a_stem_too(tmp_path):
    save_image(tmp_path / "scans" / "anna" / "1.png")
    save_image(tmp_path / "scans" / "deep" / "1.png", 1)
    save_image(tmp_path / "scans" / "lies_in_no_folder.png", 2)
    (tmp_path / "scans" / "deep" / "1.png").rename(tmp_path / "scans" / "1.png")
    save_template(tmp_path / "templates" / "1.iso", 10)
    found, rejected, _ = imported(tmp_path / "scans", tmp_path / "set", minutiae=tmp_path / "templates")
    assert found == {"anna/1.png": []}
    assert "fits 2 prints" in rejected[str(tmp_path / "templates" / "1.iso")]


def test_a_file_with_the_path_of_an_image_is_its_own(tmp_path):
    """SRC/1_1.png and SRC/deep/1_1.png are two fingers; FOLDER/1_1.iso is that of the first."""
    save_image(tmp_path / "scans" / "1_1.png")
    save_image(tmp_path / "scans" / "deep" / "1_1.png", 1)
    save_template(tmp_path / "templates" / "1_1.iso", 10)
    found, rejected, _ = imported(tmp_path / "scans", tmp_path / "set", "fvc", minutiae=tmp_path / "templates")
    assert found == {"1_1.png": [10], "deep/1_1.png": []}
    assert rejected == {}


def test_two_images_beside_one_template(tmp_path):
    save_image(tmp_path / "scans" / "anna" / "1.png")
    save_image(tmp_path / "scans" / "anna" / "1.bmp", 1)
    save_image(tmp_path / "scans" / "anna" / "2.png", 2)
    for number in (1, 2):
        save_template(tmp_path / "scans" / "anna" / f"{number}.iso", 10)
    found, rejected, lines = imported(tmp_path / "scans", tmp_path / "set")
    assert found == {"anna/1.bmp": [], "anna/1.png": [], "anna/2.png": [10]}
    assert lines == 1
    assert "fits 2 prints" in rejected[str(tmp_path / "scans" / "anna" / "1.iso")]


def test_a_template_that_a_csv_names_twice(tmp_path):
    for number in range(1, 7):
        save_image(tmp_path / f"{number}.png", number)
    for number, name in enumerate(("twice", "once", "5", "6")):
        save_template(tmp_path / f"{name}.iso", 10 + 10 * number)
    (tmp_path / "list.csv").write_text(
        "path,finger,impression,minutiae\n"
        "1.png,a,0,twice.iso\n"
        f"2.png,b,0,{tmp_path}/./twice.iso\n"
        "3.png,c,0,once.iso\n"
        "4.png,d,0,5.iso\n"  # also beside 5.png
        "5.png,e,0,\n"
        f"{tmp_path}/6.png,f,0,\n"
    )
    found, rejected, _ = imported(tmp_path / "list.csv", tmp_path / "set", "csv")
    assert list(found.values()).count([]) == 4
    assert (found["3.png"], found[f"{tmp_path}/6.png"]) == ([20], [40])
    assert {Path(path).name for path in rejected} == {"twice.iso", "5.iso"}
    assert all("fits 2 prints" in reason for reason in rejected.values())


def test_absolute_paths_of_a_csv_are_mirrored_too(tmp_path):
    for number, finger in enumerate(("anna", "bob")):
        save_image(tmp_path / "scans" / finger / "1.png", number)
        save_template(tmp_path / "templates" / "scans" / finger / "1.iso", 10 + 10 * number)
    save_image(tmp_path / "elsewhere" / "1.png", 3)
    folder = tmp_path / "lists"
    folder.mkdir()
    rows = [f"{tmp_path}/scans/anna/1.png", "../scans/bob/1.png", "../elsewhere/1.png"]
    (tmp_path / "list.csv").write_text(
        "path,finger,impression\n" + "".join(f"{row},{row},0\n" for row in [rows[0], "lists/" + rows[1]])
    )
    found, _, _ = imported(tmp_path / "list.csv", tmp_path / "set", "csv", minutiae=tmp_path / "templates")
    assert list(found.values()).count([10]) == list(found.values()).count([20]) == 1
    (folder / "list.csv").write_text("path,finger,impression\n" + "".join(f"{row},{row},0\n" for row in rows))
    found, _, _ = imported(folder / "list.csv", tmp_path / "other", "csv", minutiae=tmp_path / "templates")
    assert list(found.values()) == [[], [], []], "outside of the csv's folder there is no path to mirror"


@pytest.mark.parametrize("views", [(1, 2, 3), (1, 1)])
def test_a_record_of_several_fingers_is_none_of_theirs(tmp_path, views):
    save_image(tmp_path / "scans" / "3_1.png")
    save_template(tmp_path / "scans" / "3_1.iso", 10, views)
    found, rejected, _ = imported(tmp_path / "scans", tmp_path / "set", "fvc")
    assert found == {"3_1.png": []}
    what = "3 fingers" if len(set(views)) > 1 else "2 views of a finger"
    (reason,) = rejected.values()
    assert reason.startswith(f"minutiae: record of {what}, which cannot be told apart; ")


def test_a_million_rows_are_paired_at_once(tmp_path):
    """A tenth of 1.5 M rows, with no Python per row: 0.3 s where nothing else runs."""
    import time

    count = 150_000
    paths = pa.array([f"{number // 8:06d}/{number % 8}.png" for number in range(count)])
    zeros = pa.array(np.zeros(count, np.int32))
    columns = {"path": paths, "finger_key": paths, "impression": zeros, "ppi": zeros}
    listing = Listing(tmp_path, pa.table({**columns, "minutiae": pa.nulls(count, pa.string())}), [])
    save_template(tmp_path / "018749" / "7.iso", 100)
    started = time.process_time()
    pairing = Pairing(listing, tmp_path)
    assert time.process_time() - started < 3
    assert pairing.of(count - 1) == (tmp_path / "018749" / "7.iso", "")
    assert pairing.of(0) == (None, "")


def test_the_cases_that_were_reported(tmp_path):
    if not CASES.is_dir():
        pytest.skip(f"no {CASES}")
    same_stem = CASES / "minutiae-folder-same-stem"
    found, rejected, _ = imported(same_stem / "scans", tmp_path / "flat", minutiae=same_stem / "templates")
    assert not any(found.values())
    assert len(rejected) == 1
    found, rejected, _ = imported(same_stem / "scans", tmp_path / "tree", minutiae=same_stem / "templates-tree")
    assert [name for name, minutiae in found.items() if minutiae] == ["anna/1.png"]
    assert rejected == {}
    found, rejected, _ = imported(CASES / "ten-finger-template" / "scans", tmp_path / "ten", "fvc")
    assert not any(found.values())
    assert "3 fingers" in next(iter(rejected.values()))


def test_the_position_of_the_finger_chooses_from_a_record_of_several(tmp_path):
    for number, name in enumerate(("anna_02", "anna_03", "anna_07")):
        save_image(tmp_path / "scans" / f"{name}.png", number)
        save_template(tmp_path / "scans" / f"{name}.iso", 10 + 10 * number, (1, 2, 3))
    found, rejected, _ = imported(
        tmp_path / "scans", tmp_path / "set", "", names=r"(?P<subject>[a-z]+)_(?P<position>\d+)"
    )
    assert found == {"anna_02.png": [10], "anna_03.png": [20], "anna_07.png": []}
    assert [Path(path).name for path in rejected] == ["anna_07.iso"]
