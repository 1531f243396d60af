"""Micro-batches that shrink where memory runs out, and features that are computed again instead of being kept."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from fingerprint_accel.config import Config, ModelConfig, ReadingConfig, TrainingConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training.memory import smaller_batch


def changed(config, group="training", **knobs):
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **knobs)})


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


NO_ENGINE = "FIND was unable to find an engine to execute this computation"  # of cuDNN, where no workspace fits


def short_of_memory(monkeypatch, prints, after=0, error=torch.OutOfMemoryError("injected")):  # noqa: B008
    """No room for more than so many prints, from the forward pass number `after` on."""
    forward, calls = DeepPrint.forward, []

    def limited(self, image):
        calls.append(1)
        if self.training and len(image) > prints and len(calls) > after:
            raise error
        return forward(self, image)

    monkeypatch.setattr(DeepPrint, "forward", limited)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "per_finger", "siblings", "expected"),
    [
        (64, 1, 1, 1, (32, 2)),
        (12, 3, 1, 1, (6, 6)),
        (7, 2, 1, 1, (2, 7)),
        (12, 1, 4, 1, (4, 3)),
        (16, 1, 2, 4, (8, 2)),
        (8, 2, 2, 4, None),
        (1, 8, 1, 1, None),
    ],
)
def test_smaller_batches_hold_whole_groups_and_keep_the_product(
    batch_size, accumulation, per_finger, siblings, expected
):
    config = Config(
        reading=ReadingConfig(samples_per_class=per_finger, siblings=siblings),
        training=TrainingConfig(batch_size=batch_size, gradient_accumulation_steps=accumulation),
    )
    assert smaller_batch(config) == expected


def test_a_shrunk_run_is_the_one_that_started_there(tiny, tmp_path, monkeypatch, capsys):
    model = dataclasses.replace(tiny.model, norm="batch", dropout=0.2)
    tiny = dataclasses.replace(tiny, model=model)
    small = changed(dataclasses.replace(tiny, out=str(tmp_path / "small")), batch_size=2, gradient_accumulation_steps=4)
    run_training(small)
    short_of_memory(monkeypatch, 3)
    run_training(changed(tiny, auto_micro_batch_size="yes"))
    said = capsys.readouterr().out
    assert "on 1 of 1 processes with batch 8 x 1: all continue with 4 x 2" in said
    assert "with batch 4 x 2: all continue with 2 x 4, the same 8 prints per step" in said
    assert losses(tmp_path / "run") == losses(tmp_path / "small")
    for name in ("model.safetensors", "training_state.safetensors"):
        files = [tmp_path / run / "checkpoints" / "step-00000006" / name for run in ("run", "small")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_rehearsing_leaves_no_trace(tiny, tmp_path):
    tiny = changed(tiny, "model", norm="batch", dropout=0.2)
    run_training(tiny)
    run_training(changed(dataclasses.replace(tiny, out=str(tmp_path / "other")), auto_micro_batch_size="yes"))
    for name in ("model.safetensors", "training_state.safetensors"):
        files = [tmp_path / run / "checkpoints" / "step-00000006" / name for run in ("run", "other")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize(
    ("error", "ending"),
    [(torch.OutOfMemoryError("injected"), "size"), (RuntimeError(NO_ENGINE + "\nmore"), rf"size \({NO_ENGINE}\)")],
)
def test_no_room_at_all_is_said(tiny, monkeypatch, error, ending):
    short_of_memory(monkeypatch, 0, error=error)
    said = "out of memory with micro-batches of 1 prints, and there is no smaller size; .* a smaller --preprocess."
    with pytest.raises(UserError, match=f"{said}{ending}$"):
        run_training(changed(tiny, auto_micro_batch_size="yes"))


def test_an_error_of_another_kind_is_not_taken_for_a_shortage(tiny, monkeypatch):
    short_of_memory(monkeypatch, 0, error=RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_training(changed(tiny, auto_micro_batch_size="yes"))


def test_memory_that_runs_out_later_ends_with_the_remedy(tiny, tmp_path, monkeypatch):
    config = changed(tiny, save_every=2)
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    run_training(whole)
    with monkeypatch.context() as patch:
        short_of_memory(patch, 4, after=3, error=RuntimeError(NO_ENGINE))
        remedy = "in step 4 with micro-batches of 8 prints; continue with --resume auto --training.batch-size 4 "
        with pytest.raises(UserError, match=remedy + "--training.gradient-accumulation-steps 2"):
            run_training(config)
        run_training(changed(dataclasses.replace(config, resume="auto"), batch_size=4, gradient_accumulation_steps=2))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def gradients(config, size, recompute):
    """Loss gradients, statistics after one pass, and bytes kept for the backward pass."""
    torch.manual_seed(1)
    model = DeepPrint(dataclasses.replace(config, gradient_checkpointing=recompute), map_size=16)
    image = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(2))
    kept = []

    def keep(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(image)
        loss = output.embedding[:, ::2].sum() + output.minutia_map.square().mean()
        forward = sum(kept)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return found, {name: buffer.clone() for name, buffer in model.named_buffers()}, forward


@pytest.mark.parametrize(
    ("variant", "trunk", "size"),
    [("TexMinu", "compact", 64), ("Minu", "inception_v4", 107), ("TexMinu", "vit_small", 64)],
)
def test_recomputed_features_give_the_same_gradients(variant, trunk, size):
    config = ModelConfig(variant=variant, trunk=trunk, width=8, embedding_dim=32, dropout=0.3)
    plain, again = gradients(config, size, False), gradients(config, size, True)
    for name, gradient in plain[0].items():
        torch.testing.assert_close(again[0][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name, buffer in plain[1].items():
        assert torch.equal(again[1][name], buffer), f"{name}: the second pass must not count"
    assert again[2] < 0.5 * plain[2]


def test_recompute_and_compile_do_not_go_together():
    with pytest.raises(UserError, match=r"model.gradient_checkpointing does not work with training.compile"):
        Config(model=ModelConfig(gradient_checkpointing=True), training=TrainingConfig(compile="default"))


def test_training_with_recomputed_features(tiny, tmp_path):
    tiny = changed(tiny, "model", norm="batch", dropout=0.2)
    run_training(tiny)
    run_training(changed(dataclasses.replace(tiny, out=str(tmp_path / "other")), "model", gradient_checkpointing=True))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "other"), abs=1e-5)
    found = [
        load_file(tmp_path / run / "checkpoints" / "step-00000006" / "model.safetensors") for run in ("run", "other")
    ]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-4)
