"""Groups by a part of the source."""

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.groups import ACROSS, breakdown, groupings
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics


def test_synthetic_prints_tell_quality_and_class(write_prints, tmp_path):
    sources = {
        (str(finger), n): f"synthetic/{'clean' if n else 'default'}/{'arch' if finger < 2 else 'whorl'}"
        for finger in range(4)
        for n in range(2)
    }
    found = groupings(write_prints(tmp_path / "made", sources))
    assert list(found) == ["quality", "pattern class"]
    assert found["quality"].tolist() == ["default", "clean"] * 4
    assert found["pattern class"].tolist() == ["arch"] * 4 + ["whorl"] * 4


def test_folders_and_patterns(ten_fingers):
    fingers = [int(ten_fingers.key_of_finger[finger]) for finger in ten_fingers.fingers]
    found = groupings(ten_fingers)
    assert list(found) == ["folder 1 of the source"]
    assert found["folder 1 of the source"].tolist() == [("right", "left")[finger % 2] for finger in fingers]
    assert groupings(ten_fingers, r"/(\d+)_")[r"/(\d+)_"].tolist() == [str(finger) for finger in fingers]
    with pytest.raises(UserError, match=r"--by left: not found in 'right/\d+_1.png'"):
        groupings(ten_fingers, "left")
    with pytest.raises(UserError, match=r"--by \(: not a regular expression"):
        groupings(ten_fingers, "(")


def test_rates_of_groups(embedded):
    vectors, fingers, impressions = embedded(30, noise=1.3)
    scores = score_protocol("all-pairs", vectors, fingers, impressions)
    names = np.where(fingers < 12, "a", "b")
    names[3] = "b"  # one impression of finger 0
    part = breakdown(scores, names, "letter")
    assert [group.name for group in part.groups] == ["a", "b", ACROSS]
    assert sum(group.mated for group in part.groups) == len(scores.mated)
    assert sum(group.nonmated for group in part.groups) == len(scores.nonmated)
    a = part.groups[0]
    within = [(names[rows] == "a").all(axis=1) for rows in (scores.pairs.mated, scores.pairs.nonmated)]
    assert (a.prints, a.mated, a.nonmated) == (47, *(int(rows.sum()) for rows in within))
    assert a.eer == compute_metrics(scores.mated[within[0]], scores.nonmated[within[1]]).eer
    # the overall threshold: 1 % of all non-mated comparisons pass
    assert part.threshold_fmr == 0.01
    passing = sum(group.fmr * group.nonmated for group in part.groups)
    assert round(passing) == int(0.01 * len(scores.nonmated))
    rejected = sum(group.fnmr * group.mated for group in part.groups)
    assert rejected / len(scores.mated) == pytest.approx(compute_metrics(scores.mated, scores.nonmated).fmr100)
    alone = breakdown(scores, fingers.astype(str), "finger").groups[0]
    assert (alone.nonmated, alone.eer, alone.fmr) == (0, None, None)
