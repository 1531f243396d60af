"""Judges that nobody here wrote: NIST's detector finds our minutiae, NIST's matcher tells our fingers apart."""

from pathlib import Path

import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.writing import write_synthetic_dataset

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from realism import measure_dataset

    from fingerprint_accel.data.nbis import Nbis

    try:
        Nbis()
    except UserError as error:
        pytest.skip(str(error))
    return measure_dataset


def test_clean_prints_hold_the_minutiae_they_list(measure, tmp_path):
    write_synthetic_dataset(tmp_path / "set", 7, 2, seed=21, style=Style(quality="clean"), workers=1, progress=False)
    found = measure(tmp_path / "set", 14, 7, 1)
    assert found["precision"] >= 0.8
    assert found["recall"] >= 0.7
    assert found["apart_px"] < 2, "canvas pixels"
    assert found["turned_degrees"] < 8, "the detector's directions come in steps of 11 degrees"
    assert 18 <= found["truth_per_cm2"] <= 25


def test_default_prints_are_as_hard_as_real_ones(measure, tmp_path):
    write_synthetic_dataset(tmp_path / "set", 12, 4, seed=22, workers=1, progress=False)
    found = measure(tmp_path / "set", 48, 300, 1)
    assert 0.005 <= found["eer"] <= 0.10
    assert found["precision"] >= 0.8
    assert 18 <= found["truth_per_cm2"] <= 25
    assert 0.42 < found["period_mean_mm"] < 0.49, "real sets: 0.44 to 0.47"
    assert 0.5 < found["endings_share"] < 0.8, "real sets: 0.55 to 0.73"
    assert 1.4 < found["area_cm2_median"] < 2.2, "real sets: 1.5 to 2.0"
