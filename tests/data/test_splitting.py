"""Which prints are held out for validation, and which groups of them stay together."""

import numpy as np
import pytest
from shard_writer import ShardWriter

from fingerprint_accel.config import ReadingConfig
from fingerprint_accel.data.loader import subset_of_prints
from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.splitting import split_prints
from fingerprint_accel.errors import UserError

SIDE = 32


@pytest.fixture
def dataset(tmp_path):
    """Writes a dataset of (finger key, impression, source) rows, in this order or in another."""

    def write(rows, seed=None, name="set"):
        order = range(len(rows)) if seed is None else permutation(len(rows), seed, 0).tolist()
        with ShardWriter(tmp_path / name, 300, SIDE, rows_per_shard=16) as writer:
            for row in order:
                key, impression, source = rows[row]
                image = np.zeros((SIDE, SIDE), np.uint8)
                writer.add(Record(image, key, impression, source, np.empty((0, 4), np.float32)))
        return open_dataset(tmp_path / name)

    return write


def grid(fingers, impressions, key="{}", source="{finger}_{impression}.png"):
    return [
        (key.format(finger), impression, source.format(finger=finger, impression=impression))
        for finger in range(fingers)
        for impression in range(impressions)
    ]


def prints_of(shards, rows):
    """Finger key and impression of some rows."""
    keys = [shards.key_of_finger[finger] for finger in shards.fingers[rows]]
    return set(zip(keys, shards.impressions[rows].tolist(), strict=True))


def held_out(shards, **reading):
    return prints_of(shards, split_prints(shards, ReadingConfig(**reading)).validation)


def keys(found):
    return {key for key, _ in found}


def test_a_share_of_the_fingers_whatever_the_order_of_the_rows(dataset):
    rows = grid(1000, 2)
    shards = dataset(rows)
    found = held_out(shards, validation_fraction=0.1)
    assert 67 < len(keys(found)) < 133, "a tenth, within 3.5 standard deviations"
    assert len(found) == 2 * len(keys(found)), "whole fingers"
    assert held_out(dataset(rows, seed=1, name="shuffled"), validation_fraction=0.1) == found
    assert not held_out(shards, validation_fraction=0.0)
    assert keys(found) < keys(held_out(shards, validation_fraction=0.2)), "a larger share contains the smaller one"
    assert not held_out(shards, validation_fraction=0.1, validation_data="another folder")


def test_new_data_moves_no_finger(dataset):
    before = keys(held_out(dataset(grid(600, 2)), validation_fraction=0.1))
    after = keys(held_out(dataset(grid(1000, 2), name="larger"), validation_fraction=0.1))
    assert before == {key for key in after if int(key) < 600}


@pytest.mark.parametrize("fraction", [1e-6, 0.01, 0.05, 0.1])
@pytest.mark.parametrize("fingers", [4, 5, 24])
def test_two_fingers_with_two_prints_each_at_least(dataset, fingers, fraction):
    """Fingers with one print are no use, so that they are not held out beyond the share."""
    rows = grid(fingers, 3) + grid(10, 1, key="single {}")
    shards = dataset(rows)
    split = split_prints(shards, ReadingConfig(validation_fraction=fraction))
    counts = np.bincount(shards.fingers[split.validation], minlength=fingers + 10)
    assert (counts[counts > 1] == 3).all()
    assert (counts > 1).sum() == 2, "no more than needed at these shares"
    assert (counts == 1).sum() <= 1 + 10 * fraction * 3
    assert split.extended == ("more than the share asked for" in split.note())
    assert (split.groups, split.fingers, split.also_trained) == (fingers + 10, (counts > 0).sum(), 0)


def test_the_note_names_the_numbers(dataset):
    shards = dataset(grid(24, 4))
    assert split_prints(shards, ReadingConfig(validation_fraction=1e-6)).note() == (
        "validation holds out 2 of 24 fingers (8 prints), more than the share asked for: error rates need two fingers "
        "with two prints each"
    )
    assert split_prints(shards, ReadingConfig(validation_fraction=0.3)).note() == ""


