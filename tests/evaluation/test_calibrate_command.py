"""`calibrate`: what it measures, what it writes and what it leaves alone; and models that recipes calibrate."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fingerprint_accel.config import Config, ModelConfig, PreprocessConfig, ReadingConfig, TrainingConfig
from fingerprint_accel.data.loader import subset_of_fingers
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation import calibration
from fingerprint_accel.evaluation.calibration import calibrate, calibrate_command, has_synthetic
from fingerprint_accel.extraction.calibration import Calibration, decision_basis
from fingerprint_accel.extraction.centring import mean_template
from fingerprint_accel.extraction.comparison import compare_prints
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.models.saved_model import find_model
from fingerprint_accel.recipe import run_training
from tests.editing import edited


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the tiny model, as an older version has exported it."""
    shutil.copytree(tiny_model, tmp_path / "model")
    notes = {"licence": "Apache-2.0", "eer": 0.01, "thresholds": {"0.01": 0.3}, "measured_on": "others"}
    edited(tmp_path / "model" / "config.json", notes=notes)
    return tmp_path / "model"


def calibration_of(folder):
    return Calibration.from_notes(json.loads((folder / "config.json").read_text())["notes"])


def by_hand(extractor, shards):
    """Mated and non-mated similarities, as prints are and best of the usual poses, pair by pair."""
    vectors = extractor.extract(shards, poses=extractor.usual_poses, progress=False).astype(np.float64)
    ways = {1: ([], []), 45: ([], [])}
    for i in range(len(shards)):
        for j in range(i):
            mated = shards.fingers[i] == shards.fingers[j]
            both_ways = np.concatenate([vectors[i] @ vectors[j, 0], vectors[j] @ vectors[i, 0]])
            ways[1][0 if mated else 1].append(vectors[i, 0] @ vectors[j, 0])
            ways[45][0 if mated else 1].append(both_ways.max())
    return {poses: [np.array(scores) for scores in both] for poses, both in ways.items()}


def test_the_record_holds_what_its_comparisons_say(model, ten_fingers, capsys):
    before = (model / "model.safetensors").read_bytes()
    calibrate_command(str(model), ten_fingers.folder, None)
    found = calibration_of(model)
    assert (found.source, found.synthetic, found.protocol) == ("fingers", False, "all-pairs")
    expected = by_hand(FingerprintExtractor.from_pretrained(model), ten_fingers)
    assert [way.poses for way in found.ways] == list(expected)
    for way in found.ways:
        mated, nonmated = expected[way.poses]
        assert (way.prints, way.fingers, way.mated, way.nonmated) == (40, 10, 60, 720)
        assert list(way.thresholds) == list(way.fnmr) == ["0.01"], "720 comparisons resolve no other rate"
        threshold = way.thresholds["0.01"]
        assert (nonmated >= threshold).sum() == 7
        assert 0 < threshold - np.sort(nonmated)[-8] < 1.01e-4, "the lowest, rounded up"
        assert (mated < threshold).mean() == pytest.approx(way.fnmr["0.01"], abs=1e-5)
    assert (model / "model.safetensors").read_bytes() == before
    notes = json.loads((model / "config.json").read_text())["notes"]
    assert set(notes) == {"licence", "calibration"}, "what it replaces is gone"
    text, warned = capsys.readouterr()
    assert "best of 45 poses" in text
    assert "non-mated comparisons  720" in text
    assert "- (needs 1,000 non-mated)" in text
    assert "warning" not in warned
    card = (model / "README.md").read_text()
    assert "Measured on prints of `fingers`, protocol all-pairs." in card
    assert f"| as they are | 40 | 10 | 60 | 720 | {found.ways[0].eer:.2%} | 1 % |" in card
    assert "thresholds:" not in card


