"""The report on alignment networks measures what it says."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MM = 25.4 / 300


def poses(rows):
    """(angle in degrees, x, y in mm) of each."""
    from alignment_measures import true_pose

    return true_pose(torch.tensor([[math.radians(angle), x / MM, y / MM] for angle, x, y in rows]), 256.0)


def test_what_two_prints_miss_alike_is_no_error():
    from alignment_measures import pair_errors, print_errors

    truth, off = poses([(10, 1, 2), (-20, -3, 4)]), poses([(7, 1.5, -0.5), (7, 1.5, -0.5)])
    predicted = off.within(truth)
    pairs, middles = torch.tensor([[0, 1]]), torch.tensor([[2.0, 6.0]])
    mm, degrees = pair_errors(truth, predicted, pairs, middles, MM)
    assert float(mm) == pytest.approx(0, abs=1e-4)
    assert float(degrees) == pytest.approx(0, abs=1e-4)
    mm, degrees = print_errors(truth, predicted, MM)
    np.testing.assert_allclose(mm, [math.hypot(1.5, 0.5)] * 2, rtol=1e-4)
    np.testing.assert_allclose(degrees, [7, 7], rtol=1e-4)


def test_a_wrong_turn_counts_where_the_prints_overlap():
    """One print is turned too far by 5 degrees: a point 6 mm from the middle comes to lie 0.52 mm away."""
    from alignment_measures import pair_errors

    truth = poses([(170, 0, 0), (-175, 2, 1)])
    predicted = poses([(0, 0, 0), (5, 0, 0)]).within(truth)
    mm, degrees = pair_errors(truth, predicted, torch.tensor([[0, 1]]), torch.tensor([[0.0, -6.0]]), MM)
    assert float(mm) == pytest.approx(2 * 6 * math.sin(math.radians(2.5)), rel=1e-3)
    assert float(degrees) == pytest.approx(5, rel=1e-3)


def test_overlap_is_a_share_of_the_smaller_contact():
    """Two squares of 8 mm on the canvas, of a finger that lies 4 mm lower in the second print, turned by 180 degrees:
    they share half of it."""
    from alignment_measures import on_finger, overlaps

    axis = (torch.arange(320) + 0.5) * MM - 160 * MM
    square = (axis.abs()[:, None] < 4) & (axis.abs()[None] < 4)
    narrow = (axis.abs()[:, None] < 4) & (axis.abs()[None] < 2)
    skin = torch.stack([square, square, narrow, square])
    contacts = on_finger(skin, poses([(0, 0, 0), (180, 0, 4), (0, 0, 0), (0, 0, 12)]), MM)
    shares, middles = overlaps(contacts, torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]]))
    np.testing.assert_allclose(shares[[0, 1, 2, 3]], [1, 0.5, 1, 0], atol=0.02)
    np.testing.assert_allclose(middles[:3], [[0, 0], [0, 2], [0, 0]], atol=0.07)


def test_the_bundled_network_finds_synthetic_fingers():
    import alignment

    extractor = FingerprintExtractor.from_pretrained("small")
    prints = alignment.synthetic_prints(extractor, "synth:fingers=4,impressions=3,seed=5,quality=clean")
    rows = alignment.error_rows(prints, MM)
    assert rows["one print"]["count"] == rows["two, all with overlap"]["count"] == 12
    assert sum(rows[f"two, overlap {name}"]["count"] for name in ("below 50 %", "50 to 75 %", "above 75 %")) == 12
    assert rows["one print"]["mm"][0] < 1.5
    assert rows["two, all with overlap"]["degrees"][0] < 8
    truth, found = (alignment.distribution(pose, MM)["down, mm"] for pose in (prints.truth, prints.predicted))
    assert truth[3] == pytest.approx(found[3], abs=1.5)
    assert truth == sorted(truth)
    assert "two, overlap above 75 %" in alignment.error_table(rows)


def test_a_model_that_does_not_align_is_refused(tmp_path):
    import alignment

    FingerprintExtractor(
        ModelConfig(variant="Tex", trunk="compact", width=8), PreprocessConfig(), 300, 320
    ).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="has no alignment network"):
        alignment.main(str(tmp_path / "model"))


def test_the_judge_sees_by_how_much_the_network_misses(monkeypatch):
    """A print and the same print further right, both taken for upright: dense matching says how far they are apart."""
    import alignment_judge

    from fingerprint_accel.synthesis.source import open_source

    source, _ = open_source("synth:fingers=2,impressions=2,seed=5,quality=clean", 0.0, torch.device("cpu"))
    image = source.read(np.array([0]), np.array([0])).image[0]
    extractor = FingerprintExtractor.from_pretrained("small")
    moved = torch.full_like(image, 255)
    moved[:, 14:] = image[:, :-14]
    images = torch.stack([image, moved])
    monkeypatch.setattr(alignment_judge, "TURNS", (-6.0, 0.0, 6.0))  # fewer, to save time
    middle = extractor.alignment(images[:1])
    monkeypatch.setattr(extractor, "alignment", lambda batch: middle.repeated(len(batch)))
    found = alignment_judge.disagreement(extractor, images, np.array([[0, 1]]))
    np.testing.assert_allclose(found.mm, [14 * MM, 14 * MM], atol=0.2)
    np.testing.assert_allclose(found.degrees, 0, atol=1)
    assert found.at_edge == 0
