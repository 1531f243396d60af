"""Evaluation that compares best over poses, as `compare` does."""

import json

import numpy as np
import pytest
from shard_writer import ShardWriter

from fingerprint_accel import similarity as similarities
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.templates import NO_MINUTIAE
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.run import Extras, evaluate, evaluate_command
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.metrics.identification import first_enrolled, search
from fingerprint_accel.metrics.protocols import score_pairs, score_protocol
from fingerprint_accel.metrics.sampling import sampled_comparisons
from fingerprint_accel.similarity import pair_similarity, similarity


@pytest.fixture
def in_poses():
    """(48, 5, 16) embeddings of unit length in five poses, finger and impression of each."""
    generator = np.random.default_rng(0)
    fingers, impressions = np.repeat(np.arange(12), 4), np.tile(np.arange(4), 12)
    vectors = generator.normal(size=(12, 1, 16))[fingers] + generator.normal(size=(48, 5, 16))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return vectors.astype(np.float32), fingers, impressions


@pytest.mark.parametrize("gathered", [2**27, 4 * 5 * 16 * 7])
def test_listed_pairs_score_as_in_the_matrix(in_poses, monkeypatch, gathered):
    monkeypatch.setattr(similarities, "_GATHERED_BYTES", gathered)
    vectors = in_poses[0]
    pairs = np.random.default_rng(1).integers(0, 24, (100, 2))
    for reference, probe in (
        (vectors[:24], vectors[24:]),
        (vectors[:24, 0], vectors[24:]),
        (vectors[:24], vectors[24:, 0]),
    ):
        wanted = similarity(reference, probe)[tuple(pairs.T)]
        np.testing.assert_allclose(pair_similarity(reference, probe, pairs), wanted, atol=1e-6)


def test_protocols_and_samples_score_the_best_pose(in_poses):
    vectors, fingers, impressions = in_poses
    best = similarity(vectors, vectors)
    assert not np.allclose(best, vectors[:, 0] @ vectors[:, 0].T, atol=0.1)
    found = score_protocol("all-pairs", 3 * vectors, fingers, impressions)
    sampled = sampled_comparisons(fingers, impressions, 30)
    for scores in (found, score_pairs(vectors, sampled, fingers)):
        np.testing.assert_allclose(scores.mated, best[tuple(scores.pairs.mated.T)], atol=1e-6)
        np.testing.assert_allclose(scores.nonmated, best[tuple(scores.pairs.nonmated.T)], atol=1e-6)


def test_searches_rank_by_the_best_pose(in_poses):
    vectors, fingers, impressions = in_poses
    best = similarity(vectors[impressions > 0], vectors[impressions == 0])  # (36, 12)
    mated = best[np.arange(36), fingers[impressions > 0]]
    found = search(vectors, fingers, [first_enrolled(fingers, impressions)])
    np.testing.assert_allclose(found.mated, mated, atol=1e-6)
    np.testing.assert_array_equal(found.rank, (best >= mated[:, None]).sum(axis=1))


def test_one_bad_pose_is_an_error_and_a_failed_print_is_not(in_poses):
    vectors, fingers, impressions = in_poses
    vectors[7, 3] = np.nan
    with pytest.raises(UserError, match=r"1 of 48 embeddings are NaN, infinite or zero \(first: row 7\)"):
        score_protocol("all-pairs", vectors, fingers, impressions)
    extracted = np.arange(48) != 7
    scores = score_protocol("all-pairs", vectors, fingers, impressions, extracted=extracted)
    failed = (scores.pairs.mated == 7).any(axis=1)
    assert np.isneginf(scores.mated[failed]).all()
    assert np.isfinite(scores.mated[~failed]).all()


@pytest.fixture(scope="module")
def four_prints(prints, tmp_path_factory):
    """Two impressions of two synthetic fingers."""
    shards, folder = open_dataset(prints), tmp_path_factory.mktemp("four") / "prints"
    with ShardWriter(folder, shards.info.ppi, shards.info.canvas) as writer:
        for row in np.flatnonzero((shards.fingers < 2) & (shards.impressions < 2)).tolist():
            key, impression = shards.key_of_finger[shards.fingers[row]], int(shards.impressions[row])
            writer.add(Record(shards.image(row).copy(), key, impression, "synthetic", NO_MINUTIAE))
    return open_dataset(folder)


def test_scores_are_those_of_the_extractor_with_its_usual_poses(four_prints, monkeypatch):
    extractor = FingerprintExtractor.from_pretrained("small")
    monkeypatch.setattr(extractor, "on_canvas", lambda image, ppi, **_: image)  # they are canvases already
    evaluation = evaluate(extractor, four_prints, "all-pairs", extras=Extras(poses=True))
    embeddings = extractor.extract(four_prints, poses=extractor.usual_poses, progress=False)
    assert (evaluation.poses, embeddings.shape) == (6, (4, 6, 512))
    scores, best = evaluation.scores, similarity(embeddings, embeddings, extractor.cells)
    assert (len(scores.mated), len(scores.nonmated)) == (2, 4)
    np.testing.assert_allclose(scores.mated, best[tuple(scores.pairs.mated.T)], atol=1e-6)
    np.testing.assert_allclose(scores.nonmated, best[tuple(scores.pairs.nonmated.T)], atol=1e-6)
    for pairs, values in ((scores.pairs.mated, scores.mated), (scores.pairs.nonmated, scores.nonmated)):
        compared = extractor.compare(*(four_prints.image(row) for row in pairs[0].tolist()))
        assert values[0] == pytest.approx(compared, abs=1e-5)
    upright = evaluate(extractor, four_prints, "all-pairs").scores
    assert (scores.mated >= upright.mated - 1e-6).all()
    assert (scores.nonmated >= upright.nonmated - 1e-6).all() and scores.nonmated.mean() > upright.nonmated.mean()


def test_the_command_says_how_prints_were_compared(ten_fingers, tiny_model, tmp_path, capsys):
    evaluate_command(tiny_model, ten_fingers.folder, "fvc", tmp_path, 64, Extras(poses=True, against=tiny_model))
    assert "60 mated, 45 non-mated, best of 45 poses" in capsys.readouterr().out
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert (values["poses"], values["facts"]["compared"]) == (45, "best of 45 poses")
    assert [row["ours"] - row["theirs"] for row in values["against"]["differences"]] == [0]
    assert "best of 45 poses" in (tmp_path / "report.html").read_text()
