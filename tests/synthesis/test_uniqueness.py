"""No two fingers are alike: the measure of `benchmarks/synthesis.py`, over fewer fingers, and its bound."""

from pathlib import Path

import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BOUND = 0.5  # 10,000 fingers reach 0.36


def test_fingers_differ(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from synthesis import measure_uniqueness

    found = measure_uniqueness(torch.device("cpu"), 40)
    assert found["pairs"] == 780
    assert found["highest correlation as they lie"] < BOUND
    assert found["correlation with neighbours by flow at the best shift, highest"] < BOUND
    assert found["correlation of a finger with itself under heavy noise, lowest"] > 0.6
