"""The tables about templates and quality measure what they say they measure."""

from pathlib import Path

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.template_formats import TemplateFormat
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def noisy(fingers, impressions, dims, noise):
    """Embeddings around a direction for each finger."""
    generator = np.random.default_rng(0)
    vectors = np.repeat(generator.standard_normal((fingers, dims)), impressions, axis=0)
    vectors += noise * generator.standard_normal(vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_rates_of_stored_templates():
    import real_sets
    import templates

    vectors = noisy(12, 4, 64, noise=1.5)
    prints = real_sets.Prints([], np.repeat(np.arange(12), 4), np.tile(np.arange(4), 12))
    scores = score_protocol("all-pairs", vectors, prints.fingers, prints.impressions)
    whole = templates.rates(vectors, prints, TemplateFormat("float32", 64), branches=1)
    assert whole[0] == pytest.approx(compute_metrics(scores.mated, scores.nonmated).eer)
    assert 0.01 < whole[0] < 0.3
    eighth = templates.rates(vectors, prints, TemplateFormat("binary", 8), branches=1)
    assert eighth[0] > whole[0] + 0.05, "eight signs say less than 64 numbers"
    assert templates.rates(vectors, prints, TemplateFormat("int8", 64), 1)[0] == pytest.approx(whole[0], abs=0.01)


def test_the_worst_prints_are_left_out_by_pair():
    import print_quality

    pairs = np.array([(i, j) for i in range(10) for j in range(i + 1, 10)])
    rejected = (pairs == 0).any(axis=1)  # print 0 is what fails
    good = np.arange(10.0)
    mated = print_quality.Mated(pairs, rejected, {"good": good, "wrong": -good})
    found = print_quality.rates([mated, mated])
    assert found["good"] == [pytest.approx(9 / 45), 0, 0, 0]
    np.testing.assert_allclose(found["wrong"], [9 / 45, 8 / 36, 7 / 28, 6 / 21])
    assert "| good | 20.0 | 0.0 | 0.0 | 0.0 |" in print_quality.markdown(found)


@pytest.mark.parametrize("cells", [0, 16])
def test_rates_of_protected_templates(cells, monkeypatch):
    import protection

    vectors, fingers = noisy(20, 8, 64, noise=1.5), np.repeat(np.arange(20), 8)
    if cells:
        shown = np.random.default_rng(1).uniform(size=(160, cells, 1)) < 0.7
        vectors = (vectors.reshape(160, cells, -1) * shown).reshape(160, -1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr(protection, "PAIRS", (1, 32) if cells else (1,))
    monkeypatch.setattr(protection, "KEYS", protection.KEYS[:3])
    found = protection.measured(vectors, fingers, cells)
    plain, one_key = found.eer["float32"]
    assert 0.01 < plain < 0.3
    assert plain == pytest.approx(one_key)
    assert found.change < 1e-6
    for eer, mated, nonmated in (found.across, found.plain):
        assert abs(eer - 0.5) < 0.05
        assert abs(mated - nonmated) < 0.05
    eers = list(found.attacked.values())  # with 64 pairs of 64 numbers; or with 1 and 32 pairs of 16 cells
    assert eers[-1] == pytest.approx(plain, abs=0.03)
    assert not cells or eers[0] > plain + 0.05, "one pair does not tell the rotations"
    assert (found.linked[0] == 1) == bool(cells)


def test_nothing_to_measure_is_named(tmp_path):
    import print_quality
    import protection
    import templates

    with pytest.raises(UserError, match="none of fvc2002_db1_b"):
        templates.main(tmp_path)
    for benchmark in (print_quality, protection):
        with pytest.raises(UserError, match="give --data, --dataset, or both"):
            benchmark.main()
