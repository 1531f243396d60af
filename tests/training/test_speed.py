"""What makes the training step fast, and that it stays correct."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._inductor import list_mode_options
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fingerprint_accel.config import (
    AugmentConfig,
    LossConfig,
    ModelConfig,
    ReadingConfig,
    TrainingConfig,
)
from fingerprint_accel.errors import UserError
from fingerprint_accel.losses.margin import arcface, cosface
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training import speed
from fingerprint_accel.training.meters import Meters
from fingerprint_accel.training.optimizer import make_optimizer
from fingerprint_accel.training.saving import Progress
from fingerprint_accel.training.schedule import schedule_at
from fingerprint_accel.training.setup import set_up
from fingerprint_accel.training.speed import FEWER_PASSES, compile_parts
from fingerprint_accel.training.step import optimizer_step

WAITS_FOR_THE_DEVICE = (
    *("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::_unique2", "aten::masked_select"),
    "aten::lift_fresh",  # a tensor made from Python's numbers, which is copied to a GPU while the host waits
)
# CPU kernels that read their own counter, or check what LAPACK is given; those for CUDA do not
READS_ITS_OWN = ("aten::_fused_adamw_", "aten::_fused_sgd_", "aten::linalg_lu_solve")


@pytest.mark.parametrize("planted", ["writable", "link", "owner"])
def test_code_that_another_user_may_have_compiled_is_not_run(tmp_path, monkeypatch, planted):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    speed._check_compile_cache()
    (folder,) = tmp_path.glob("torchinductor_*")
    assert folder.stat().st_mode & 0o777 == 0o700
    if planted == "writable":
        folder.chmod(0o777)
    elif planted == "link":
        folder.rename(tmp_path / "other")
        folder.symlink_to(tmp_path / "other")
    else:
        another = os.getuid() + 1
        monkeypatch.setattr(speed.os, "getuid", lambda: another)
    with pytest.raises(UserError, match="set TORCHINDUCTOR_CACHE_DIR to a folder of your own"):
        speed._check_compile_cache()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    speed._check_compile_cache()


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
        if not set(callers) & set(READS_ITS_OWN):
            found[" in ".join([event.name, *callers])] += 1
    return found


def profiled_steps(config, steps=3, spoil=None):
    """Host synchronisations of some optimizer steps."""
    run = set_up(config)
    meters, progress = Meters(run.accelerator.device), Progress()
    run.module.train()
    with run.train.loader(run.order, config.training.batch_size, device=run.accelerator.device) as loader:
        batches = iter(loader)
        optimizer_step(run, batches, schedule_at(0, 10, config), meters, progress)
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for step in range(1, 1 + steps):
                bad = optimizer_step(run, batches, schedule_at(step, 10, config), meters, progress)
                progress.step += 1
                if spoil is not None:
                    spoil(bad)
    return host_syncs(recorded.events())


@pytest.fixture
def everything(tiny):
    """Every loss, every branch, augmentation, clipping and accumulation."""
    return dataclasses.replace(
        tiny,
        reading=ReadingConfig(validation_fraction=0.0, samples_per_class=2),
        model=ModelConfig(variant="LocTexMinu", trunk="compact", width=8, embedding_dim=32),
        loss=LossConfig(head="cosface", contrastive_weight=1.0),
        training=dataclasses.replace(tiny.training, gradient_accumulation_steps=2, precision="bf16"),
    )


@pytest.mark.parametrize(("variant", "optimizer"), [("LocTexMinu", "adamw"), ("Tex", "sgd")])
def test_a_step_never_waits_for_the_device(everything, variant, optimizer):
    config = dataclasses.replace(
        everything,
        model=dataclasses.replace(everything.model, variant=variant),
        training=dataclasses.replace(everything.training, optimizer=optimizer),
    )
    assert profiled_steps(config) == {}


def test_a_head_that_samples_never_waits(everything):
    loss = dataclasses.replace(everything.loss, sharded=True, class_sample_rate=0.5, interclass_filter_threshold=0.5)
    assert profiled_steps(dataclasses.replace(everything, loss=loss)) == {}


def test_a_wait_would_be_noticed(tiny):
    assert sum(profiled_steps(tiny, 1, lambda bad: bad.item()).values()) == 1
    assert sum(profiled_steps(tiny, 1, lambda bad: bad.nonzero()).values()) == 1
    assert sum(profiled_steps(tiny, 1, lambda bad: torch.tensor([1.0, 2.0])).values()) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_never_waits_for_a_gpu(everything):
    run = set_up(everything)
    meters, progress = Meters(run.accelerator.device), Progress()
    with run.train.loader(run.order, 8, device=run.accelerator.device) as loader:
        batches = iter(loader)
        optimizer_step(run, batches, schedule_at(0, 10, everything), meters, progress)
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer_step(run, batches, schedule_at(1, 10, everything), meters, progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_shapes_are_the_same_in_every_step(tiny):
    """So that kernels are compiled and chosen once."""
    run = set_up(tiny)
    with run.train.loader(run.order, 8, truth=True) as loader:
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
    assert set(asked) == {"default"}
    assert "needs a GPU for CUDA graphs; using default" in capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch):
    """What is asked of the compiler, which does not get to work."""
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: asked.append((type(module).__name__, how)))
    monkeypatch.setattr(speed, "talk_outside_compiled_code", lambda: None)
    return asked


def test_compiling_leaves_names_as_they_are(tiny, asked):
    """Compiled in place, so that checkpoints fit compiled and uncompiled networks."""
    plain = set_up(tiny)
    run = set_up(dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, compile="default")))
    assert asked
    assert list(run.bare.state_dict()) == list(plain.bare.state_dict())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_what_is_compiled(tiny, asked, mode):
    """For static shapes; on a GPU the losses too, and the network with options that the mode's are part of."""
    run = set_up(tiny)
    how = dataclasses.replace(tiny.training, compile=mode)
    network = ["MapDecoder", *["Sequential"] * 2, *["Residual"] * 8]
    on_a_cpu = {"mode": "default" if mode == "reduce-overhead" else mode, "dynamic": False}
    compile_parts(run.bare, how, torch.device("cpu"))
    assert asked == [(name, on_a_cpu) for name in network]
    asked.clear()
    on_a_gpu = {"options": {**list_mode_options(mode), **FEWER_PASSES}, "dynamic": False}
    compile_parts(run.bare, how, torch.device("cuda"))
    assert asked == [*((name, on_a_gpu) for name in network), ("DeepPrintLoss", {"mode": mode, "dynamic": False})]


