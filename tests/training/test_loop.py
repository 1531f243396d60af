import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fingerprint_accel.config import AugmentConfig, LossConfig, ModelConfig, PreprocessConfig, ReadingConfig, load_yaml
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training import loop
from fingerprint_accel.untrusted import read_json


def changed(config, **training):
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def records(folder, kind="train"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def weights(folder: Path, step: int):
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def losses(folder):
    return [record["loss"] for record in records(folder)]


def test_accumulation_equals_a_larger_batch(tiny, tmp_path):
    tiny = changed(tiny, steps=3)
    run_training(tiny)
    other = dataclasses.replace(changed(tiny, batch_size=2, gradient_accumulation_steps=4), out=str(tmp_path / "other"))
    run_training(other)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "other"), rtol=0, atol=1e-5)
    one, four = weights(tmp_path / "run", 3), weights(tmp_path / "other", 3)
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=1e-5, rtol=0)


def test_a_run_folder_is_complete(tiny, tmp_path):
    config = changed(tiny, steps=9, validate_every=4, save_every=3, save_total_limit=1, tracker="tensorboard")
    run_training(config)
    run = tmp_path / "run"
    assert load_yaml(run / "config.yaml") == config
    record = records(run)[-1]
    for name in (
        "loss",
        "learning_rate",
        "gradient_norm",
        "samples_per_second",
        "data_wait_share",
        "memory_mb",
        "epoch",
    ):
        assert np.isfinite(record[name])
    assert [r["step"] for r in records(run, "validation")] == [4, 8, 9]
    assert record["samples_per_second"] > 0
    latest, best = json.loads((run / "latest.json").read_text()), json.loads((run / "best.json").read_text())
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {latest["checkpoint"], best["checkpoint"]}
    assert latest["checkpoint"] == "step-00000009"
    assert best["eer"] == min(r["eer"] for r in records(run, "validation"))
    assert list((run / "tensorboard").rglob("events*"))
    assert {path.name for path in (run / "model").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    suffixes = {path.suffix for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts}
    assert suffixes == {".safetensors", ".json", ".jsonl", ".yaml", ".md"}, "no pickle"
    exported = load_file(run / "model" / "model.safetensors")
    for name, tensor in load_file(run / "checkpoints" / best["checkpoint"] / "model.safetensors").items():
        assert torch.equal(exported[name], tensor)


def test_training_learns(tiny, tmp_path):
    config = changed(tiny, steps=80, batch_size=16, learning_rate=2e-3, validate_every=80)
    model = dataclasses.replace(tiny.model, variant="Tex", norm="batch", width=16)
    preprocess = PreprocessConfig(crop=256, size=64, augment=AugmentConfig(enabled=False))
    run_training(dataclasses.replace(config, model=model, preprocess=preprocess))
    found = losses(tmp_path / "run")
    assert np.mean(found[-10:]) < 0.5 * np.mean(found[:10])


def test_bad_losses_are_skipped_and_counted(tiny, tmp_path, monkeypatch):
    """Steps 3 and 4 see a loss of NaN and of infinity: weights, centres and statistics stay as they were."""
    from fingerprint_accel.losses.deepprint import DeepPrintLoss, LossParts

    calls = []
    forward = DeepPrintLoss.forward

    def poisoned(self, *arguments):
        calls.append(1)
        result = forward(self, *arguments)
        bad = {3: float("nan"), 4: float("inf")}.get(len(calls), 0.0)
        return LossParts(result.total + bad, result.parts)

    monkeypatch.setattr(DeepPrintLoss, "forward", poisoned)
    model = dataclasses.replace(tiny.model, norm="batch")
    run_training(dataclasses.replace(changed(tiny, steps=5, save_every=1, save_total_limit=9), model=model))
    run = tmp_path / "run"
    assert [record["skipped"] for record in records(run)] == [0, 0, 1, 1, 0]
    before, after = weights(run, 2), weights(run, 4)
    for name in before:
        if "num_batches_tracked" not in name:
            assert torch.equal(before[name], after[name]), name
    folders = [run / "checkpoints" / f"step-{step:08d}" / "training_state.safetensors" for step in (2, 4)]
    states = [load_file(folder) for folder in folders]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name
    last = weights(run, 5)
    assert any(not torch.equal(last[name], after[name]) for name in last)
    assert all(torch.isfinite(tensor).all() for tensor in last.values())
    assert json.loads((run / "checkpoints" / "step-00000005" / "state.json").read_text())["skipped"] == 2


def test_nothing_but_bad_losses_stops_with_advice(tiny, monkeypatch):
    from fingerprint_accel.losses.deepprint import DeepPrintLoss, LossParts

    forward = DeepPrintLoss.forward
    monkeypatch.setattr(
        DeepPrintLoss, "forward", lambda self, *a: LossParts(forward(self, *a).total * float("nan"), {})
    )
    monkeypatch.setattr("fingerprint_accel.training.loop.MAX_BAD_STEPS", 4)
    with pytest.raises(UserError, match=r"NaN or infinite in 4 steps in a row.*learning-rate"):
        run_training(changed(tiny, steps=50))


def test_the_network_sees_the_schedule(tiny, tmp_path):
    """The first step is that of a plain run with mild augmentation and no margin, to the bit; so the last with both."""
    run_training(changed(scheduled(tiny), steps=4, save_every=1, save_total_limit=9))
    run = tmp_path / "run"
    found = records(run)
    assert [record["augmentation"] for record in found] == pytest.approx([0.2, 0.2 + 0.8 / 3, 0.2 + 1.6 / 3, 1.0])
    assert [record["margin"] for record in found] == pytest.approx([0, 0, 0.05, 0.1])
    plain = scheduled(tiny)
    for step, share in ((0, 0.2), (3, 1.0)):
        augment = AugmentConfig().scaled(share)
        constant = dataclasses.replace(
            plain,
            out=str(tmp_path / f"constant-{step}"),
            resume=str(run / "checkpoints" / f"step-{step:08d}") if step else "never",
            preprocess=dataclasses.replace(plain.preprocess, augment=augment),
            loss=dataclasses.replace(plain.loss, margin=0.1 if step else 0.0, margin_start=0.0, margin_ramp=0.0),
        )
        run_training(changed(constant, steps=4, save_every=1, save_total_limit=9))
        record = records(tmp_path / f"constant-{step}")[0]
        assert record["step"] == step + 1
        assert record["loss"] == found[step]["loss"]
        assert "augmentation" not in record
        assert "margin" not in record


def test_an_epoch_counts_what_fills_up_groups(tiny):
    from fingerprint_accel.training.setup import set_up

    config = changed(tiny, steps=0, epochs=3, batch_size=9)
    run = set_up(dataclasses.replace(config, reading=dataclasses.replace(config.reading, samples_per_class=3)))
    assert run.order.length == 6 * run.train.classes, "4 impressions in groups of 3"
    assert run.steps == round(3 * run.order.length / 9)


def test_siblings_are_those_whose_keys_follow_each_other(tiny):
    from fingerprint_accel.training.setup import set_up

    together = ReadingConfig(validation_fraction=0.0, samples_per_class=2, siblings=2)
    run = set_up(dataclasses.replace(tiny, reading=together))
    keys = run.train.shards.key_of_finger
    samples, _ = run.order.take(0, run.order.length)
    names = [keys[run.train.shards.fingers[run.train.rows[sample]]] for sample in samples[::2]]
    ranked = sorted(keys)
    assert [ranked.index(name) for name in names[1::2]] == [ranked.index(name) + 1 for name in names[::2]]
    torn = dataclasses.replace(together, validation_fraction=0.4)
    with pytest.raises(UserError, match="needs complete families of 2"):
        set_up(dataclasses.replace(tiny, reading=torn))


def test_early_stopping(tiny, tmp_path, monkeypatch):
    rates = iter([0.4, 0.3, 0.35, 0.3, 0.2])
    monkeypatch.setattr("fingerprint_accel.training.loop.validate", lambda *_: {"eer": next(rates)})
    run_training(changed(tiny, steps=50, validate_every=2, patience=2))
    run = tmp_path / "run"
    assert json.loads((run / "latest.json").read_text())["step"] == 8
    assert read_json(run / "best.json", "") == {"checkpoint": "step-00000004", "step": 4, "eer": 0.3}
    resumed = changed(dataclasses.replace(tiny, resume="auto"), steps=50, validate_every=2, patience=2)
    run_training(resumed)
    assert json.loads((run / "latest.json").read_text())["step"] == 8, "a run that has stopped stays stopped"


def scheduled(config):
    """Pairs of each finger, InfoNCE, augmentation that rises and a margin that comes late."""
    augment = AugmentConfig(start=0.2, ramp=0.75)
    return dataclasses.replace(
        config,
        reading=dataclasses.replace(config.reading, samples_per_class=2),
        preprocess=dataclasses.replace(config.preprocess, augment=augment),
        loss=dataclasses.replace(config.loss, contrastive_weight=1.0, margin_start=0.25, margin_ramp=0.5),
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", [lambda config: config, scheduled], ids=["plain", "scheduled"])
def test_resumed_run_is_bit_identical(tiny, tmp_path, optimizer, schedule):
    model = dataclasses.replace(tiny.model, norm="batch", dropout=0.3)
    whole = dataclasses.replace(
        changed(tiny, steps=5, save_every=2, optimizer=optimizer, save_total_limit=9), model=model
    )
    whole = schedule(whole)
    run_training(whole)
    part = dataclasses.replace(whole, out=str(tmp_path / "part"))
    first = tmp_path / "run" / "checkpoints" / "step-00000002"
    run_training(dataclasses.replace(part, resume=str(first)))
    for name in ("model.safetensors", "training_state.safetensors", "state.json"):
        files = [tmp_path / run / "checkpoints" / "step-00000005" / name for run in ("run", "part")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_mistakes_name_the_remedy(tiny, tmp_path):
    run_training(tiny)
    cases = [
        (tiny, "add --resume auto"),
        (dataclasses.replace(tiny, data=""), "give --data"),
        (dataclasses.replace(tiny, out=""), "give --out"),
        (dataclasses.replace(tiny, resume="nowhere"), "not a checkpoint folder"),
        (dataclasses.replace(changed(tiny, seed=9), resume="auto"), "same data, seed"),
        (
            dataclasses.replace(tiny, resume="auto", reading=dataclasses.replace(tiny.reading, balanced=True)),
            "trained on order permutation, this run has groups of 1, balanced",
        ),
        (dataclasses.replace(tiny, resume="auto", model=ModelConfig(trunk="compact")), "another model than configured"),
        (changed(tiny, precision="fp16"), "fp16 needs a GPU"),
        (changed(tiny, tracker="abacus"), "--training.tracker abacus"),
    ]
    for config, message in cases:
        with pytest.raises(UserError, match=message):
            run_training(config)


@pytest.mark.parametrize("data", ["synth", "folder"])
def test_a_run_goes_on_with_the_prints_it_began_with(tiny, data, tmp_path):
    """Others are refused, be they as many; the same ones may lie elsewhere."""
    began, same, others = "synth:fingers=4", "synth:seed=0,fingers=4,quality=default", "synth:fingers=4,quality=poor"
    if data == "folder":
        began, same, others = tiny.data, str(tmp_path / "moved"), str(tmp_path / "in another order")
        shutil.copytree(began, same)
        merge([Path(began)], Path(others), MergeOptions(), workers=1, progress=False)
    tiny = changed(tiny, batch_size=4)
    run_training(dataclasses.replace(changed(tiny, steps=1), data=began))
    further = dataclasses.replace(changed(tiny, steps=2), resume="auto")
    run_training(dataclasses.replace(further, data=same))
    with pytest.raises(UserError, match=r"step-00000002: trained on data .*, this run has .*; use the same data"):
        run_training(dataclasses.replace(further, data=others))


def test_validation_is_by_finger(tiny):
    from fingerprint_accel.training.setup import set_up

    run = set_up(tiny)
    assert run.validation is not None
    shards = run.train.shards
    inside = set(shards.fingers[run.train.rows].tolist())
    outside = set(shards.fingers[run.validation.rows].tolist())
    assert not inside & outside
    assert len(inside) + len(outside) == 24
    assert len(outside) >= 2


def test_bf16_trains_in_float32_losses(tiny, tmp_path):
    run_training(changed(tiny, precision="bf16"))
    assert all(np.isfinite(losses(tmp_path / "run")))


def test_extractor_round_trip(tiny, tmp_path):
    from fingerprint_accel.data.shards import open_dataset

    run_training(dataclasses.replace(tiny, loss=LossConfig(center_weight=0.0)))
    run = tmp_path / "run"
    shards = open_dataset(tiny.data)
    places = (run, run / "model", run / "checkpoints" / "step-00000006")
    found = [
        FingerprintExtractor.from_pretrained(place).extract(shards, batch_size=7, progress=False) for place in places
    ]
    assert found[0].shape == (96, 32)
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), 1, atol=1e-6)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    (run / "model" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="missing or damaged"):
        FingerprintExtractor.from_pretrained(run / "model")


def test_data_that_changes_under_a_run_ends_it(tiny, prints, tmp_path, monkeypatch):
    """A run whose shards were overwritten with zeros went on, and returned 0."""
    copy = tmp_path / "prints"
    shutil.copytree(prints, copy)
    shard = sorted(copy.glob("*.arrow"))[0]
    steps, schedule_at = [], loop.schedule_at

    def overwrite(step, *rest):
        steps.append(step)
        if step == 2:
            with shard.open("r+b") as file:
                file.seek(100_000)
                file.write(bytes(100_000))
        return schedule_at(step, *rest)

    monkeypatch.setattr(loop, "schedule_at", overwrite)
    monkeypatch.setattr("fingerprint_accel.data.watching.EVERY", 0.01)
    with pytest.raises(UserError, match=rf"{shard}: differs from its sha256; restore it.*--resume auto"):
        run_training(changed(dataclasses.replace(tiny, data=str(copy)), steps=500))
    assert 2 < len(steps) < 400