@pytest.mark.parametrize(
    ("rows", "reading", "expected"),
    [
        (grid(3, 4), {}, "3 fingers, 3 fingers with two prints or more: too few"),
        (grid(40, 1), {}, "40 fingers, 0 fingers with two prints or more: too few"),
        (grid(40, 1) + grid(1, 2, key="pair"), {}, "41 fingers, 1 finger with two prints or more: too few"),
        (grid(8, 4), {"validation_fraction": 0.99}, "lower --reading.validation-fraction, or set it to 0"),
        (grid(4, 2), {"fold": "2/3"}, "add prints, or use fewer --folds"),
        (
            grid(2, 4, key="anna_0{}"),
            {"split_by": "subject"},
            ", split by subject: 1 subject, 2 fingers, 2 fingers with two prints or more: too few",
        ),
    ],
)
def test_too_few_prints_are_refused_with_the_remedy(dataset, rows, reading, expected):
    shards = dataset(rows)
    with pytest.raises(UserError) as error:
        split_prints(shards, ReadingConfig(**{"validation_fraction": 0.1, **reading}))
    assert expected in str(error.value)
    assert str(error.value).startswith((f"{shards.folder}: ", f"{shards.folder}, split by "))
    assert not split_prints(shards, ReadingConfig(validation_fraction=0.0)).validation.any()


PEOPLE = [
    (f"{subject:05d}_{position:02d}", impression, f"sd/{subject:05d}_{position:02d}_{impression}.png")
    for subject in range(40)
    for position in (1, 6, 7)
    for impression in range(2)
]