@pytest.mark.parametrize("half", [False, True])
def test_a_copy_has_the_same_weights_to_the_bit(model, ten_fingers, tmp_path, half):
    FingerprintExtractor.from_pretrained(model).save_pretrained(model, half=half)
    calibrate_command(str(model), ten_fingers.folder, tmp_path / "copy")
    assert calibration_of(model) is None
    assert calibration_of(tmp_path / "copy") is not None
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "copy"))
    assert any(tensor.dtype == torch.float16 for tensor in ours.values()) == half
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


def test_other_files_in_the_folder_stay(model, ten_fingers):
    (model / "small.onnx").write_text("mine")
    calibrate_command(str(model), ten_fingers.folder, None)
    assert (model / "small.onnx").read_text() == "mine"


def test_one_synthetic_print_among_many_is_enough(model, write_prints, tmp_path, capsys):
    names = {(str(finger), impression): f"{finger}_{impression}.png" for finger in range(60) for impression in range(2)}
    names["59", 1] = "synthetic/clean/whorl"  # the last of 120
    shards = write_prints(tmp_path / "mixed", names)
    assert has_synthetic(subset_of_fingers(shards, np.ones(60, bool)))
    assert not has_synthetic(subset_of_fingers(shards, np.arange(60) < 59))
    calibrate_command(str(model), shards.folder, None)
    assert calibration_of(model).synthetic
    assert "do not hold on real fingers" in (model / "README.md").read_text()
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning.startswith(
        f"warning: {shards.folder}: these prints are synthetic; their thresholds do not hold on real fingers"
    )


def test_too_few_comparisons_for_any_threshold_are_named(model, write_prints, tmp_path, capsys):
    shards = write_prints(
        tmp_path / "few", {(str(finger), i): f"{finger}_{i}.png" for finger in "123" for i in range(4)}
    )
    calibrate_command(str(model), shards.folder, None)
    assert [way.thresholds for way in calibration_of(model).ways] == [{}, {}]
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning == f"warning: {shards.folder}: 48 non-mated comparisons are too few for a threshold; 100 are needed"


def test_large_datasets_are_sampled_by_whole_fingers(model, ten_fingers, monkeypatch):
    extractor = FingerprintExtractor.from_pretrained(model)
    prints = subset_of_fingers(ten_fingers, np.ones(10, bool))
    records = [calibrate(extractor, prints, "ten", most=21, most_posed=12, progress=False) for _ in range(2)]
    assert records[0] == records[1]
    assert [(way.prints, way.fingers, way.nonmated) for way in records[0].ways] == [(20, 5, 160), (12, 3, 48)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small", "small: a bundled model is not changed; give --out FOLDER for a calibrated copy"),
        ("run/checkpoints/step-00000002", "a checkpoint is not changed; give its run folder, or --out FOLDER"),
        ("nowhere", "nowhere: no model here"),
    ],
)
def test_models_that_are_not_changed_need_a_place(name, message, run, ten_fingers, monkeypatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError, match=message):
        calibrate_command(name, ten_fingers.folder, None)


def test_nothing_but_a_model_is_replaced(model, ten_fingers, tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"documents: exists already and is not a model folder"):
        calibrate_command(str(model), ten_fingers.folder, tmp_path / "documents")
    assert (tmp_path / "documents" / "thesis.tex").exists()


@pytest.fixture(scope="module")
def many_fingers(write_prints, tmp_path_factory):
    """24 fingers with 3 impressions each."""
    names = {(str(finger), impression): f"{finger}_{impression}.png" for finger in range(24) for impression in range(3)}
    return write_prints(tmp_path_factory.mktemp("many") / "fingers", names)


