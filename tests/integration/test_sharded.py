"""Heads of which every process has a slice: what two and three processes compute, train, save and resume."""

import json
import os

import numpy as np
import pytest
from safetensors.torch import load_file

from .conftest import ROOT, TINY, launched
from .test_launch import records

# Every rank computes the whole head as well, and compares.
EQUAL = """
import sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fingerprint_accel.errors import UserError
from fingerprint_accel.losses.margin import IdentityHead
from fingerprint_accel.losses.sharded import ShardedHead
from fingerprint_accel.training import agreement
from fingerprint_accel.training.heads import spread_what_is_not_finite

dist.init_process_group("gloo")
rank, processes = dist.get_rank(), dist.get_world_size()
close = torch.testing.assert_close
CLASSES, DIM = 7, 16

def unit(count, dtype, seed):
    return F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)

def with_beginnings(embedding):
    return [embedding, F.normalize(embedding[:, :4], dim=1), F.normalize(embedding[:, :9], dim=1)]

def mine(rows):
    return rows.tensor_split(processes)[rank]

def check(kind, dtype, tolerance, sizes):
    torch.manual_seed(0)
    whole = IdentityHead(DIM, CLASSES, kind, 4.0, 0.3).to(dtype)
    torch.manual_seed(0)
    head = ShardedHead(DIM, CLASSES, kind, 4.0, 0.3).to(dtype)
    for name, parameter in head.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)[head.rows])
    for number, size in enumerate(sizes):  # prints of all ranks in each micro-batch
        everyone, finger = unit(size, dtype, number).requires_grad_(), torch.arange(size) * 3 % CLASSES
        wanted = whole(with_beginnings(everyone), finger)
        (wanted / len(sizes)).backward()
        own = mine(everyone.detach()).clone().requires_grad_()
        found = head(with_beginnings(own), mine(finger))
        (found / len(sizes)).backward()
        close(found, wanted, atol=tolerance, rtol=0)
        close(own.grad / processes, mine(everyone.grad), atol=tolerance, rtol=0)
        assert everyone.grad.abs().max() > 1e-2 / size
    for name, parameter in head.named_parameters():
        gradient = whole.get_parameter(name).grad
        assert gradient.abs().max() > 1e-2
        close(parameter.grad, gradient[head.rows], atol=tolerance, rtol=0)

for kind in ("softmax", "arcface", "cosface"):
    for sizes in ((12,), (12, 6), (6, 12, 6)):  # without accumulation, and with it and batches of unlike size
        check(kind, torch.float32, 1e-6, sizes)
        check(kind, torch.float64, 1e-12, sizes)

# a sample, of which each rank draws its part, is the head with the union of all parts
torch.manual_seed(0)
whole = IdentityHead(DIM, 100, "cosface", 4.0, 0.3)
torch.manual_seed(0)
head = ShardedHead(DIM, 100, "cosface", 4.0, 0.3, sampling=0.2)
torch.manual_seed(rank)
finger = torch.arange(12) * 8
head.draw(finger)
drawn = [torch.zeros(1)] * processes
dist.all_gather_object(drawn, head._drawn_rows + head.rows.start)
assert all(len(part) >= 0.2 * 100 // processes for part in drawn)
union = torch.cat(drawn)
assert set(finger.tolist()) <= set(union.tolist()) and len(union) < 60
everyone = unit(12, torch.float32, 5)
logits = whole.logits(everyone, finger)
wanted = F.cross_entropy(torch.full_like(logits, -torch.inf).index_copy_(1, union, logits[:, union]), finger)
close(head([mine(everyone)], mine(finger)), wanted, atol=1e-6, rtol=0)

# what is not finite in one slice makes a gradient scaler skip on all ranks
for bad in (True, False):
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(parameter.sum() * (float("inf") if bad and rank == 1 else 1.0)).backward()
    spread_what_is_not_finite([parameter])
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    close(parameter.detach(), torch.full((3, 2), 1.0 if bad else 0.9))
    assert scaler.get_scale() == (2.0 if bad else 4.0)
# one rank prints an error that all have, and each rank prints its own
agreement.PATIENCE = 0.1
for texts, wanted in ({"the same"}, ["RepeatedError"] * (processes - 1) + ["UserError"]), (range(9), ["UserError"]):
    kinds = [""] * processes
    try:
        with agreement.said_once():
            raise UserError(str(list(texts)[rank % len(texts)]))
    except UserError as error:
        dist.all_gather_object(kinds, type(error).__name__)
    assert sorted(kinds) == (wanted if len(wanted) > 1 else wanted * processes)
print("equal on rank", rank)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("launcher", ["two processes", "three processes"])
def test_slices_equal_the_whole(launcher, environment, tmp_path):
    script = tmp_path / "equal.py"
    script.write_text(EQUAL)
    result = launched(launcher, [script], environment)
    assert result.stdout.count("equal on rank") == {"two processes": 2, "three processes": 3}[launcher]


# Trains one run after the other on the same processes. In one of them rank 1 alone has a loss of NaN in step 3.
TRAIN = """
import json, runpy, sys
from fingerprint_accel.config import parse
from fingerprint_accel.losses.deepprint import DeepPrintLoss, LossParts
from fingerprint_accel.recipe import run_training

calls, forward = [], DeepPrintLoss.forward

def poisoned(self, *arguments):
    result = forward(self, *arguments)
    calls.append(1)
    bad = len(calls) == 3 and run_rank == 1
    return LossParts(result.total + (float("nan") if bad else 0.0), result.parts)

