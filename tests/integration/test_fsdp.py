"""FSDP as `accelerate launch --config_file recipes/hardware/fsdp.yaml` sets it, on two CPU processes over gloo."""

import json
import os
import runpy

import numpy as np
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from fingerprint_accel.config import parse
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.recipe import run_training

from .conftest import ROOT, TINY, launched
from .test_sharded import course, same_state

# Trains one run after the other on the same processes; each tells what it holds of the network, and of its heads. With
# batch normalisation rank 1 alone has a loss of NaN in step 2.
TRAIN = """
import json, os, runpy, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from fingerprint_accel.config import Config, parse
from fingerprint_accel.errors import UserError
from fingerprint_accel.losses.deepprint import DeepPrintLoss, LossParts
from fingerprint_accel.recipe import run_training

calls, forward = [], DeepPrintLoss.forward

def poisoned(self, *arguments):
    result = forward(self, *arguments)
    calls.append(1)
    bad = len(calls) == 2 and os.environ["RANK"] == "1"
    return LossParts(result.total + (float("nan") if bad else 0.0), result.parts)

def held(module):
    parts = [part.to_local() if isinstance(part, DTensor) else part for part in module.parameters()]
    return sum(part.numel() for part in parts)

recipe, *runs = sys.argv[1:]
refused = {}
for words in runs:
    config = parse(runpy.run_path(recipe)["CONFIG"], "", json.loads(words))
    if config.out.endswith("started"):
        os.environ |= {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    DeepPrintLoss.forward = poisoned if config.out.endswith("batch norm") else forward
    try:
        run = run_training(config)
    except UserError as error:
        refused[Path(config.out).name] = str(error)
        continue
    found = {"model": held(run.bare.model), "loss": held(run.bare.loss)}
    if run.ema is not None:
        found["average"] = held(run.ema.module)
    (run.folder / f"held-{run.accelerator.process_index}.json").write_text(json.dumps(found))
if refused and run.accelerator.is_main_process:
    (run.folder.parent / "refused.json").write_text(json.dumps(refused))
run.accelerator.state.destroy_process_group()
"""
VIT = [*TINY, "--model.variant", "Tex", "--model.trunk", "vit_small", "--model.dropout", "0", "--loss.scale", "16"]
VIT += ["--training.steps", "4", "--training.save-every", "2"]
VIT += ["--reading.validation-fraction", "0.1"]
AVERAGED = ["--loss.sharded", "--loss.head", "cosface", "--loss.center-weight", "0"]
AVERAGED += ["--training.ema-decay", "0.9", "--training.gradient-accumulation-steps", "2"]
CONVOLUTIONS = ["--model.trunk", "compact", "--model.norm", "group", "--model.variant", "LocTexMinu"]
CONVOLUTIONS += ["--training.layer-decay", "0.9"]
BATCH_NORM = ["--model.trunk", "compact", "--training.steps", "2", "--training.save-every", "1"]
REFUSED = {
    "sgd": (["--training.optimizer", "sgd"], "--training.optimizer adamw"),
    "compiled": (["--training.compile", "default"], "use --training.compile no"),
    "rehearsed": (["--training.auto-micro-batch-size", "yes"], "--training.auto-micro-batch-size at auto"),
    "sampled": (["--loss.sharded", "--loss.class-sample-rate", "0.5"], "use --loss.class-sample-rate 1"),
}


