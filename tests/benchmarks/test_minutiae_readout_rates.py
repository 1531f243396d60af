"""The minutiae benchmark counts what it says it counts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.extraction.extractor import FingerprintExtractor

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_rates_by_hand():
    import minutiae_readout

    truth = [np.array([[0, 0, 0, 1], [50, 0, 1, 1], [0, 50, 2, 1]], np.float32), np.zeros((0, 4), np.float32)]
    found = [np.array([[3, 4, 0.1, 1], [50, 0, 1 + math.pi, 1]], np.float32), np.zeros((2, 4), np.float32)]
    rates = minutiae_readout.rates(found, truth, 5.0, 0.2)
    assert (rates["precision"], rates["recall"], rates["per_print"]) == (1 / 4, 1 / 3, 2)
    assert rates["f1"] == pytest.approx(2 / 7)
    assert (rates["apart"], rates["degrees"]) == (5, pytest.approx(math.degrees(0.1)))


def test_true_maps_of_synthetic_prints_are_read_nearly_without_loss(prints):
    import minutiae_readout

    torch.manual_seed(0)
    model = ModelConfig(variant="Minu", trunk="compact", width=8, embedding_dim=16)
    extractor = FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
    truth = minutiae_readout.true_minutiae(open_dataset(prints), 256)[:24]
    assert sum(map(len, truth)) > 200
    found = minutiae_readout.read_true_maps(truth, extractor)
    rates = minutiae_readout.rates(found, truth, 300 / 25.4 * 0.3, math.radians(10))
    assert rates["precision"] > 0.97
    assert rates["recall"] > 0.93
