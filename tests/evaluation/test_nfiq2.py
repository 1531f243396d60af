"""Prints of low NFIQ 2 score as failures to acquire, and error rates by bands of the score. Runs without nbis-py."""

import json

import numpy as np
import pytest
from shard_writer import ShardWriter

from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.templates import NO_MINUTIAE
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.groups import NFIQ2, NOT_SCORED, breakdown, groupings, nfiq2_bands
from fingerprint_accel.evaluation.run import Extras, evaluate, evaluate_command
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.metrics.protocols import score_protocol
from tests.evaluation.conftest import SIDE

SCORES = [50, 40, 39, -1] + [70] * 36  # of the prints in their order, four of each of ten fingers


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Ten fingers with four prints each, of noise."""
    folder = tmp_path_factory.mktemp("scored") / "fingers"
    with ShardWriter(folder, 300, SIDE, nfiq2=True) as writer:
        for row, score in enumerate(SCORES):
            image = np.random.default_rng(row).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
            writer.add(Record(image, str(row // 4), row % 4, f"{row}.png", NO_MINUTIAE, nfiq2=score))
    return open_dataset(folder)


def test_prints_below_count_as_failures_to_acquire(scored, tiny_model, monkeypatch):
    extractor = FingerprintExtractor.from_pretrained(tiny_model)
    found = evaluate(extractor, scored, "all-pairs", extras=Extras(minimum_nfiq2=40))
    assert found.failed == 2, "39, and the one without a score"
    lost = np.isneginf(found.scores.mated)
    assert lost.tolist() == np.isin(found.scores.pairs.mated, (2, 3)).any(axis=1).tolist()
    assert (int(lost.sum()), int(np.isneginf(found.scores.nonmated).sum())) == (5, 2 * 36)
    assert ("prints that failed to acquire", "2 of 40") in found.verification_facts()
    quality = np.full(40, 0.5)
    quality[[2, 7]] = 0.1
    monkeypatch.setattr(extractor, "quality", lambda shards, batch_size: quality)
    both = evaluate(extractor, scored, "all-pairs", extras=Extras(minimum_quality=0.3, minimum_nfiq2=40))
    assert both.failed == 3, "39, the one without a score, and the one of low quality"
    assert evaluate(extractor, scored, "all-pairs").failed == 0


def test_a_dataset_without_scores_names_the_remedy(ten_fingers, tiny_model):
    extractor = FingerprintExtractor.from_pretrained(tiny_model)
    for extras, option in ((Extras(minimum_nfiq2=40), "--minimum-nfiq2 40"), (Extras(by="nfiq2"), "--by nfiq2")):
        message = f"^{option}: {ten_fingers.folder} has no NFIQ 2 scores; import its prints again with --nfiq2$"
        with pytest.raises(UserError, match=message):
            evaluate(extractor, ten_fingers, "all-pairs", extras=extras)
    for wrong in (-1, 101):
        with pytest.raises(UserError, match=f"--minimum-nfiq2 {wrong}: must lie between 0 and 100"):
            Extras(minimum_nfiq2=wrong)


def test_bands():
    scores = np.array([-1, 0, 20, 21, 40, 41, 60, 61, 80, 81, 100], np.int16)
    bands = ["0-20", "0-20", "21-40", "21-40", "41-60", "41-60", "61-80", "61-80", "81-100", "81-100"]
    assert nfiq2_bands(scores).tolist() == [NOT_SCORED, *bands]


def test_a_comparison_counts_where_its_worse_print_does(embedded):
    vectors, fingers, impressions = embedded(30, noise=1.3)
    scores = score_protocol("all-pairs", vectors, fingers, impressions)
    nfiq2 = np.random.default_rng(1).integers(-1, 101, len(fingers))
    nfiq2[:5] = -1
    part = breakdown(scores, nfiq2_bands(nfiq2), NFIQ2)
    assert [group.name for group in part.groups] == [NOT_SCORED, "0-20", "21-40", "41-60", "61-80", "81-100"]
    worse = [nfiq2[rows].min(axis=1) for rows in (scores.pairs.mated, scores.pairs.nonmated)]
    for group, (low, high) in zip(part.groups[1:], [(0, 20), (21, 40), (41, 60), (61, 80), (81, 100)], strict=True):
        mated, nonmated = ((low <= score) & (score <= high) for score in worse)
        assert (group.mated, group.nonmated) == (int(mated.sum()), int(nonmated.sum()))
        assert group.prints == int(((low <= nfiq2) & (nfiq2 <= high)).sum())
        assert group.fnmr == pytest.approx((scores.mated[mated] < part.threshold).mean())
        assert group.fmr == pytest.approx((scores.nonmated[nonmated] >= part.threshold).mean())
    assert part.groups[0].mated == int((worse[0] < 0).sum())


def test_on_the_page_unasked_where_there_are_several_bands(scored, ten_fingers, tiny_model, tmp_path, capsys):
    assert NFIQ2 in groupings(scored)
    assert NFIQ2 not in groupings(ten_fingers)
    evaluate_command(tiny_model, scored.folder, "all-pairs", tmp_path, 64, Extras(by="nfiq2", minimum_nfiq2=40))
    assert "By NFIQ 2 of the worse print" in capsys.readouterr().out
    values = json.loads((tmp_path / "metrics.json").read_text())
    counts = {group["name"]: (group["prints"], group["mated"]) for group in values["breakdowns"][0]["groups"]}
    assert counts == {NOT_SCORED: (1, 3), "21-40": (2, 3), "41-60": (1, 0), "61-80": (36, 54)}
    assert values["facts"]["NFIQ 2"] == "at least 40; 1 prints have no score and count as below"