def test_the_mean_template_is_kept_and_thresholds_are_those_of_other_fingers(model, many_fingers, capsys):
    raw = FingerprintExtractor.from_pretrained(model)
    vectors = raw.extract(many_fingers, progress=False)
    raw.notes["metrics"] = [{"dataset": "scans", "metric": "eer", "value": 0.1}]
    raw.save_notes(model)
    calibrate_command(str(model), many_fingers.folder, None)
    assert "metrics" not in FingerprintExtractor.from_pretrained(model).notes, "they are those of the model without"
    found, extractor = calibration_of(model), FingerprintExtractor.from_pretrained(model)
    np.testing.assert_allclose(extractor.center, vectors.mean(axis=0), atol=1e-6)
    assert extractor.identity != raw.identity
    text = capsys.readouterr().out
    assert "EER before centring" in text
    assert "templates are not centred" not in text
    assert "Templates are centred" in (model / "README.md").read_text()
    (way, _), scores, uncentred = found.ways, ([], []), ([], [])
    halves = calibration.halves(many_fingers.fingers)
    assert [len(np.unique(many_fingers.fingers[half])) for half in halves] == [12, 12]
    assert not (halves[0] & halves[1]).any()
    for half in halves:
        moved = vectors[half] - vectors[~half].mean(axis=0)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        fingers = many_fingers.fingers[half]
        for i in range(len(moved)):
            for j in range(i):
                kind = int(fingers[i] != fingers[j])
                scores[kind].append(moved[i] @ moved[j])
                uncentred[kind].append(vectors[half][i] @ vectors[half][j])
    mated, nonmated = map(np.array, scores)
    assert (way.mated, way.nonmated) == (len(mated), len(nonmated)) == (72, 1188)
    threshold = way.thresholds["0.01"]
    assert (nonmated >= threshold).sum() == 11
    assert (mated < threshold).mean() == pytest.approx(way.fnmr["0.01"], abs=1e-5)
    before = compute_metrics(*(np.array(part, np.float32) for part in uncentred))
    assert way.eer_before == pytest.approx(before.eer, abs=1e-4)
    calibrate_command(str(model), many_fingers.folder, None)
    assert calibration_of(model) == found, "a centre of before is not measured again"


def test_a_model_is_not_centred_where_that_is_not_wanted_or_fingers_are_few(model, many_fingers, ten_fingers, capsys):
    raw = FingerprintExtractor.from_pretrained(model)
    raw.notes["metrics"] = [{"dataset": "scans", "metric": "eer", "value": 0.1}]
    raw.save_notes(model)
    calibrate_command(str(model), many_fingers.folder, None, center=False)
    assert calibration_of(model).center == ""
    assert "| scans | 10.00 % |" in (model / "README.md").read_text(), "templates are the same as before"
    assert "entring" not in capsys.readouterr().out
    calibrate_command(str(model), ten_fingers.folder, None)
    assert calibration_of(model).center == ""
    assert "templates are not centred: the dataset has 10 fingers, 20 are needed" in capsys.readouterr().out


def test_dense_models_are_calibrated_and_centred_in_poses(many_fingers):
    """The record of an aligning model holds what its extractor gives afterwards, for `compare` and `search` alike."""
    torch.manual_seed(0)
    network = ModelConfig(variant="LocDense", trunk="compact", width=8, embedding_dim=64, grid=4)
    extractor = FingerprintExtractor(network, PreprocessConfig(crop=48, size=32), ppi=300, canvas=64)
    prints = subset_of_fingers(many_fingers, np.ones(24, bool))
    poses = extractor.search_poses
    assert poses == extractor.usual_poses
    found = calibrate(extractor, prints, "many", most_posed=72, progress=False)
    assert [way.poses for way in found.ways] == [1, len(poses)]
    vectors = extractor.extract(many_fingers, poses=poses, progress=False)
    scores = score_protocol("all-pairs", vectors, many_fingers.fingers, many_fingers.impressions, cells=16)
    threshold = found.way(len(poses)).thresholds["0.01"]
    assert (scores.nonmated >= threshold).mean() <= 0.01
    assert (scores.nonmated >= threshold - 2e-4).mean() >= 0.0095
    assert decision_basis(extractor.notes, len(poses)).thresholds == found.way(len(poses)).thresholds
    upright = vectors[:, 0]
    calibrate(extractor, prints, "many", most_posed=0, progress=False, center=True)
    np.testing.assert_allclose(extractor.center, mean_template(upright, 16), atol=1e-5)


