"""Moving average of the weights, rates of heads and layers, label smoothing, frozen trunk."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fingerprint_accel.config import Config, LossConfig, ModelConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.models.deepprint import DeepPrint, Output
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training.optimizer import depths
from fingerprint_accel.training.setup import set_up

SAVED = ("model.safetensors", "training_state.safetensors", "ema.safetensors", "state.json")


def changed(config, group="training", **knobs):
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **knobs)})


def saved(folder, step, name="model"):
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def test_the_average_is_the_one_of_the_weights_after_each_step(tiny, tmp_path):
    run_training(changed(tiny, steps=5, save_every=1, save_total_limit=9, ema_decay=0.6))
    expected = saved(tmp_path / "run", 1)
    for step in range(2, 6):
        decay = min(0.6, 1 - step ** (-2 / 3))
        weights = saved(tmp_path / "run", step)
        for name, value in expected.items():
            if value.is_floating_point():
                expected[name] = decay * value + (1 - decay) * weights[name]
    average, weights = saved(tmp_path / "run", 5, "ema"), saved(tmp_path / "run", 5)
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.allclose(average[name], weights[name], rtol=1e-3) for name in weights)


def test_a_resumed_average_is_bit_identical(tiny, tmp_path):
    tiny = changed(tiny, "model", norm="batch", dropout=0.2)
    whole = changed(tiny, steps=8, save_every=3, save_total_limit=9, validate_every=3, ema_decay=0.9)
    run_training(whole)
    first = tmp_path / "run" / "checkpoints" / "step-00000003"
    run_training(dataclasses.replace(whole, out=str(tmp_path / "part"), resume=str(first)))
    for name in SAVED:
        files = [tmp_path / run / "checkpoints" / "step-00000008" / name for run in ("run", "part")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_the_average_is_validated_decides_and_is_exported(tiny, tmp_path):
    run_training(changed(tiny, steps=8, validate_every=2, save_total_limit=9, ema_decay=0.9, learning_rate=3e-3))
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: (line["eer"], line["ema_eer"]) for line in lines if line["kind"] == "validation"}
    assert any(raw != average for raw, average in rates.values())
    best = json.loads((run / "best.json").read_text())
    assert best["eer"] == min(average for _, average in rates.values())
    exported = load_file(run / "model" / "model.safetensors")
    average, weights = saved(run, best["step"], "ema"), saved(run, best["step"])
    assert all(torch.equal(exported[name], tensor) for name, tensor in average.items())
    assert any(not torch.equal(exported[name], tensor) for name, tensor in weights.items())
    FingerprintExtractor.from_pretrained(run)


def test_an_average_may_begin_later(tiny, tmp_path):
    run_training(changed(tiny, steps=4))
    run_training(changed(dataclasses.replace(tiny, resume="auto"), steps=5, ema_decay=0.5))
    decay = min(0.5, 1 - 5 ** (-2 / 3))
    before, weights = saved(tmp_path / "run", 4), saved(tmp_path / "run", 5)
    for name, value in saved(tmp_path / "run", 5, "ema").items():
        torch.testing.assert_close(value, decay * before[name] + (1 - decay) * weights[name], rtol=1e-5, atol=1e-6)


def test_trained_weights_keep_their_share_of_the_average(tiny, tmp_path):
    """Behind --model.init-from the decay is constant from the first step, also across a resume."""
    run_training(tiny)
    start = tmp_path / "run" / "checkpoints" / "step-00000006"
    config = changed(tiny, "model", init_from=str(start))
    config = changed(config, steps=5, save_every=1, save_total_limit=9, ema_decay=0.8, learning_rate=3e-3)
    run_training(dataclasses.replace(config, out=str(tmp_path / "whole")))
    expected = {name: value.double() for name, value in saved(tmp_path / "run", 6).items()}
    for step in range(1, 6):
        for name, value in saved(tmp_path / "whole", step).items():
            expected[name] = 0.8 * expected[name] + 0.2 * value.double()
    average = saved(tmp_path / "whole", 5, "ema")
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)
    third = tmp_path / "whole" / "checkpoints" / "step-00000003"
    run_training(dataclasses.replace(config, out=str(tmp_path / "part"), resume=str(third)))
    resumed = saved(tmp_path / "part", 5, "ema")
    assert all(torch.equal(resumed[name], value) for name, value in average.items())


def test_rates_fall_towards_the_stem():
    model = DeepPrint(ModelConfig(variant="LocTexMinu", trunk="compact", width=8, embedding_dim=16))
    where = depths(model)
    found = [
        where.get(model.get_parameter(name), 0)
        for name in (
            *("minutia_map.features.0.weight", "texture_branch.7.weight", "texture_branch.3.body.0.weight"),
            *("texture_branch.0.body.0.weight", "minutia_stem.0.body.0.weight", "stem.3.body.0.weight"),
            *("stem.0.weight", next(name for name, _ in model.named_parameters() if name.startswith("alignment."))),
        )
    ]
    assert found == [0, 0, 1, 4, 5, 6, 8, 9]
    assert max(where.values()) == 9


def test_heads_and_layers_learn_at_their_rates(tiny, tmp_path):
    """SGD without momentum, decay and clipping: the first update is proportional to the rate."""
    plain = changed(
        tiny, optimizer="sgd", momentum=0.0, weight_decay=0.0, max_grad_norm=0.0, steps=1, learning_rate=0.1
    )
    start = set_up(plain).bare.state_dict()
    start = {name: tensor.clone() for name, tensor in start.items()}
    moves = []
    for out, knobs in (("plain", {}), ("rated", {"head_lr_mult": 0.25, "layer_decay": 0.5})):
        run = run_training(changed(dataclasses.replace(plain, out=str(tmp_path / out)), **knobs))
        moves.append({name: tensor - start[name] for name, tensor in run.bare.state_dict().items()})
    for name, share in (
        ("loss.heads.texture.weight", 0.25),
        ("model.texture_branch.7.weight", 1.0),
        ("model.stem.0.weight", 0.5**8),
    ):
        assert moves[0][name].abs().max() > 0
        ratio = (moves[1][name].norm() / moves[0][name].norm()).item()
        assert ratio == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("head", ["softmax", "arcface", "cosface"])
def test_label_smoothing(head):
    torch.manual_seed(0)
    config = LossConfig(head=head, scale=8.0, margin=0.2, label_smoothing=0.1, center_weight=0.0)
    network = DeepPrint(ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=6, dropout=0.0))
    loss = DeepPrintLoss(config, network, 5)
    embedding, finger = F.normalize(torch.randn(4, 6), dim=1), torch.tensor([0, 3, 4, 3])
    logs = loss.heads["texture"].logits(embedding, finger).log_softmax(dim=1)
    own = logs.gather(1, finger[:, None])[:, 0]
    expected = -(0.9 * own + 0.1 * logs.mean(dim=1)).mean()
    found = loss(Output(embedding, None, None, None), finger)
    torch.testing.assert_close(found.total, expected)


def test_a_frozen_trunk_with_new_fingers(tiny, tmp_path):
    """From a checkpoint: the embedding layer learns, all before it stays, heads are those of the new fingers."""
    tiny = changed(tiny, "model", norm="batch")
    run_training(tiny)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000006"
    config = dataclasses.replace(tiny, out=str(tmp_path / "second"))
    config = changed(config, "model", init_from=str(checkpoint), trunk_frozen=True)
    config = changed(config, "reading", validation_fraction=0.6)  # so that there are fewer fingers
    run = run_training(config)
    before, after = saved(tmp_path / "run", 6), saved(tmp_path / "second", 6)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {
        f"{branch}.7.{part}" for branch in ("texture_branch", "minutia_branch") for part in ("weight", "bias")
    }
    heads = [saved(tmp_path / name, 6, "training_state")["loss.heads.texture.weight"] for name in ("run", "second")]
    assert len(heads[1]) == run.train.classes < len(heads[0])
    assert np.isfinite(heads[1]).all()


def test_a_frozen_trunk_needs_a_start():
    with pytest.raises(UserError, match=r"add --model\.init-from"):
        Config(model=ModelConfig(trunk_frozen=True))
