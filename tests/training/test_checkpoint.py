import json

import pytest
import torch

from fingerprint_accel.errors import UserError
from fingerprint_accel.models.checkpoint_folder import checkpoint_names, find_checkpoint
from fingerprint_accel.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    prune,
    restore_optimizer,
    save_checkpoint,
)


def save(run, step, value=0.0):
    tensors = {"weight": torch.full((3,), value)}
    return save_checkpoint(run, Checkpoint(tensors, {"optimizer.weight.step": torch.tensor(step)}, {"step": step}))


def test_round_trip(tmp_path):
    assert save(tmp_path, 12, 0.25) == "step-00000012"
    found = load_checkpoint(tmp_path / "checkpoints" / "step-00000012")
    assert found.model["weight"].tolist() == [0.25] * 3
    assert found.training["optimizer.weight.step"].item() == 12
    assert found.state["step"] == 12
    assert json.loads((tmp_path / "latest.json").read_text())["checkpoint"] == "step-00000012"


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    leftover = tmp_path / "checkpoints" / ".step-00000009.tmp"
    leftover.mkdir()
    prune(tmp_path, keep=2, best="step-00000002")
    assert checkpoint_names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    assert not leftover.exists()


def test_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 3, 1.0)
    save(tmp_path, 3, 2.0)
    assert load_checkpoint(find_checkpoint(tmp_path)).model["weight"][0] == 2.0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_half_written_folders_do_not_count(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / ".step-00000002.tmp").mkdir()
    assert find_checkpoint(tmp_path).name == "step-00000001"
    assert find_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("file", ["model.safetensors", "training_state.safetensors", "state.json"])
def test_damage_is_named(tmp_path, file):
    folder = tmp_path / "checkpoints" / save(tmp_path, 1)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"damaged checkpoint|state.json: damaged"):
        load_checkpoint(folder)
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"not a checkpoint folder .no {file}"):
        load_checkpoint(folder)


def test_unknown_format(tmp_path):
    folder = tmp_path / "checkpoints" / save(tmp_path, 1)
    (folder / "state.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match="checkpoint has format 99, this version reads 1"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_optimizer_goes_on_where_it_was(kind):
    def make():
        torch.manual_seed(0)
        module = torch.nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        extra = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(module.parameters(), lr=0.1, fused=True, **extra)
        return module, optimizer, {id(parameter): name for name, parameter in module.named_parameters()}

    def advance(module, optimizer, step):
        module(torch.full((1, 2, 5, 5), 1.0 + step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    module, optimizer, names = make()
    advance(module, optimizer, 0)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, names).items()}
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    advance(module, optimizer, 1)
    again, other, names = make()
    again.load_state_dict(weights)
    restore_optimizer(other, names, saved)
    advance(again, other, 1)
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_rows_alone_are_read(tmp_path):
    """Of a parameter and of what the optimizer remembers of it; not of counters, nor of others."""
    whole = torch.arange(14.0).reshape(7, 2)
    tensors = {"loss.a": whole, "optimizer.loss.a.exp_avg": 2 * whole, "optimizer.loss.a.step": torch.tensor(3.0)}
    save_checkpoint(tmp_path, Checkpoint({}, {**tensors, "loss.b": whole}, {"step": 1}))
    found = load_checkpoint(tmp_path / "checkpoints" / "step-00000001", {"loss.a": slice(2, 5)}).training
    assert found["loss.a"].tolist() == whole[2:5].tolist()
    assert found["optimizer.loss.a.exp_avg"].tolist() == (2 * whole[2:5]).tolist()
    assert found["optimizer.loss.a.step"].item() == 3
    assert found["loss.b"].tolist() == whole.tolist()
