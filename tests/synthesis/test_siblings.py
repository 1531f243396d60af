"""Siblings: fingers that differ in their ridges alone."""

import pytest
import torch

from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.synthesis.orientation import make_pattern
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import finger_keys, finger_name, make_masters
from fingerprint_accel.synthesis.source import parse_source
from fingerprint_accel.synthesis.writing import write_synthetic_dataset


def ridge_correlation(one, other):
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).float())[0, 1])


def test_siblings_share_flow_and_not_ridges():
    fingers = torch.tensor([4, 5, 8])
    masters = make_masters(3, fingers, siblings=4)
    assert masters.kind[0] == masters.kind[1] and masters.size[0] == masters.size[1] != masters.size[2]
    assert abs(ridge_correlation(masters.ridges[0], masters.ridges[1])) < 0.2
    alone = make_masters(3, fingers)
    assert torch.equal(masters.ridges[0], alone.ridges[0]), "the first of a family is the finger it would be alone"
    assert masters.kind[1] == make_pattern(finger_keys(3, fingers[:1])).kind


def test_dataset_and_source_have_the_same_siblings(tmp_path):
    style = parse_source("synth:fingers=4,siblings=2").style
    assert style == Style(siblings=2)
    write_synthetic_dataset(tmp_path / "set", 4, 1, seed=3, style=style, workers=1, progress=False)
    write_synthetic_dataset(tmp_path / "alone", 4, 1, seed=3, workers=1, progress=False)
    pictures = {
        name: {key: shards.image(row).tobytes() for row, key in enumerate(shards.table["finger_key"].to_pylist())}
        for name in ("set", "alone")
        for shards in [open_dataset(tmp_path / name)]
    }
    assert sorted(pictures["set"]) == [f"synthetic-3-{name}" for name in ("000000", "000001s2", "000002", "000003s2")]
    assert sorted(pictures["alone"]) == [finger_name(3, number) for number in range(4)]
    both = set(pictures["set"]) & set(pictures["alone"])
    assert len(both) == 2 and all(pictures["set"][key] == pictures["alone"][key] for key in both)
    assert len({*pictures["set"].values(), *pictures["alone"].values()}) == 6, "another name, another finger"


def test_a_family_has_at_least_one():
    with pytest.raises(UserError, match="siblings 0"):
        Style(siblings=0)