def launched_with_fsdp():
    """What `accelerate launch` sets for the processes it starts, in float32."""
    words = ["--config_file", str(ROOT / "recipes" / "hardware" / "fsdp.yaml"), "--mixed_precision", "no", "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    chosen = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in chosen.items() if name.startswith(("FSDP_", "ACCELERATE_"))}


@pytest.fixture(scope="module")
def trained(prints, tmp_path_factory):
    """Folder of runs of 8 prints a step, or 16 where they accumulate: some by this process, some by two with FSDP."""
    folder = tmp_path_factory.mktemp("fsdp")
    (folder / "train.py").write_text(TRAIN)

    def saved(name, step):
        return ["--resume", str(folder / name / f"checkpoints/step-{step:08d}")]

    def words_of(batch, name, own):
        return [*VIT, "--data", str(prints), "--training.batch-size", str(batch), *own, "--out", str(folder / name)]

    start = ["--model.init-from", str(folder / "whole"), "--training.steps", "1"]
    one = {"whole": [], "whole averaged": AVERAGED, "whole convolutions": CONVOLUTIONS, "whole started": start}
    again = ["--training.save-every", "3", "--model.gradient-checkpointing"]
    two = {"shared": [], "batch norm": BATCH_NORM, "averaged": [*AVERAGED, *saved("whole averaged", 2), *again]}
    two["convolutions"] = [*CONVOLUTIONS, *saved("whole convolutions", 2)]
    two |= {name: words for name, (words, _) in REFUSED.items()}
    two["started"] = start
    back = {"from shared": saved("shared", 2), "averaged back": [*AVERAGED, *saved("averaged", 3)]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        for name, own in one.items():
            train_here(words_of(8, name, own))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        words = [json.dumps(words_of(4, name, own)) for name, own in two.items()]
        environment |= launched_with_fsdp()
        launched("two processes", [folder / "train.py", ROOT / "recipes" / "train_10k.py", *words], environment)
        for name, own in back.items():
            train_here(words_of(8, name, own))
    return folder


def train_here(words):
    defaults = runpy.run_path(str(ROOT / "recipes" / "train_10k.py"))["CONFIG"]
    run_training(parse(defaults, "", words))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def held(folder):
    return [json.loads((folder / f"held-{rank}.json").read_text()) for rank in (0, 1)]


def final(folder, file="training_state"):
    return load_file(folder / "checkpoints" / "step-00000004" / f"{file}.safetensors")


def same_end(found, wanted):
    """Weights and optimizer, which names and shapes as one process does."""
    for file in ("model", "training_state"):
        same_state(final(found, file), final(wanted, file), 1e-4)


def same_norms(found, wanted, since=0):
    """Gradient norms, which adamw would hide, of all processes together."""
    norms = course(wanted, "gradient_norm")[since:]
    np.testing.assert_allclose(course(found, "gradient_norm"), norms, rtol=1e-4)
    return norms


def test_two_processes_train_what_one_does_and_hold_half_of_it_each(trained):
    """Losses are means of the same 8 prints, added up in another order: they differ by rounding, not more."""
    losses = course(trained / "whole")
    assert len(losses) == 4
    assert np.ptp(losses) > 0.1
    np.testing.assert_allclose(course(trained / "shared"), losses, rtol=0, atol=1e-5)
    assert min(same_norms(trained / "shared", trained / "whole")) > 5, "clipped in every step"
    same_end(trained / "shared", trained / "whole")
    parameters = sum(tensor.numel() for tensor in final(trained / "whole", "model").values())
    for found in held(trained / "shared"):
        assert found["model"] == pytest.approx(parameters / 2, rel=1e-3)


def test_saved_with_fsdp_resumed_without(trained):
    np.testing.assert_allclose(course(trained / "from shared"), course(trained / "shared")[2:], rtol=0, atol=1e-5)
    same_end(trained / "from shared", trained / "shared")


def test_there_and_back_with_sharded_heads_average_accumulation_and_recomputation(trained):
    """Two steps without FSDP, one with, one without."""
    losses = course(trained / "whole averaged")
    np.testing.assert_allclose(course(trained / "averaged"), losses[2:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(course(trained / "averaged back"), losses[3:], rtol=0, atol=1e-5)
    same_norms(trained / "averaged", trained / "whole averaged", since=2)
    for name in ("averaged", "averaged back"):
        same_end(trained / name, trained / "whole averaged")
        same_state(final(trained / name, "ema"), final(trained / "whole averaged", "ema"), 1e-4)
    heads = final(trained / "whole averaged")["loss.heads.texture.weight"].numel()
    for found in held(trained / "averaged"):
        assert found["average"] == found["model"]
        assert found["loss"] == pytest.approx(heads / 2, rel=0.1)


def test_convolutions_resumed_with_fsdp(trained):
    """Of all branches, with group normalisation; batch normalisation counts the prints of a process, as with DDP."""
    losses = course(trained / "whole convolutions")
    np.testing.assert_allclose(course(trained / "convolutions"), losses[2:], rtol=0, atol=1e-5)
    same_end(trained / "convolutions", trained / "whole convolutions")
    assert np.isfinite(course(trained / "batch norm")).all()


def test_a_loss_that_is_nan_on_one_rank_is_skipped_on_all(trained):
    assert course(trained / "batch norm", "skipped").tolist() == [0, 1]
    folders = [trained / "batch norm" / "checkpoints" / f"step-{step:08d}" for step in (1, 2)]
    for file in ("model.safetensors", "training_state.safetensors"):
        before, after = (
            {name: tensor for name, tensor in load_file(folder / file).items() if "batches_tracked" not in name}
            for folder in folders
        )
        same_state(after, before, 0)
        assert all(tensor.abs().max() > 0 for name, tensor in after.items() if "running_mean" in name)


def test_heads_start_as_means_of_their_fingers(trained):
    np.testing.assert_allclose(course(trained / "started"), course(trained / "whole started"), rtol=0, atol=1e-5)


def test_the_model_is_whole(trained):
    extractor = FingerprintExtractor.from_pretrained(trained / "shared" / "model")
    canvases = np.random.default_rng(0).integers(0, 256, (3, extractor.canvas, extractor.canvas), np.uint8)
    embeddings = extractor(torch.from_numpy(canvases))
    assert embeddings.shape == (3, 32)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    theirs = FingerprintExtractor.from_pretrained(trained / "whole" / "model")(torch.from_numpy(canvases))
    torch.testing.assert_close(embeddings, theirs, rtol=0, atol=1e-3)


def test_what_does_not_go_together_is_one_line(trained):
    lines = json.loads((trained / "refused.json").read_text())
    assert lines.keys() == REFUSED.keys()
    for name, (_, remedy) in REFUSED.items():
        assert remedy in lines[name]
        assert "\n" not in lines[name]
