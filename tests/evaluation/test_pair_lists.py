"""Lists of comparisons: the right rows, or one line that says what is wrong."""

import json
import os

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.pair_lists import read_pairs_file

FLX = {  # the form in which flx keeps its benchmarks: subjects and impressions from 0
    "array_sample1": {"array_subject": [0, 9, 2, 2], "array_impression": [0, 3, 1, 1]},
    "array_sample2": {"array_subject": [0, 9, 5, 0], "array_impression": [1, 0, 2, 0]},
}


def named(shards, rows):
    """FINGER/IMPRESSION of rows."""
    return [[f"{shards.key_of_finger[shards.fingers[row]]}/{shards.impressions[row]}" for row in pair] for pair in rows]


def write(folder, text, name="pairs.csv"):
    file = folder / name
    file.write_text(text if isinstance(text, str) else json.dumps(text))
    return file


@pytest.mark.parametrize("mated", [True, False])
def test_csv_by_key_and_by_source(ten_fingers, tmp_path, mated):
    lines = [("1/0", "1/3", 1), ("left/3_1.png", "10/2", 0), ("4/1", "right/4_1.png", 1), ("2/0", "5/0", 0)]
    header = ["reference", "probe", "mated"][: 2 + mated]
    text = "\n".join(",".join(map(str, line[: 2 + mated])) for line in [header, *lines])
    pairs = read_pairs_file(write(tmp_path, text), ten_fingers)
    assert named(ten_fingers, pairs.mated) == [["1/0", "1/3"], ["4/1", "4/0"]]
    assert named(ten_fingers, pairs.nonmated) == [["3/0", "10/2"], ["2/0", "5/0"]]
    assert pairs.nonmated_possible == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reference,probe\n", "no comparison in this file"),
        ("", "not a csv of comparisons"),
        ("a,b\n1/0,1/1\n", "no column reference; the header must be reference,probe"),
        ("reference,probe\n1/0,1/1\n1/9,2/2\n99/0,2/2\n", r"comparison 2: .*no print '1/9' and 1 more; .* \(3/0\)"),
        ("reference,probe\n1/0,1/1\n2/0,2/1\n", "none of 2 comparisons is non-mated"),
        ("reference,probe\n1/0,2/1\n", "none of 1 comparisons is mated"),
        ("reference,probe\n1/0,1/1\n2/0,2/0\n", "comparison 2 compares a print with itself"),
        (
            "reference,probe,mated\n1/0,1/1,1\n1/0,2/0,1\n",
            "comparison 2 has mated 1, but in the dataset its prints are of different fingers",
        ),
        ("reference,probe,mated\n1/0,1/1,maybe\n", "comparison 1: mated is 'maybe'; write 1 or 0"),
    ],
)
def test_csv_that_cannot_be_used(ten_fingers, tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_pairs_file(write(tmp_path, text), ten_fingers)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(ten_fingers, tmp_path):
    for name in ("none.csv", "none.json"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            read_pairs_file(tmp_path / name, ten_fingers)


def test_a_source_of_several_prints(write_prints, tmp_path):
    shards = write_prints(tmp_path / "made", {("a", n): "synthetic/clean/arch" for n in range(2)} | {("b", 0): "one"})
    with pytest.raises(UserError, match="'synthetic/clean/arch' is the source of several prints"):
        read_pairs_file(write(tmp_path, "reference,probe\na/0,a/1\nsynthetic/clean/arch,one\n"), shards)
    pairs = read_pairs_file(write(tmp_path, "reference,probe\na/0,a/1\none,a/1\n"), shards)
    assert (pairs.mated.tolist(), pairs.nonmated.tolist()) == ([[0, 1]], [[2, 1]])


def test_flx_counts_from_zero_what_its_files_count_from_one(ten_fingers, tmp_path):
    pairs = read_pairs_file(write(tmp_path, FLX, "benchmark.json"), ten_fingers)
    assert named(ten_fingers, pairs.mated) == [["1/0", "1/1"], ["10/3", "10/0"]]
    assert named(ten_fingers, pairs.nonmated) == [["3/1", "6/2"], ["3/1", "1/0"]]


def test_flx_on_datasets_that_count_otherwise(write_prints, tmp_path):
    fvc = {(str(finger), n): f"{finger}_{n}.tif" for finger in range(101, 104) for n in (1, 2)}  # --layout fvc
    numbers = [[[100, 0], [100, 1]], [[101, 1], [102, 0]]]
    file = write(tmp_path, benchmark(numbers), "fvc.json")
    shards = write_prints(tmp_path / "fvc", fvc)
    pairs = read_pairs_file(file, shards)
    assert named(shards, pairs.mated) + named(shards, pairs.nonmated) == [["101/1", "101/2"], ["102/2", "103/1"]]
    mcyt = {(str(finger), n): "" for finger in range(3) for n in range(2)}
    shards = write_prints(tmp_path / "mcyt", mcyt)
    pairs = read_pairs_file(write(tmp_path, benchmark([[[0, 0], [0, 1]], [[2, 1], [1, 0]]]), "mcyt.json"), shards)
    assert named(shards, pairs.mated) + named(shards, pairs.nonmated) == [["0/0", "0/1"], ["2/1", "1/0"]]
    sd4 = {(f"{finger}_{finger + 3}", n): "" for finger in (1, 2) for n in range(2)}
    shards = write_prints(tmp_path / "sd4", sd4)
    pairs = read_pairs_file(write(tmp_path, benchmark([[[0, 0], [0, 1]], [[1, 1], [0, 0]]]), "sd4.json"), shards)
    assert named(shards, pairs.nonmated) == [["2_5/1", "1_4/0"]]


def benchmark(numbers):
    numbers = np.array(numbers)
    return {
        f"array_sample{side + 1}": {
            name: numbers[:, side, column].tolist() for column, name in enumerate(("array_subject", "array_impression"))
        }
        for side in range(2)
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "not a JSON file"),
        ({"pairs": []}, "not a verification benchmark of flx; it must have array_sample1"),
        (FLX | {"array_sample2": {"array_subject": [0], "array_impression": [1]}}, "of equal length"),
        (benchmark([[[0, 0], [0, 1]], [[10, 0], [1, 0]]]), r"no impression 0 of finger 11 \(flx's subject 10\)"),
        ([], "not a verification benchmark"),
    ],
)
def test_flx_benchmarks_that_cannot_be_used(ten_fingers, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        read_pairs_file(write(tmp_path, values, "benchmark.json"), ten_fingers)


def test_fingers_that_flx_cannot_name(write_prints, tmp_path):
    shards = write_prints(tmp_path / "named", {(key, n): "" for key in ("alice", "bob") for n in range(2)})
    with pytest.raises(UserError, match=r"flx names fingers by numbers, but .*'alice'; import it with --layout flx"):
        read_pairs_file(write(tmp_path, FLX, "benchmark.json"), shards)


def fold(gallery, probes, mated):
    def numbers(prints):
        return {"array_subject": [s for s, _ in prints], "array_impression": [i for _, i in prints]}

    return {"gallery": numbers(gallery), "probes": numbers(probes), "mated": mated}


def test_flx_searches(ten_fingers, tmp_path):
    folds = [fold([(0, 0), (4, 2)], [(4, 1), (7, 3)], [True, False]), fold([(1, 1)], [(1, 0)], [True])]
    found = read_pairs_file(write(tmp_path, folds, "open_set.json"), ten_fingers)
    assert [named(ten_fingers, part)[:] for part in found] == [[["1/0", "5/2"], ["5/1", "8/3"]], [["2/1"], ["2/0"]]]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (fold([(0, 0), (0, 1)], [(0, 2)], [True]), "fold 1 enrols a finger twice"),
        (fold([(0, 0)], [(1, 2)], [True]), "fold 1: `mated` contradicts the gallery"),
        (fold([(0, 0)], [(1, 2)], [False]), "json: none of the listed searches is mated"),
        (fold([(0, 0)], [], []), "fold 1 has no reference or no probe"),
        ({"gallery": {}}, "not an identification benchmark of flx"),
    ],
)
def test_flx_searches_that_cannot_be_used(ten_fingers, tmp_path, part, message):
    with pytest.raises(UserError, match=message):
        read_pairs_file(write(tmp_path, [part], "open_set.json"), ten_fingers)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"reference,probe,\x89\n1/0,1/1,1\n", "not a csv of comparisons"),
        (b'reference,probe\n1/0,"a\nb",1\n', "not a csv of comparisons"),
        (b"reference,probe,probe\n1/0,1/1,1/2\n", "several columns probe; the header must be"),
        (b"reference,probe" + b"," * 5_000 + b"\n" + b"," * 5_001 + b"\n", "more than 100 columns"),
        (b"reference,probe" + b"," * 900_000 + b"\n" + b"," * 900_001 + b"\n", "not a csv of comparisons"),
    ],
)
def test_a_damaged_or_hostile_csv_is_named_in_one_line_and_at_once(ten_fingers, tmp_path, data, message):
    """A million columns took 40 s and 8 GB."""
    file = tmp_path / "pairs.csv"
    file.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read_pairs_file(file, ten_fingers)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 99_999,
        "[" + "{}," * 200_000 + "{}]",
        json.dumps(FLX).replace("[0, 9, 2, 2]", "[0.7, 9, 2, 2]", 1),  # was read as 0
        json.dumps(FLX).replace("[0, 9, 2, 2]", '["0", 9, 2, 2]', 1),
        json.dumps(FLX).replace("[0, 9, 2, 2]", "[NaN, 9, 2, 2]", 1),
        json.dumps(FLX).replace("[0, 9, 2, 2]", f"[{2**63}, 9, 2, 2]", 1),
        json.dumps([fold([(0, 0)], [(0, 1)], [0.5])]),
    ],
)
def test_a_damaged_or_hostile_benchmark_of_flx_is_named_in_one_line(ten_fingers, tmp_path, text):
    with pytest.raises(UserError, match=r"benchmark\.json: not a") as error:
        read_pairs_file(write(tmp_path, text, "benchmark.json"), ten_fingers)
    assert "\n" not in str(error.value)


def test_a_list_that_is_a_pipe_does_not_hang(ten_fingers, tmp_path):
    for name in ("pairs.csv", "pairs.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}: cannot be read \(is not a regular file\)"):
            read_pairs_file(tmp_path / name, ten_fingers)
