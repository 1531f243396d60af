"""Prints of a folder, before any pixel is read: keys, impressions, and reasons."""

import subprocess
import sys
from pathlib import Path

import pytest
from record_files import iso_2011, noise, rows, transaction, type_2, type_4, type_14

from fingerprint_accel.data.listing import list_files, name_of
from fingerprint_accel.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def listed(source, layout="records", **options):
    """Name of every print -> its key and impression; and reasons by path."""
    listing = list_files(source, layout, **options)
    table = listing.table
    keys, impressions = table["finger_key"].to_pylist(), table["impression"].to_pylist()
    found = {name_of(table, row): (keys[row], impressions[row]) for row in range(len(table))}
    return found, dict(listing.rejected)


def card(subject="DOE", number="TCN1", **fields):
    return transaction(
        type_2(f018=subject),
        type_4(1, noise(1), 1),
        type_14(2, noise(2), 14, **fields),
        type_14(3, noise(3), 25),
        header={9: number},
    )


def test_prints_of_a_transaction(tmp_path):
    found, rejected = listed(write(tmp_path, {"cards/a.an2": card()}))
    assert found == {
        "cards/a.an2#3": ("TCN1_01", 0),
        "cards/a.an2#4-10": ("TCN1_10", 0),
        "cards/a.an2#4-09": ("TCN1_09", 0),
        "cards/a.an2#4-08": ("TCN1_08", 0),
        "cards/a.an2#4-07": ("TCN1_07", 0),
    }
    assert rejected == {"cards/a.an2#5": "a palm (position 25)"}


def test_transactions_of_one_number_are_told_apart_by_their_names(tmp_path):
    files = {"a.an2": card(), "b.an2": card(), "c.an2": card(number="TCN2"), "d.an2": card(number="")}
    found, _ = listed(write(tmp_path, files))
    assert {name.partition("#")[0]: key.rpartition("_")[0] for name, (key, _) in found.items()} == {
        "a.an2": "a", "b.an2": "b", "c.an2": "TCN2", "d.an2": "d",
    }  # fmt: skip


def test_the_subject_may_be_named_by_a_field(tmp_path):
    found, _ = listed(write(tmp_path, {"a.an2": card(), "b.an2": card()}), key=["2.018"])
    assert found["a.an2#3"] == ("DOE_01", 0)
    assert found["b.an2#3"] == ("DOE_01", 1), "a second impression of the same finger"


def test_missing_fingers_of_a_slap_are_not_expected(tmp_path):
    found, _ = listed(write(tmp_path, {"a.an2": card(f018=rows((7, "XX"), (9, "UP")))}))
    assert [name for name in found if "#4" in name] == ["a.an2#4-10", "a.an2#4-08"]


def test_names_tell_the_finger_of_a_file_with_one_print(tmp_path):
    files = {
        "1_1.png": PNG,
        "1_3.an2": transaction(type_4(1, noise(), 2)),
        "1_4": PNG,
        "2_1.fir": iso_2011([(noise(), 7, "NONE")]),
    }
    found, rejected = listed(write(tmp_path, files), "fvc")
    assert found == {"1_1.png": ("1", 1), "1_3.an2#2": ("1", 3), "1_4": ("1", 4), "2_1.fir#1": ("2", 1)}
    assert rejected == {}


def test_several_prints_without_a_position_cannot_be_told_apart(tmp_path):
    found, rejected = listed(write(tmp_path, {"a.an2": transaction(type_4(1, noise(), 0), type_4(2, noise(), 3))}))
    assert list(found) == ["a.an2#3"]
    assert "does not state the finger's position" in rejected["a.an2#2"]


def test_damaged_and_empty_containers_have_a_reason(tmp_path):
    files = {"a.an2": card(), "cut.an2": card()[:300], "text.an2": transaction(type_2())}
    found, rejected = listed(write(tmp_path, files))
    assert {name.partition("#")[0] for name in found} == {"a.an2"}
    assert rejected["cut.an2"].startswith("damaged")
    assert rejected["text.an2"] == "holds no image"


def test_slaps_as_image_files(tmp_path):
    files = {"7_slap13.wsq": PNG, "7_slap14.wsq": PNG, "8_slap2.wsq": PNG}
    found, _ = listed(write(tmp_path, files), "", names=r"(?P<subject>\d+)_slap(?P<position>\d+)")
    assert found["7_slap13.wsq-02"] == ("7_02", 0)
    assert found["7_slap14.wsq-07"] == ("7_07", 0)
    assert found["8_slap2.wsq"] == ("8_02", 0)
    assert len(found) == 9


def test_a_csv_names_records_and_slaps(tmp_path):
    write(tmp_path, {"a.an2": card(), "s.png": PNG, "t": PNG})
    (tmp_path / "list.csv").write_text(
        "path,finger,impression,position\na.an2#3,anna,20240131123059,\na.an2,bob,0,\ns.png,carl,1,15\nt,dora,,\nu.png,e,-1,\n"
    )
    found, rejected = listed(tmp_path / "list.csv", "csv")
    assert found["a.an2#3"] in (("anna", 20240131123059), ("bob_01", 0))
    assert found["s.png-06"] == ("carl_06", 1)
    assert "impression -1 is out of range" in rejected["u.png"]
    assert rejected["t"].endswith("must be whole numbers")


def test_composed_and_decomposed_accents_are_one_finger(tmp_path):
    write(tmp_path, {"Zo\u00eb/1.png": PNG, "Zoe\u0308/2.png": PNG})
    found, _ = listed(tmp_path, "folders")
    assert sorted(found.values()) == [("Zo\u00eb", 0), ("Zo\u00eb", 1)]


def test_unnumbered_impressions_come_behind_numbered_ones(tmp_path):
    write(tmp_path, {f"{name}.png": PNG for name in ("7_2", "7_a", "7_b", "8_a")})
    found, _ = listed(tmp_path, "", names=r"(?P<finger>\d+)_(?:(?P<impression>\d+)|\w)")
    assert found == {"7_2.png": ("7", 2), "7_a.png": ("7", 3), "7_b.png": ("7", 4), "8_a.png": ("8", 0)}


def test_a_folder_without_any_print_says_what_was_met(tmp_path):
    write(tmp_path, {"notes.txt": b"x", "photo.heic": b"x"})
    with pytest.raises(UserError, match=r"holds no print \(2 files, notes.txt: not an image \(.txt\)\)"):
        list_files(tmp_path, "fvc")


def test_a_million_names_take_less_than_500_mb():
    code = (
        "import pathlib; from fingerprint_accel.data import listing, walking\n"
        "paths = (f'{n // 100:05d}/{n // 10 % 10}_{n % 10}.png' for n in range(10**6))\n"
        "listing.walk = lambda *_: (walking.Met(path, walking.IMAGE) for path in paths)\n"
        "found = listing.list_files(pathlib.Path('.'), 'fvc')\n"
        "assert len(found.table) == 10**6\n"
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    root = str(Path(__file__).resolve().parents[2])
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env={"PYTHONPATH": root, "PATH": ""}
    )
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) < 500 * 1024
