"""Training that starts from a trained network."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training.heads import first_of_each, start_heads
from fingerprint_accel.training.setup import set_up


def changed(config, group, **knobs):
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **knobs)})


def started(tiny, tmp_path, **knobs):
    """A run that starts from the one `tiny` has trained."""
    config = dataclasses.replace(tiny, out=str(tmp_path / "second"), **knobs)
    return changed(config, "model", init_from=tiny.out)


def records(out, kind):
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


def test_first_of_each():
    labels = np.array([2, 0, 2, 1, 2, 0, 0])
    assert first_of_each(labels, 2).tolist() == [0, 1, 2, 3, 5]
    assert first_of_each(labels, 1).tolist() == [0, 1, 3]


def test_it_goes_on_from_those_weights(tiny, tmp_path):
    run_training(changed(tiny, "training", steps=2))
    run = set_up(started(tiny, tmp_path))
    checkpoint = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors")
    for name, tensor in run.bare.model.state_dict().items():
        assert torch.equal(tensor, checkpoint[name]), name


def test_a_trained_network_is_validated_before_the_first_step(tiny, tmp_path):
    """And only then: a run from random weights, or one that is resumed, begins with a step."""
    tiny = changed(tiny, "training", steps=2)
    run_training(tiny)
    assert [record["step"] for record in records(tmp_path / "run", "validation")] == [2]
    config = changed(started(tiny, tmp_path), "training", save_every=1, validate_every=2)
    run_training(config)
    found = records(tmp_path / "second", "validation")
    assert [record["step"] for record in found] == [0, 2]
    assert found[0]["eer"] == records(tmp_path / "run", "validation")[0]["eer"]
    resumed = dataclasses.replace(
        config, out=str(tmp_path / "third"), resume=str(tmp_path / "second" / "checkpoints" / "step-00000001")
    )
    run_training(resumed)
    assert [record["step"] for record in records(tmp_path / "third", "validation")] == [2]


def test_class_vectors_start_as_means_of_their_fingers(tiny, tmp_path):
    """Two prints each, upright; so the right class is near from the first step."""
    run_training(changed(tiny, "training", steps=40, learning_rate=3e-3))
    config = started(tiny, tmp_path)
    run = set_up(config)
    start_heads(run)
    samples = np.flatnonzero(run.train.labels == 3)[:2]
    batch = run.train.read(samples, np.zeros(2, np.int64))
    run.bare.model.eval()
    output = run.bare.model(run.preprocessor(batch, augment=False)[0])
    for name, embedding in output.branches.items():
        weight = run.bare.loss.heads[name].weight[3]
        torch.testing.assert_close(F.normalize(weight, dim=0), F.normalize(embedding.sum(0), dim=0), atol=1e-4, rtol=0)
        assert 0.5 < float(weight.norm()) < 2
    run_training(changed(config, "training", steps=1))
    random = dataclasses.replace(changed(tiny, "training", steps=1), out=str(tmp_path / "random"))
    run_training(random)
    losses = [records(tmp_path / name, "train")[0]["identity_texture"] for name in ("second", "random")]
    assert losses[0] < 0.8 * losses[1]


def test_a_resumed_run_keeps_its_own_heads(tiny, tmp_path):
    run_training(changed(tiny, "training", steps=2))
    config = started(tiny, tmp_path)
    run_training(changed(config, "training", steps=4, save_every=2))
    whole = load_file(tmp_path / "second" / "checkpoints" / "step-00000004" / "training_state.safetensors")
    again = dataclasses.replace(config, out=str(tmp_path / "again"), resume="never")
    again = changed(again, "training", steps=4, save_every=2)
    resumed = dataclasses.replace(again, resume=str(tmp_path / "second" / "checkpoints" / "step-00000002"))
    run_training(resumed)
    for name, tensor in load_file(
        tmp_path / "again" / "checkpoints" / "step-00000004" / "training_state.safetensors"
    ).items():
        assert torch.equal(tensor, whole[name]), name


def test_another_shape_is_named(tiny, tmp_path):
    run_training(changed(tiny, "training", steps=1))
    config = started(tiny, tmp_path)
    with pytest.raises(UserError, match=r"to start from it give --model.embedding-dim 32 --model.norm group"):
        set_up(dataclasses.replace(config, model=ModelConfig(init_from=tiny.out, trunk="compact", width=8)))
    with pytest.raises(UserError, match="nowhere: no model here"):
        set_up(changed(config, "model", init_from="nowhere"))


@pytest.fixture
def untrained(tiny, tmp_path):
    """Makes `tiny` start from a model on disk that says what prints it was trained on."""

    def make(data, enhanced=False):
        model = FingerprintExtractor(tiny.model, tiny.preprocess, ppi=300, canvas=320, enhanced=enhanced)
        model.save_pretrained(tmp_path / "model")
        config = changed(dataclasses.replace(tiny, data=str(data)), "model", init_from=str(tmp_path / "model"))
        return changed(config, "reading", validation_fraction=0.0)

    return make


def refused(config):
    with pytest.raises(UserError) as error:
        set_up(config)
    return str(error.value)


def halved(image, ppi):
    """Stands for the filters, which take longer."""
    return image // 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ppi": 250}, "ppi 250, but the model needs 300; import or `merge` it with --dataset-ppi 300"),
        (
            {"canvas": 352},
            "canvas 352, but the model needs 320; import or `merge` it with --canvas 320",
        ),
        (
            {"enhance": halved},
            "enhanced, but the model needs prints without enhancement; import them again without --enhance",
        ),
    ],
)
def test_other_prints_are_refused_with_the_words_of_evaluate(untrained, prints, tmp_path, options, problem):
    other = tmp_path / "other"
    merge([prints], other, MergeOptions(**options), workers=1, progress=False)
    config = untrained(other)
    assert refused(config) == f"{other}: {problem}"
    with pytest.raises(UserError) as by_extraction:
        FingerprintExtractor.from_pretrained(config.model.init_from).check_dataset(open_dataset(other))
    assert str(by_extraction.value) == f"{other}: {problem}"


def test_a_model_of_enhanced_prints_goes_on_with_such(untrained, prints, tmp_path):
    enhanced = tmp_path / "enhanced"
    merge([prints], enhanced, MergeOptions(enhance=halved), workers=1, progress=False)
    set_up(untrained(enhanced, enhanced=True))
    assert refused(untrained(prints, enhanced=True)) == (
        f"{prints}: the model needs enhanced prints; run `merge {prints} --enhance`"
    )
    source = "synth:fingers=2,impressions=2"
    assert refused(untrained(source, enhanced=True)) == (
        f"{source}: the model needs enhanced prints; make a dataset with `synth`, then `merge` it with --enhance"
    )


def test_a_synthetic_source_is_checked_too(untrained):
    source = "synth:fingers=2,impressions=2"
    set_up(untrained(source))
    for knob, other, wanted in (("ppi", 250, 300), ("canvas", 352, 320)):
        data = f"{source},{knob}={other}"
        problem = f"{knob} {other}, but the model needs {wanted}; write {knob}={wanted} in it"
        assert refused(untrained(data)) == f"{data}: {problem}"


def test_another_scale_is_no_other_print(untrained, prints):
    """The bundled `base` was trained from the alignment network of `small`, at a finer scale."""
    set_up(changed(untrained(prints), "preprocess", crop=240, size=80))
