import json

import numpy as np
import pytest

from fingerprint_accel.evaluation.history import find_run, read_history, smoothed


def write(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_records_become_arrays(tmp_path):
    file = write(
        tmp_path / "metrics.jsonl",
        {"step": 10, "kind": "train", "loss": 4.0, "learning_rate": 0.1, "skipped": 0.0},
        {"step": 10, "kind": "validation", "eer": 0.25, "tar@far=0.01": 0.5},
        {"step": 20, "kind": "train", "loss": 3.0, "learning_rate": 0.2, "margin": 0.3, "skipped": 1.0},
        {"step": 20, "kind": "validation", "eer": 0.125},
    )
    train, validation = read_history(file)
    np.testing.assert_array_equal(train["step"], [10, 20])
    np.testing.assert_array_equal(train["loss"], [4, 3])
    np.testing.assert_array_equal(validation["step"], [10, 20])
    np.testing.assert_array_equal(validation["eer"], [0.25, 0.125])
    assert set(train) == {"step", "loss", "learning_rate", "margin"}
    np.testing.assert_array_equal(train["learning_rate"], [0.1, 0.2])
    np.testing.assert_array_equal(train["margin"], [np.nan, 0.3])


def test_damaged_lines_are_skipped(tmp_path):
    file = write(
        tmp_path / "metrics.jsonl",
        {"step": 1, "kind": "train", "loss": 2.0},
        '{"step": 2, "kind": "tr',
        "",
        "7",
        '["train"]',
        '{"kind": "train", "loss": 9.0}',
        '{"step": "3", "kind": "train", "loss": 9.0}',
        '{"step": 4, "kind": ["train"], "loss": 9.0}',
        '{"step": 5, "kind": "train", "loss": "high"}',
        '{"step": 6, "kind": "train", "loss": NaN}',
        {"step": 7, "kind": "train", "loss": 0.0, "skipped": 20.0},
        {"step": 8, "kind": "train", "loss": 1.0},
    )
    with file.open("ab") as damaged:
        damaged.write(b"\xff\xfe\n")
    train, _ = read_history(file)
    np.testing.assert_array_equal(train["step"], [1, 5, 6, 7, 8])
    np.testing.assert_array_equal(train["loss"], [2, np.nan, np.nan, np.nan, 1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5], [5]),
        ([5, 1], [5, 1]),
        ([0, 3, 6, 0], [1.5, 3, 3, 3]),
        ([0, np.nan, 6, 0], [0, 3, 3, 3]),
        ([np.nan, np.nan, np.nan, 8], [np.nan, np.nan, 8, 8]),
    ],
)
def test_smoothed(values, expected):
    np.testing.assert_allclose(smoothed(np.array(values, float)), expected)


def test_smoothing_keeps_a_line_and_calms_noise():
    line = np.linspace(10, 2, 400)
    noisy = line + np.random.default_rng(0).normal(size=400)
    inner = slice(10, -10)
    np.testing.assert_allclose(smoothed(line)[inner], line[inner])
    assert np.std((smoothed(noisy) - line)[inner]) < 0.3


def test_where_a_run_is_found(tmp_path):
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step-00000012"
    copied = tmp_path / "elsewhere" / "model"
    for folder in (checkpoint, run / "model", copied):
        folder.mkdir(parents=True)
    for file in (run / "config.yaml", run / "model" / "config.json", copied / "config.json"):
        file.touch()
    for place in (run, run / "model", checkpoint):
        assert find_run(place) == run.resolve()
    assert find_run(copied) is None
    nested = run / "exports" / "best"
    nested.mkdir(parents=True)
    assert find_run(nested) is None