def tiny_run(data, out):
    return Config(
        data=str(data),
        out=str(out),
        reading=ReadingConfig(validation_fraction=0.5),
        preprocess=PreprocessConfig(crop=48, size=32),
        model=ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16, norm="group"),
        training=TrainingConfig(steps=2, batch_size=8, validate_every=1, warmup_steps=1, save_every=1, tracker="none"),
    )


@pytest.fixture
def run(ten_fingers, tmp_path, fresh_accelerator):
    """A run on ten fingers that were imported from files."""
    run_training(tiny_run(ten_fingers.folder, tmp_path / "run"))
    return tmp_path / "run"


def test_a_run_calibrates_its_model_on_its_validation_fingers(run, ten_fingers):
    found = calibration_of(run / "model")
    assert (found.source, found.synthetic) == ("validation fingers of fingers", False)
    (way,) = found.ways  # poses take too long on a CPU for a model that does not align
    shards = open_dataset(ten_fingers.folder)
    assert (way.poses, way.prints) == (1, 4 * way.fingers)
    assert 0 < way.fingers < len(shards.key_of_finger)
    again = run.parent / "again"
    run_training(tiny_run(ten_fingers.folder, again))
    assert calibration_of(again / "model") == found


def test_a_run_and_its_exported_model_say_the_same(run, ten_fingers, tmp_path):
    """Before and after `calibrate RUN`, which changes RUN/model and none of its weights."""
    a, b = (ten_fingers.image(row) for row in (0, 1))
    sums = []
    for _ in range(2):
        ours, theirs = (FingerprintExtractor.from_pretrained(place) for place in (run, run / "model"))
        assert ours.notes == theirs.notes
        assert ours.notes["checkpoint"] == find_model(run).folder.name
        found = [compare_prints(extractor, a, b, 300).basis for extractor in (ours, theirs)]
        assert found[0] == found[1]
        sums.append((found[0], (run / "model" / "model.safetensors").read_bytes()))
        calibrate_command(str(run), ten_fingers.folder, None)
    assert "not calibrated for the best over these poses" in sums[0][0]
    assert sums[1][0] == "thresholds measured on fingers, all-pairs, 720 non-mated comparisons of 10 fingers"
    assert sums[0][1] == sums[1][1]
    checkpoint = find_model(run).folder
    assert FingerprintExtractor.from_pretrained(checkpoint).notes == FingerprintExtractor.from_pretrained(run).notes


def test_notes_of_another_checkpoint_are_not_taken(run, ten_fingers):
    """A run that went on since has a better checkpoint; `calibrate RUN` exports that one."""
    best = find_model(run).folder
    later = best.with_name("step-00000009")
    shutil.copytree(best, later)
    edited(later / "state.json", step=9)
    (run / "best.json").write_text(json.dumps({"checkpoint": later.name}))
    assert FingerprintExtractor.from_pretrained(run).notes == {}
    calibrate_command(str(run), ten_fingers.folder, None)
    assert FingerprintExtractor.from_pretrained(run).notes["checkpoint"] == later.name
    assert calibration_of(run / "model").source == "fingers"
    assert FingerprintExtractor.from_pretrained(run / "model").notes["usual_norm"] > 0, "other notes stay"


def test_exporting_again_keeps_a_calibration_made_since(run, ten_fingers):
    calibrate_command(str(run), ten_fingers.folder, None)
    run_training(dataclasses.replace(tiny_run(ten_fingers.folder, run), resume="auto"))
    assert calibration_of(run / "model").source == "fingers"


def test_what_cannot_be_calibrated_is_exported_all_the_same(
    ten_fingers, tmp_path, monkeypatch, fresh_accelerator, capsys
):
    def refuse(*_, **__):
        raise UserError("5 of 20 embeddings are NaN")

    monkeypatch.setattr(calibration, "measure", refuse)
    run_training(tiny_run(ten_fingers.folder, tmp_path / "run"))
    assert calibration_of(tmp_path / "run" / "model") is None
    assert "the model is not calibrated: 5 of 20 embeddings are NaN" in capsys.readouterr().out
