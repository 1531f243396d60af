"""The ridge-like prints: same seed, same bytes; ridges at the usual period; impressions of one finger are alike."""

import numpy as np
import torch

from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.synthesis.simple import PERIOD, SIDE, orientation_fields, ridge_patterns, write_simple_dataset


def test_same_seed_same_prints(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_simple_dataset(tmp_path / name, 3, 2, seed, progress=False)
    a, b, c = (open_dataset(tmp_path / name) for name in "abc")
    assert a.info.sha256 == b.info.sha256
    assert a.info.sha256 != c.info.sha256
    assert (a.info.fingers, a.info.prints, a.info.ppi, a.info.canvas) == (3, 6, 300, 320)
    assert sorted(zip(a.fingers.tolist(), a.impressions.tolist(), strict=True)) == [
        (finger, impression) for finger in range(3) for impression in range(2)
    ]


def test_ridge_period():
    generator = torch.Generator().manual_seed(0)
    patterns = ridge_patterns(orientation_fields(4, generator), generator)[:, 0]
    spectrum = torch.fft.rfft2(patterns - patterns.mean(dim=(1, 2), keepdim=True)).abs().square().sum(0)
    frequency = torch.hypot(torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE)[None])
    bins = (frequency * SIDE).round().long().clamp(max=SIDE // 2)
    radial = torch.zeros(SIDE // 2 + 1).index_add_(0, bins.flatten(), spectrum.flatten())
    assert abs(SIDE / radial.argmax().item() - PERIOD) < 0.6


def test_impressions_differ_and_fingers_differ_more(prints):
    shards = open_dataset(prints)
    finger0 = [shards.image(row).astype(float) for row in np.flatnonzero(shards.fingers == 0)]
    assert len(finger0) == 4
    assert np.abs(finger0[0] - finger0[1]).mean() > 10
