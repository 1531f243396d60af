"""What makes the training step fast, and that it stays correct."""

import dataclasses
from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fingerprint_accel.config import LossConfig, ModelConfig, ReadingConfig, load_yaml
from fingerprint_accel.training.meters import Meters
from fingerprint_accel.training.resume import Progress
from fingerprint_accel.training.schedule import pace
from fingerprint_accel.training.setup import set_up
from fingerprint_accel.training.step import optimizer_step

WAITS_FOR_THE_DEVICE = ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::masked_select")
READS_ITS_OWN_COUNTER = ("aten::_fused_adamw_", "aten::_fused_sgd_")  # CPU kernels; CUDA's read it on the device


def host_syncs(events):
    """Operations that make the host wait for values from the device, by the operation that called them."""
    found = Counter()
    for event in events:
        if event.name not in WAITS_FOR_THE_DEVICE:
            continue
        callers, parent = [], event.cpu_parent
        while parent is not None:
            callers.append(parent.name)
            parent = parent.cpu_parent
        if not set(callers) & set(READS_ITS_OWN_COUNTER):
            found[" in ".join([event.name, *callers])] += 1
    return found


def profiled_steps(config, steps=3, spoil=None):
    """Host synchronisations of some optimizer steps."""
    run = set_up(config)
    meters, progress = Meters(run.accelerator.device), Progress()
    run.module.train()
    with run.train.loader(run.order, config.training.batch_size) as loader:
        batches = iter(loader)
        optimizer_step(run, batches, pace(0, 10, config), meters, progress)
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for step in range(1, 1 + steps):
                bad = optimizer_step(run, batches, pace(step, 10, config), meters, progress)
                progress.step += 1
                if spoil is not None:
                    spoil(bad)
    return host_syncs(recorded.events())


@pytest.fixture
def everything(tiny):
    """Every loss, every branch, augmentation, clipping and accumulation."""
    return dataclasses.replace(
        tiny,
        reading=ReadingConfig(validation_fraction=0.0, impressions_per_finger=2),
        model=ModelConfig(variant="LocTexMinu", trunk="compact", width=8, embedding_dim=32),
        loss=LossConfig(head="cosface", contrastive_weight=1.0),
        training=dataclasses.replace(tiny.training, accumulation=2, precision="bf16"),
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("variant", ["LocTexMinu", "Tex"])
def test_a_step_never_waits_for_the_device(everything, variant, optimizer):
    config = dataclasses.replace(
        everything,
        model=dataclasses.replace(everything.model, variant=variant),
        training=dataclasses.replace(everything.training, optimizer=optimizer),
    )
    assert profiled_steps(config) == {}


def test_a_wait_would_be_noticed(everything):
    assert sum(profiled_steps(everything, spoil=lambda bad: bad.item()).values()) == 3
    assert sum(profiled_steps(everything, spoil=lambda bad: bad.nonzero()).values()) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_never_waits_for_a_gpu(everything):
    run = set_up(everything)
    meters, progress = Meters(run.accelerator.device), Progress()
    with run.train.loader(run.order, 8, device=run.accelerator.device) as loader:
        batches = iter(loader)
        optimizer_step(run, batches, pace(0, 10, everything), meters, progress)
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer_step(run, batches, pace(1, 10, everything), meters, progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_shapes_are_the_same_in_every_step(tiny):
    """So that kernels are compiled and chosen once."""
    run = set_up(tiny)
    with run.train.loader(run.order, 8) as loader:
        shapes = {
            tuple(part.shape for part in vars(batch).values()) for batch, _ in zip(loader, range(30), strict=False)
        }
    assert len(shapes) == 1


def test_cuda_graphs_need_a_gpu(tiny, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: asked.append(how["mode"]))
    set_up(dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, compile="reduce-overhead")))
    assert asked == ["default"]
    assert "CUDA graphs need a GPU; compiling with default" in capsys.readouterr().out


def test_an_unquoted_no_in_yaml_is_understood(tmp_path):
    (tmp_path / "run.yaml").write_text("training: {compile: no, precision: no, gradient_compression: no}")
    training = load_yaml(tmp_path / "run.yaml").training
    assert (training.compile, training.precision, training.gradient_compression) == ("no", "no", "no")


def test_compiling_leaves_names_as_they_are(tiny, monkeypatch):
    """Compiled in place, for static shapes, so that checkpoints fit compiled and uncompiled networks."""
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: asked.append((type(module).__name__, how)))
    plain = set_up(tiny)
    run = set_up(dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, compile="default")))
    assert asked == [("DeepPrint", {"mode": "default", "dynamic": False})]
    assert list(run.bare.state_dict()) == list(plain.bare.state_dict())