@pytest.fixture
def scheduled(everything, monkeypatch):
    """Everything, with a margin and an augmentation that change from step to step; float32, so that results compare."""

    def no_tf32(device):
        torch.backends.cudnn.allow_tf32 = False

    monkeypatch.setattr("fingerprint_accel.training.setup.set_precision", no_tf32)
    return dataclasses.replace(
        everything,
        preprocess=dataclasses.replace(everything.preprocess, augment=AugmentConfig(start=0.2, ramp=0.5)),
        loss=dataclasses.replace(everything.loss, scale=16.0, margin=0.1, margin_start=0.1, margin_ramp=0.6),
        training=dataclasses.replace(everything.training, precision="no", batch_size=4),
    )


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_compiled_training_is_the_same_training(scheduled, tmp_path, monkeypatch):
    """Through dynamo and AOT autograd; the code generator, which takes minutes on two cores, is left out."""
    config = dataclasses.replace(
        scheduled,
        reading=dataclasses.replace(scheduled.reading, validation_fraction=0.3),
        model=dataclasses.replace(scheduled.model, dropout=0.0),
        # On a GPU, fitting the micro-batch would begin one step more. The low rate keeps differences of rounding small,
        # which a higher one multiplies from step to step.
        training=dataclasses.replace(scheduled.training, auto_micro_batch_size="no", learning_rate=1e-5),
    )
    run_training(config)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: compile_module(module, backend="aot_eager"))
    importlib.import_module("torch._inductor.cudagraph_trees")  # as compiling with CUDA graphs does
    begun = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    compiled = dataclasses.replace(config.training, compile="default")
    run = run_training(dataclasses.replace(config, out=str(tmp_path / "compiled"), training=compiled))
    validation_batches = -(-len(run.validation) // 4)
    assert len(begun) == 6 + validation_batches, "once per update, not per micro-batch, and per validation batch"
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "run"), rtol=0, atol=1e-4)
    place = "checkpoints/step-00000006/model.safetensors"
    assert load_file(tmp_path / "compiled" / place).keys() == load_file(tmp_path / "run" / place).keys()


