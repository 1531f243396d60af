"""The models that come with the package: they open by name, know their thresholds, and tell fingers apart."""

import json
from pathlib import Path

import numpy as np
import pytest

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.evaluation.calibration import all_pairs
from fingerprint_accel.evaluation.metrics import compute_metrics
from fingerprint_accel.extraction.comparison import compare_command
from fingerprint_accel.training.saved_model import BUNDLED, bundled_models


@pytest.fixture(scope="module")
def small():
    return FingerprintExtractor.from_pretrained("small")


def test_there_are_two():
    assert bundled_models() == ["base", "small"]


@pytest.mark.parametrize("name", ["base", "small"])
def test_it_is_small_and_says_what_it_is(name):
    folder = BUNDLED / name
    assert (folder / "model.safetensors").stat().st_size < 16 * 2**20
    card = (folder / "README.md").read_text()
    for word in ("synthetic", "seed", "commit", "Apache", f"recipes/pretrain_{name}.py"):
        assert word in card
    notes = json.loads((folder / "config.json").read_text())["notes"]
    assert set(notes["thresholds_with_poses"]) == {"0.01", "0.001", "0.0001"}
    assert notes["usual_norm"] > 0


@pytest.mark.parametrize("name", ["base", "small"])
def test_every_beginning_tells_fingers_apart(name, prints):
    """Clean prints of 24 fingers that it was not trained on."""
    shards = open_dataset(prints)
    whole = FingerprintExtractor.from_pretrained(name).extract(shards, progress=False)
    for dims in (64, 128, 256, 512):
        embeddings = whole[:, :dims] / np.linalg.norm(whole[:, :dims], axis=1, keepdims=True)
        scores = all_pairs(embeddings, shards.fingers, shards.impressions)
        assert compute_metrics(scores.mated, scores.nonmated).eer < 0.01


@pytest.mark.parametrize(
    ("model", "reference", "probe", "verdict"),
    [
        ("small", "fvc2002_db1_b/101_1.tif", "fvc2002_db1_b/101_2.tif", "match"),
        ("small", "fvc2002_db1_b/101_1.tif", "fvc2002_db1_b/102_1.tif", "no match"),
        ("small", "fvc2000_db1_b/103_1.tif", "fvc2000_db1_b/103_2.tif", "match"),
        ("small", "fvc2000_db1_b/103_1.tif", "fvc2000_db1_b/105_1.tif", "no match"),
        ("base", "fvc2002_db1_b/101_1.tif", "fvc2002_db1_b/101_2.tif", "match"),
        ("base", "fvc2002_db1_b/101_1.tif", "fvc2002_db1_b/102_1.tif", "no match"),
    ],
)
def test_two_real_prints(shared_data, capsys, model, reference, probe, verdict):
    compare_command(shared_data / reference, shared_data / probe, model, 500, poses=True)
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["at FMR 0.01"].strip().startswith(f"{verdict} (")
    assert -1 <= float(lines["similarity"].split()[0]) <= 1


def test_a_folder_of_that_name_wins(small, tmp_path, monkeypatch):
    small.save_pretrained(tmp_path / "small", notes={"mine": True})
    monkeypatch.chdir(tmp_path)
    assert FingerprintExtractor.from_pretrained("small").notes == {"mine": True}
    assert FingerprintExtractor.from_pretrained(Path("small")).notes == {"mine": True}
