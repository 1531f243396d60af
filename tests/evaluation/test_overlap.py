"""Whether a model has seen the prints it is tested on."""

import numpy as np
import pytest

from fingerprint_accel.config import Config, ModelConfig, ReadingConfig, save_yaml
from fingerprint_accel.data.splitting import split_prints
from fingerprint_accel.evaluation.overlap import training_overlap


def keys(*fingers, impressions=2):
    return {(f"{finger:02d}", n): "scan.png" for finger in fingers for n in range(impressions)}


@pytest.fixture
def run(tmp_path):
    """Makes a run folder with nothing in it but its configuration."""

    def make(name, data, init_from="", **reading):
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        config = Config(data=str(data), reading=ReadingConfig(**reading), model=ModelConfig(init_from=str(init_from)))
        save_yaml(config, folder / "config.yaml")
        return folder

    return make


def test_counts_fingers_and_prints(run, write_prints, tmp_path):
    write_prints(tmp_path / "train", keys(*range(10)))
    folder = run("run", tmp_path / "train", validation_fraction=0.0)
    test = write_prints(tmp_path / "test", keys(8, 9, 10, 11, impressions=3))
    overlap = training_overlap(folder / "model", test)
    assert (overlap.sets[0].fingers, overlap.sets[0].prints) == (2, 4)
    assert overlap.found
    assert overlap.known
    assert overlap.sentence() == (
        f"WARNING: the model was trained on 4 of 12 prints, 2 of 4 finger keys in common ({tmp_path / 'train'})"
    )


def test_same_names_of_other_fingers(run, write_prints, tmp_path):
    write_prints(tmp_path / "train", keys(1, 2, 3), seed=1)
    folder = run("run", tmp_path / "train", validation_fraction=0.0)
    overlap = training_overlap(folder, write_prints(tmp_path / "test", keys(3, 4)))
    assert overlap.sentence() == f"WARNING: 1 of 2 finger keys in common, no print in common ({tmp_path / 'train'})"
    overlap = training_overlap(folder, write_prints(tmp_path / "wide", keys(3, 4), side=80))
    assert "prints cannot be compared" in overlap.sentence()


def test_held_out_fingers_were_not_trained_on(run, write_prints, tmp_path):
    train = write_prints(tmp_path / "train", keys(*range(30)))
    rows = split_prints(train, ReadingConfig(validation_fraction=0.3)).validation
    held_out = np.bincount(train.fingers[rows], minlength=30) > 0
    assert 0 < held_out.sum() < 30
    folder = run("run", tmp_path / "train", validation_fraction=0.3)
    shared = training_overlap(folder, train).sets[0]
    assert (shared.fingers, shared.prints) == (30 - held_out.sum(), 60 - 2 * held_out.sum())
    test = write_prints(tmp_path / "test", keys(*held_out.nonzero()[0].tolist()))
    assert training_overlap(folder, test).sentence() == f"nothing in common ({tmp_path / 'train'})"


def test_held_out_subjects_and_folds_were_not_trained_on(run, write_prints, tmp_path):
    """Five subjects with two fingers each; a fold of three holds out one or two of them."""
    names = {
        (f"{subject:03d}_{position:02d}", n): "scan.png" for subject in range(5) for position in (2, 7) for n in (0, 1)
    }
    train = write_prints(tmp_path / "train", names)
    reading = {"split_by": "subject", "fold": "2/3"}
    split = split_prints(train, ReadingConfig(**reading))
    assert (split.groups, split.held_out, split.fingers, split.also_trained) == (5, 2, 4, 0)
    shared = training_overlap(run("run", tmp_path / "train", **reading), train).sets[0]
    assert (shared.fingers, shared.prints) == (6, 12)


def test_held_out_sessions_share_their_fingers(run, write_prints, tmp_path):
    """Four sessions of each of six fingers: the fingers are known, the prints of held-out sessions are not."""
    names = {(f"{finger}", n): f"session-{n}/{finger}.png" for finger in range(6) for n in range(4)}
    train = write_prints(tmp_path / "train", names)
    reading = {"split_by": r"(?P<session>session-\d)", "fold": "1/2"}
    split = split_prints(train, ReadingConfig(**reading))
    assert (split.groups, split.held_out, split.fingers, split.also_trained) == (4, 2, 6, 6)
    overlap = training_overlap(run("run", tmp_path / "train", **reading), train)
    assert (overlap.sets[0].fingers, overlap.sets[0].prints) == (6, 12)
    held_out = {name: source for name, source in names.items() if split.validation[train.impressions == name[1]].all()}
    test = write_prints(tmp_path / "test", held_out)
    assert training_overlap(tmp_path / "run", test).sentence() == (
        "WARNING: 6 of 6 finger keys in common, no print in common; the run held out sessions, not fingers "
        f"({tmp_path / 'train'})"
    )


def test_a_missing_table_of_subjects_leaves_it_unknown(run, write_prints, tmp_path):
    train = write_prints(tmp_path / "train", keys(*range(10)))
    overlap = training_overlap(run("run", tmp_path / "train", split_by=str(tmp_path / "gone.csv")), train)
    assert overlap.sentence() == f"unknown: training data not found ({tmp_path / 'train'})"


def test_what_a_model_started_from_counts_too(run, write_prints, tmp_path):
    write_prints(tmp_path / "old", keys(1, 2))
    write_prints(tmp_path / "new", keys(3, 4))
    old = run("old-run", tmp_path / "old", validation_fraction=0.0)
    new = run("new-run", tmp_path / "new", old / "model", validation_fraction=0.0)
    test = write_prints(tmp_path / "test", keys(2, 5))
    overlap = training_overlap(new, test)
    assert [(shared.fingers, shared.prints) for shared in overlap.sets] == [(0, 0), (1, 2)]
    lost = run("lost-run", tmp_path / "new", tmp_path / "gone", validation_fraction=0.0)
    assert training_overlap(lost, test).sentence() == (
        f"unknown: nothing in common ({tmp_path / 'new'}); earlier training data not recorded"
    )


def test_unknown_is_said(run, write_prints, tmp_path, tiny_model):
    test = write_prints(tmp_path / "test", keys(1, 2))
    assert training_overlap(run("run", tmp_path / "moved"), test).sentence() == (
        f"unknown: training data not found ({tmp_path / 'moved'})"
    )
    assert training_overlap(tiny_model, test).sentence() == "unknown: training data not recorded"
    assert (
        training_overlap("small", test)
        .sentence()
        .startswith("unknown: training data not found (bundled model small: see")
    )


def test_synthetic_sources_name_their_fingers(run, write_prints, tmp_path):
    names = {(f"synthetic-7-{number:06d}", n): "synthetic/clean/arch" for number in (19, 20, 21) for n in range(2)}
    test = write_prints(tmp_path / "test", names)
    overlap = training_overlap(run("run", "synth:fingers=20,seed=7,first=1"), test)
    assert overlap.sets[0].fingers == 2  # 19 and 20
    assert training_overlap(run("other", "synth:fingers=20,seed=8"), test).sets[0].fingers == 0