def test_a_scheduled_margin_does_not_compile_the_losses_anew(scheduled):
    """It is an input of what is compiled, not a constant in it."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    run = set_up(scheduled)
    run.module.train()
    run.bare.loss.compile(backend=counter, dynamic=False)
    meters, margins = Meters(run.accelerator.device), []
    with run.train.loader(run.order, 4, device=run.accelerator.device) as loader:
        batches = iter(loader)
        for step in range(6):
            now = schedule_at(step, 6, scheduled)
            optimizer_step(run, batches, now, meters, Progress(step))
            margins.append(now.margin)
    assert len(set(margins)) > 3
    assert counter.frame_count == 1


def test_sharded_heads_are_left_out_of_what_is_compiled(scheduled, asked):
    """Else each would fall into six more graphs, at what dynamo does not trace."""
    from torch._dynamo.testing import CompileCounterWithBackend

    losses, model = {}, dataclasses.replace(scheduled.model, variant="Tex")
    sharded = dataclasses.replace(scheduled, model=model, loss=dataclasses.replace(scheduled.loss, sharded=True))
    for compiled in (False, True):
        run = set_up(sharded)
        run.module.train()
        counter = CompileCounterWithBackend("aot_eager")
        if compiled:
            compile_parts(run.bare, dataclasses.replace(scheduled.training, compile="default"), torch.device("cuda"))
            run.bare.loss.forward = torch.compile(run.bare.loss.forward, backend=counter, dynamic=False)
        meters = Meters(run.accelerator.device)
        with run.train.loader(run.order, 4, device=run.accelerator.device) as loader:
            optimizer_step(run, iter(loader), schedule_at(0, 6, scheduled), meters, Progress())
        losses[compiled] = float(meters.sums["loss"])
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)
    assert 1 <= counter.frame_count <= 2 * len(run.bare.loss.heads) + 1


@pytest.mark.parametrize("margin", [0.0, 0.35, 0.8])
@pytest.mark.parametrize("add", [arcface, cosface])
def test_a_margin_may_be_a_tensor(add, margin):
    cosine = torch.linspace(-0.999, 0.999, 101)
    torch.testing.assert_close(add(cosine, torch.tensor(margin)), add(cosine, margin), atol=2e-7, rtol=0)


def test_steps_on_other_prints_do_the_same_operations(scheduled):
    """On tensors of the same shapes, in the same order: nothing depends on values."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            result = function(*arguments, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                seen.append((str(function), tuple(result.shape)))
            return result

    run = set_up(scheduled)
    run.module.train()
    meters, found = Meters(run.accelerator.device), []
    with run.train.loader(run.order, 4, device=run.accelerator.device) as loader:
        batches = iter(loader)
        for step in range(4):
            seen = []
            with Watch():
                optimizer_step(run, batches, schedule_at(step, 10, scheduled), meters, Progress(step))
            found.append(seen)
    assert len(found[1]) > 500
    assert found[1] == found[2] == found[3], "the first makes what the optimizer keeps"


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizers_are_fused_and_skip_on_the_device(name, kind):
    module = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(module, TrainingConfig(optimizer=name, learning_rate=0.1))
    assert type(optimizer) is kind
    assert all(group["fused"] for group in optimizer.param_groups)
    before = module.weight.detach().clone()
    for bad, moves in ((1.0, False), (0.0, True)):
        module(torch.ones(1, 3)).sum().backward()
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(bad), None
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(module.weight, before) is not moves


def test_training_that_is_not_compiled_leaves_the_compiler_alone(prints):
    """Importing it takes seconds, at the first step of every run; nor is loaded what only some runs need."""
    slow = ("torch._inductor.compile_fx", "torch._dynamo", "torch.distributed.tensor", "datasets", "pandas", "timm")
    script = (
        "import sys; from fingerprint_accel.training import loop, speed; speed.begin_step(); "
        "from fingerprint_accel.data.shards import open_dataset; open_dataset(sys.argv[1]); "
        f"sys.exit(', '.join({{*{slow}}} & {{*sys.modules}}) or None)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(prints)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
