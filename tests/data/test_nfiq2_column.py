"""The column of NFIQ 2 scores: written where it is asked for, kept by a merge. Runs without nbis-py."""

import numpy as np
import pytest
from PIL import Image
from record_files import transaction, type_2, type_14
from shard_writer import ShardWriter

from fingerprint_accel.data import nbis
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.inspection import describe
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.print_file import ImageFile, Reading, Target, prepare
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.templates import NO_MINUTIAE
from tests.data.small_datasets import QUIET, SIDE, dataset, files, picture, ridges

COLUMNS = ["image", "finger", "impression", "finger_key", "source", "minutiae"]


def scored(folder, scores):
    """A dataset of one impression of fingers a, b, c, ... with these scores."""
    with ShardWriter(folder, 300, SIDE, rows_per_shard=2, nfiq2=True) as writer:
        for number, score in enumerate(scores):
            writer.add(Record(picture(number), "abcdef"[number], 0, folder.name, NO_MINUTIAE, nfiq2=score))
    return folder


def by_key(shards):
    return {shards.key_of_finger[finger]: score for finger, score in zip(shards.fingers, shards.nfiq2(), strict=True)}


@pytest.fixture
def asked(monkeypatch):
    """Stands in for NIST's program: every print scores 37; returns the images that it was shown."""
    shown = []
    monkeypatch.setattr(nbis, "import_nbis", lambda: None)
    monkeypatch.setattr(nbis, "nfiq2", lambda grey, ppi, name: shown.append((grey.shape, ppi)) or 37)
    return shown


def test_import_stores_scores_only_where_they_are_asked_for(tmp_path, asked):
    (tmp_path / "scans").mkdir()
    for name in ("101_1", "101_2", "102_1"):
        Image.fromarray(ridges(int(name[2]))).save(tmp_path / "scans" / f"{name}.png")
    import_dataset(tmp_path / "scans", tmp_path / "plain", "fvc", **QUIET)
    assert asked == []
    import_dataset(tmp_path / "scans", tmp_path / "scored", "fvc", nfiq2=True, **QUIET)
    assert asked == [((300, 300), 500)] * 3
    plain, known = (open_dataset(tmp_path / name) for name in ("plain", "scored"))
    assert plain.table.column_names == COLUMNS
    assert known.table.column_names == [*COLUMNS, "nfiq2"]
    assert known.table.drop_columns("nfiq2").equals(plain.table)
    assert known.nfiq2().tolist() == [37] * 3
    assert (plain.has_nfiq2, plain.nfiq2().tolist()) == (False, [-1] * 3)


@pytest.mark.parametrize(
    ("field", "expected", "measured"),
    [
        ((2, 63, "000F", 0), 63, 0),  # NIST's NFIQ 2
        ((2, 63, "00AB", 0), 37, 1),  # somebody else's score
        ((2, 254, "000F", 0), 37, 1),  # NIST's code for "not attempted"
        (None, 37, 1),
    ],
)
def test_a_records_own_score_is_not_measured_again(tmp_path, asked, field, expected, measured):
    fields = {} if field is None else {"f024": b"\x1f".join(str(item).encode() for item in field)}
    (tmp_path / "card.an2").write_bytes(transaction(type_2(), type_14(1, ridges(0.0), 2, "PNG", **fields)))
    prepared = prepare(ImageFile(tmp_path / "card.an2", record=3), Reading(), Target(300, 320, nfiq2=True))
    assert (prepared.reason, prepared.quality, len(asked)) == ("", expected, measured)


def test_a_merge_keeps_scores(tmp_path):
    scores = [12, -1, 88, 40, 0]
    merge([scored(tmp_path / "one", scores)], tmp_path / "again", MergeOptions(canvas=SIDE + 8), **QUIET)
    assert by_key(open_dataset(tmp_path / "again")) == dict(zip("abcde", scores, strict=True))
    plain = dataset(tmp_path / "plain", ["x", "y"])
    for order in (["one", "plain"], ["plain", "one"]):
        merge([tmp_path / name for name in order], tmp_path / "-".join(order), **QUIET)
        both = open_dataset(tmp_path / "-".join(order))
        assert by_key(both) == {**dict(zip("abcde", scores, strict=True)), "x": -1, "y": -1}
        assert both.nfiq2().dtype == np.int16
    merge([plain], tmp_path / "copy", **QUIET)
    assert open_dataset(tmp_path / "copy").table.column_names == COLUMNS
    assert b"nfiq2" not in b"".join(files(tmp_path / "copy").values())


def test_inspect_shows_the_median(tmp_path):
    assert "NFIQ 2                  median 40, scores of 3 prints (75%)" in describe(
        open_dataset(scored(tmp_path / "some", [40, 12, -1, 90]))
    )
    assert "NFIQ 2                  scores of 0 prints (0%)" in describe(open_dataset(scored(tmp_path / "none", [-1])))
    assert "NFIQ" not in describe(open_dataset(dataset(tmp_path / "plain", ["x"])))