recipe, *runs = sys.argv[1:]
for words in runs:
    config = parse(runpy.run_path(recipe)["CONFIG"], "", json.loads(words))
    DeepPrintLoss.forward = poisoned if config.out.endswith("poisoned") else forward
    run = run_training(config)
    run_rank = run.accelerator.process_index
run.accelerator.state.destroy_process_group()
"""
SAME = ["--model.norm", "group", "--model.dropout", "0", "--loss.scale", "16", "--loss.matryoshka-dims", "4"]
SHARDED = ["--loss.sharded"]
SAVE = ["--training.save-every", "6"]
# sgd shows wrongly scaled gradients, which adamw hides; this norm clips in every step
CLIPPED = ["--training.optimizer", "sgd", "--training.learning-rate", "0.5", "--training.max-grad-norm", "1"]
CLIPPED += ["--training.gradient-accumulation-steps", "2", "--training.steps", "6"]
SAMPLED = ["--loss.class-sample-rate", "0.5", "--loss.head", "arcface", "--loss.interclass-filter-threshold", "0.6"]
SAMPLED += ["--training.gradient-accumulation-steps", "2", *SHARDED, *SAVE]
HALF = "checkpoints/step-00000006"


@pytest.fixture(scope="module")
def trained(prints, tmp_path_factory):
    """Folder of runs of 12 prints a step, or 24 where they accumulate."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "train.py").write_text(TRAIN)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    two = {"two": [*SAVE, *SHARDED], "two clipped": [*CLIPPED, *SHARDED], "sampled": SAMPLED}
    two["sampled again"] = [*SAMPLED, "--resume", str(folder / "sampled" / HALF)]
    two["poisoned"] = [
        *SHARDED,
        "--training.steps",
        "4",
        "--training.save-every",
        "1",
        "--training.save-total-limit",
        "9",
    ]
    resume, start = ["--resume", str(folder / "two" / HALF)], ["--model.init-from", str(folder / "two")]
    two["started"] = [*start, *SHARDED, "--training.steps", "2"]
    one = {"whole": SAVE, "whole clipped": CLIPPED, "on one": [*resume, *SHARDED], "on one, whole": resume}
    one["started whole"] = [*start, "--training.steps", "2"]
    three = {"on three": [*resume, *SHARDED]}
    for launcher, batch, runs in (("two processes", 6, two), ("one process", 12, one), ("three processes", 4, three)):
        given = [*TINY, *SAME, "--data", str(prints), "--training.batch-size", str(batch)]
        words = [json.dumps([*given, *own, "--out", str(folder / name)]) for name, own in runs.items()]
        launched(launcher, [folder / "train.py", ROOT / "recipes" / "train_10k.py", *words], environment)
    return folder


def course(folder, what="loss"):
    return np.array([record[what] for record in records(folder)])


def final_state(folder):
    return load_file(folder / "checkpoints" / "step-00000012" / "training_state.safetensors")


def same_state(found, wanted, atol):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=atol, err_msg=name)


def test_slices_train_what_the_whole_head_does(trained):
    losses = course(trained / "whole")
    assert len(losses) == 12
    np.testing.assert_allclose(course(trained / "two"), losses, rtol=0, atol=1e-5)
    same_state(final_state(trained / "two"), final_state(trained / "whole"), 1e-4)
    assert len(final_state(trained / "two")["loss.heads.texture.weight"]) % 3 == 1, "slices of three differ in length"


@pytest.mark.parametrize("name", ["on one", "on one, whole", "on three"])
def test_saved_on_two_resumed_on_another_number(name, trained):
    """With slices, and by the head that is not sharded."""
    np.testing.assert_allclose(course(trained / name), course(trained / "two")[6:], rtol=0, atol=1e-5)
    same_state(final_state(trained / name), final_state(trained / "two"), 1e-4)


def test_clipping_counts_all_slices(trained):
    norms = course(trained / "whole clipped", "gradient_norm")
    assert min(norms) > 1
    np.testing.assert_allclose(course(trained / "two clipped", "gradient_norm"), norms, rtol=1e-4)
    np.testing.assert_allclose(course(trained / "two clipped"), course(trained / "whole clipped"), rtol=0, atol=1e-4)


def test_a_loss_that_is_nan_on_one_rank_is_skipped_on_all(trained):
    """Neither slice of the class vectors moves, nor what the optimizer knows of them."""
    assert course(trained / "poisoned", "skipped").tolist() == [0, 0, 1, 0]
    folders = [trained / "poisoned" / "checkpoints" / f"step-{step:08d}" for step in (2, 3, 4)]
    before, after, later = (load_file(folder / "training_state.safetensors") for folder in folders)
    same_state(after, before, 0)
    moved = (later["loss.heads.texture.weight"] != after["loss.heads.texture.weight"]).any(dim=1)
    assert moved.all()


def test_slices_start_as_means_of_their_fingers(trained):
    np.testing.assert_allclose(course(trained / "started"), course(trained / "started whole"), rtol=0, atol=1e-5)


def test_samples_resume_with_the_same_bits(trained):
    losses = course(trained / "sampled")
    assert np.isfinite(losses).all()
    assert course(trained / "sampled", "skipped").sum() == 0
    assert course(trained / "sampled again").tolist() == losses[6:].tolist()
    state = final_state(trained / "sampled")
    same_state(final_state(trained / "sampled again"), state, 0)
    name = "loss.heads.texture.weight"
    assert state[f"optimizer.{name}.exp_avg"].shape == state[name].shape, "of all classes"
    assert not any("drawn" in key for key in state)