def test_no_subject_is_on_both_sides(dataset, tmp_path):
    shards = dataset(PEOPLE)
    split = split_prints(shards, ReadingConfig(validation_fraction=0.2, split_by="subject"))
    sides = [{key[:5] for key, _ in prints_of(shards, rows)} for rows in (split.validation, ~split.validation)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 40
    assert split.note() == f"validation holds out {len(sides[0])} of 40 subjects ({3 * len(sides[0])} fingers, " + (
        f"{6 * len(sides[0])} prints)"
    )
    by_finger = split_prints(shards, ReadingConfig(validation_fraction=0.2))
    torn = [{key[:5] for key, _ in prints_of(shards, rows)} for rows in (by_finger.validation, ~by_finger.validation)]
    assert torn[0] & torn[1], "by finger they are"
    same = {"validation_fraction": 0.2, "split_by": r"^(?P<subject>\d{5})"}
    assert held_out(shards, **same) == prints_of(shards, split.validation)
    table = tmp_path / "persons.csv"
    lines = [f"{subject:05d}_{position:02d},{subject:05d}" for subject in range(40) for position in (1, 6, 7)]
    table.write_text("\n".join(["finger_key,subject", *lines]))
    assert held_out(shards, **{**same, "split_by": str(table)}) == prints_of(shards, split.validation)


def test_words_for_positions_name_a_subject_too(dataset):
    rows = [(f"{subject}_{hand}_{finger}", n, "x") for subject in range(6) for hand in ("left", "right")
            for finger in ("thumb", "little") for n in (0, 1)]  # fmt: skip
    split = split_prints(dataset(rows), ReadingConfig(validation_fraction=0.01, split_by="subject"))
    assert (split.groups, split.held_out, split.fingers) == (6, 1, 4), "one subject has two fingers with two prints"


def test_prints_of_a_session_stay_together(dataset, tmp_path):
    """Ten sessions of one print of each of 12 fingers: two sessions make mated pairs."""
    rows = grid(12, 10, source="day-{impression}/{finger}.png")
    shards = dataset(rows)
    reading = {"validation_fraction": 1e-6, "split_by": r"^(?P<session>[^/]+)/"}
    split = split_prints(shards, ReadingConfig(**reading))
    impressions = np.unique(shards.impressions[split.validation])
    assert len(impressions) == 2
    assert split.validation.sum() == 24
    assert split.note() == (
        "validation holds out 2 of 10 sessions (12 fingers, 24 prints), more than the share asked for: error rates "
        "need two fingers with two prints each; 12 of these fingers have training prints from other sessions, so "
        "error rates are those of known fingers in new sessions"
    )
    validation = subset_of_prints(shards, split.validation)
    assert np.array_equal(np.bincount(validation.labels), np.full(12, 2))
    table = tmp_path / "sessions.csv"
    table.write_text("source,session\n" + "\n".join(f"{source},{source.split('/')[0]}" for _, _, source in rows))
    assert held_out(shards, **{**reading, "split_by": str(table)}) == prints_of(shards, split.validation)


@pytest.mark.parametrize("split_by", ["", "subject"])
def test_folds_are_a_partition_of_about_equal_parts(dataset, split_by):
    shards = dataset(PEOPLE)
    parts = [held_out(shards, fold=f"{number}/7", split_by=split_by) for number in range(1, 8)]
    assert sum(map(len, parts)) == len(shards)
    assert set.union(*parts) == prints_of(shards, np.ones(len(shards), bool))
    groups = [{key[:5] if split_by else key for key, _ in part} for part in parts]
    assert sum(map(len, groups)) == (40 if split_by else 120)
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    shuffled = dataset(PEOPLE, seed=2, name="shuffled")
    assert held_out(shuffled, fold="3/7", split_by=split_by) == parts[2]


def test_fingers_with_pairs_are_spread_over_the_folds(dataset):
    """Ten fingers with two prints, a hundred with one."""
    shards = dataset(grid(10, 2, key="pair {}") + grid(100, 1))
    for number in range(1, 6):
        found = held_out(shards, fold=f"{number}/5")
        assert sum(key.startswith("pair") for key in keys(found)) == 2
        assert len(keys(found)) == 22


@pytest.mark.parametrize(
    ("split_by", "expected"),
    [
        ("subject", "no subject for 8 of 8 finger keys"),
        ("(", "not a regular expression"),
        ("(.)", "give subject, a regular expression with a group (?P<subject>...)"),
        ("(?P<subject>.)(?P<session>.)", "give subject, a regular expression with a group (?P<subject>...)"),
        ("(?P<session>day-[0-9])", "no session for 32 of 32 sources of"),
        ("missing.csv", "cannot be read (No such file or directory); give an existing file"),
        ("no columns.csv", "give it the columns finger_key,subject or source,session"),
        ("two.csv", "0 has the subjects anna and bert; keep one of the lines"),
        ("short.csv", "no subject for 7 of 8 finger keys"),
    ],
)
def test_a_split_that_does_not_fit_is_one_line(dataset, tmp_path, monkeypatch, split_by, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no columns.csv").write_text("finger,person\n0,anna\n")
    (tmp_path / "two.csv").write_text("finger_key,subject\n0,anna\n0,bert\n")
    (tmp_path / "short.csv").write_text("finger_key,subject\n0,anna\n")
    with pytest.raises(UserError) as error:
        split_prints(dataset(grid(8, 4)), ReadingConfig(split_by=split_by))
    assert expected in str(error.value)
    assert str(error.value).startswith(f"--reading.split-by {split_by}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fold", ["3/2", "0/2", "1/1", "2", "a/b"])
def test_a_fold_is_written_as_a_fraction(fold):
    with pytest.raises(UserError, match="write K/N with K from 1 to N"):
        ReadingConfig(fold=fold)


def test_what_is_held_out_lies_in_one_place():
    for name, value in (("split_by", "subject"), ("fold", "1/2")):
        with pytest.raises(UserError, match=f"reading.{name} holds out prints of the training data"):
            ReadingConfig(validation_data="other", **{name: value})
