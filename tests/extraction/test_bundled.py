"""The models that come with the package: they open by name, know their thresholds, and tell fingers apart."""

import json
from pathlib import Path

import pytest

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.cli.extraction import compare
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.extraction.calibration import Calibration
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.models.saved_model import BUNDLED, bundled_models, find_model


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
    calibration = Calibration.from_notes(notes)
    assert calibration is not None
    assert calibration.synthetic
    as_is, posed = calibration.ways
    assert (as_is.poses, posed.poses) == (1, 6)
    assert as_is.nonmated > 10_000_000
    assert {"0.01", "0.001", "0.0001"} <= set(as_is.thresholds) & set(posed.thresholds)
    assert "The thresholds do not hold on real fingers" in card
    assert not {"eer", "thresholds", "thresholds_with_poses"} & set(notes)
    assert notes["usual_norm"] > 0


@pytest.mark.parametrize("name", ["base", "small"])
def test_it_tells_fingers_apart(name, prints):
    """Clean prints of 24 fingers that it was not trained on; by masked similarity and by the plain dot product."""
    shards = open_dataset(prints)
    extractor = FingerprintExtractor.from_pretrained(name)
    embeddings = extractor.extract(shards, progress=False)
    for cells in (extractor.cells, 0):
        scores = score_protocol("all-pairs", embeddings, shards.fingers, shards.impressions, cells=cells)
        assert compute_metrics(scores.mated, scores.nonmated).eer < 0.01


@pytest.mark.parametrize(
    ("model", "reference", "probe", "mated"),
    [
        ("small", "fvc2002_db1_b/101_1.tif", "fvc2002_db1_b/101_2.tif", True),
        ("small", "fvc2002_db1_b/101_1.tif", "fvc2002_db1_b/102_1.tif", False),
        ("small", "fvc2000_db1_b/103_1.tif", "fvc2000_db1_b/103_2.tif", True),
        ("small", "fvc2000_db1_b/103_1.tif", "fvc2000_db1_b/105_1.tif", False),
        ("base", "fvc2002_db1_b/101_1.tif", "fvc2002_db1_b/101_2.tif", True),
        ("base", "fvc2002_db1_b/101_1.tif", "fvc2002_db1_b/102_1.tif", False),
    ],
)
def test_two_real_prints(shared_data, capsys, model, reference, probe, mated):
    """They lie on their sides of the threshold from synthetic prints, but nothing is decided by it."""
    compare(shared_data / reference, shared_data / probe, model, 500, poses=True)
    similarity, why = capsys.readouterr().out.splitlines()
    assert why.startswith("no decision: the thresholds come from synthetic prints and do not hold on real fingers; ")
    calibration = Calibration.from_notes(find_model(model).notes)
    assert (float(similarity.split()[1]) >= calibration.way(6).thresholds["0.01"]) == mated
    assert -1 <= float(similarity.split()[1]) <= 1


def test_a_folder_of_that_name_wins(small, tmp_path, monkeypatch):
    small.save_pretrained(tmp_path / "small", notes={"mine": True})
    monkeypatch.chdir(tmp_path)
    assert FingerprintExtractor.from_pretrained("small").notes == {"mine": True}
    assert FingerprintExtractor.from_pretrained(Path("small")).notes == {"mine": True}
