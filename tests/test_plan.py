"""Plans agree with the recipes, with what a dataset takes on disk, and with what a GPU was measured to take."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.plan import MFU, MODEL, RECIPES, ROW_BYTES, SIZE, need, plan
from fingerprint_accel.plan_devices import DEVICES, GIB, Cluster, Link, ethernet, parse_devices
from fingerprint_accel.plan_network import Gradient, count
from fingerprint_accel.plan_scaling import Collective, buckets, collectives, duration, sent, step
from fingerprint_accel.synthesis.writing import write_synthetic_dataset

ROOT = Path(__file__).resolve().parents[1]
H100 = ROOT / "benchmarks" / "results" / "h100"
ROWS = json.loads((H100 / "tex.json").read_text())["results"]
NOW = next(row for row in ROWS if row["code"].startswith("aa2ba66"))
"""Of the network as it is; those before are of one that took more memory."""
TRAINING = next(row for row in ROWS if (row["stage"], row["compile"], "while" in row["code"]) == ("train", "no", False))
"""From files, while nothing else ran."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_are_what_plans_say(recipe, monkeypatch):
    config = runpy.run_path(str(ROOT / "recipes" / recipe.name), run_name="recipe")["CONFIG"]
    assert (config.training.batch_size, config.training.epochs) == (recipe.batch_size, recipe.epochs)
    assert (config.loss.sharded, config.loss.class_sample_rate) == (recipe.sharded, recipe.sampling)
    exchanged, said = config.training, recipe.config(MODEL).training
    assert (exchanged.gradient_compression, exchanged.bucket_cap_mb) == (recipe.compression, recipe.bucket_cap_mb)
    assert (exchanged.gradient_accumulation_steps, exchanged.log_every) == (1, said.log_every)
    for name in ("head", "center_weight", "contrastive_weight", "matryoshka_dims"):
        assert getattr(config.loss, name) == getattr(recipe.config(MODEL).loss, name)
    for name in ("variant", "trunk", "embedding_dim"):
        assert getattr(config.model, name) == getattr(MODEL, name)
    assert config.preprocess.size == SIZE


@pytest.fixture(scope="module")
def tex():
    return count(ModelConfig(variant="Tex", trunk="inception_v4", embedding_dim=512), SIZE)


def test_memory_and_work_are_those_of_a_gpu(tex):
    """Peak memory and operations of the training step that was measured, and prints/s of training."""
    assert (NOW["stage"], NOW["compile"]) == ("step", "no")
    planned = need(tex, fingers=256, batch_size=NOW["batch_size"], devices=1, recipe=RECIPES[0]).total
    assert planned == pytest.approx(NOW["peak_memory_mb"] * 1e6, rel=0.02)
    assert tex.flops == pytest.approx(NOW["flops_per_print"], rel=0.01)
    planned = DEVICES["H100"].tflops * 1e12 * MFU / tex.flops
    assert planned == pytest.approx(TRAINING["samples_per_second"], rel=0.01)


def test_disk_is_that_of_a_dataset(tmp_path):
    write_synthetic_dataset(tmp_path / "set", 8, 8, seed=1, workers=1, progress=False)
    size = sum(file.stat().st_size for file in (tmp_path / "set").glob("*.arrow"))
    assert size == pytest.approx(64 * (320**2 + ROW_BYTES), rel=0.05)


def test_attention_is_counted():
    """Of 16 tokens of 384 numbers in 12 blocks, by hand; forward and twice that backward."""
    products, attention = 12 * 2 * 16 * 384**2 * (3 + 1 + 4 + 4), 12 * 2 * 2 * 16**2 * 384
    ends = 2 * 16 * 16**2 * 384 + 2 * 384 * 96
    counted = count(ModelConfig(variant="Tex", trunk="vit_small", embedding_dim=96), 64)
    assert counted.flops == 3 * (products + attention + ends)


@pytest.mark.parametrize("trunk", ["inception_v4", "compact", "vit_small"])
def test_every_parameter_has_a_gradient_in_the_buckets(trunk, tex):
    """Also those of convolutions that run as one. The last gradient is ready at the end of the backward pass."""
    counted = tex if trunk == "inception_v4" else count(ModelConfig(variant="LocDense", trunk=trunk), 64)
    assert sum(gradient.size for gradient in counted.gradients) == counted.parameters
    ready = [gradient.ready for gradient in counted.gradients]
    assert ready == sorted(ready)
    assert (ready[0] < 0.1, ready[-1]) == (True, 1.0)


def test_devices_that_share_a_network_out_need_less(tex):
    alone, shared = (need(tex, 1000, 64, 8, RECIPES[0], fsdp).network for fsdp in (False, True))
    assert alone == 18 * tex.parameters
    blocks = 2 * 8 * tex.largest_block  # two whole ones, with gradients
    assert shared == pytest.approx(tex.parameters * (2 + 16 / 8) + blocks)
    assert tex.largest_block < tex.parameters / 4


def test_what_will_not_fit_is_said(tex, monkeypatch):
    monkeypatch.setattr("fingerprint_accel.plan.count", lambda *_: tex)
    assert "WILL NOT FIT" not in plan(100_000, 10, "8xA100-80")
    text = plan(300_000, 4, "1xRTX4090")  # 256 prints want 21.7 GB for the network alone
    assert "add --training.batch-size 128 --training.gradient-accumulation-steps 2 (same batch per update)" in text


def test_a_slice_of_the_heads_is_smaller(tex):
    whole, slices = (need(tex, 1_000_000, 64, 8, recipe).head / GIB for recipe in (RECIPES[1], RECIPES[2]))
    assert slices < whole / 4


def test_another_trunk_shared_out_is_named(tex, monkeypatch):
    monkeypatch.setattr("fingerprint_accel.plan.count", lambda model, size: tex)
    text = plan(50_000, 10, "4xA100-40", trunk="vit_base", fsdp=True)
    assert "--model.trunk vit_base, --config_file recipes/hardware/fsdp.yaml" in text
    assert " ".join(text.split()).endswith("vit_base was not measured.")
    with pytest.raises(UserError, match="--trunk vit: choose inception_v4, compact, vit_small, vit_base"):
        plan(50_000, 10, "4xA100-40", trunk="vit")


@pytest.mark.parametrize("gpus", ["8xA10", "0xH100", "x", ""])
def test_unknown_devices_are_refused(gpus):
    with pytest.raises(UserError, match="types: A100-40"):
        plan(1000, 10, gpus)


def test_machines_are_read():
    name, _, cluster = parse_devices("2x8xH100", 400)
    assert (name, cluster.machines, cluster.devices, cluster.processes) == ("H100", 2, 8, 16)
    assert [link.bandwidth for link in cluster.links] == [370e9, 40e9]
    assert parse_devices("A100-80")[2].processes == 1
    with pytest.raises(UserError, match="write 4x8xH100"):
        parse_devices("32xH100")
    for none in ("0xH100", "00xH100", "0x8xH100", "2x00xH100", "9" * 5000 + "x8xH100"):
        with pytest.raises(UserError, match="give a number and a type"):
            parse_devices(none)
    with pytest.raises(UserError, match="--network 0: give the Gbit/s"):
        parse_devices("2x8xH100", 0)


def test_a_ring_takes_as_long_as_its_slowest_link():
    """By hand: a reduction sends every byte twice but for the own share, a gather passes on what the others have."""
    fast, slow = Link("fast", 1e9, 1e-6), Link("slow", 1e8, 1e-3)
    reduction, gather = Collective("all_reduce", 8_000, "gradients"), Collective("all_gather", 1_000, "centres")
    one, two = Cluster(1, 8, fast, slow, launch=1e-5), Cluster(2, 4, fast, slow, launch=1e-5)
    assert (sent(reduction, one), sent(gather, one)) == (14_000, 7_000)
    assert duration(reduction, one) == pytest.approx(1e-5 + 14 * 1e-6 + 14_000 / 1e9)
    assert duration(gather, one) == pytest.approx(1e-5 + 7 * 1e-6 + 7_000 / 1e9)
    assert duration(reduction, two) == pytest.approx(1e-5 + 12 * 1e-6 + 2 * 1e-3 + 14_000 / 1e8)
    assert duration(reduction, Cluster(1, 1, fast, slow)) == 0
    assert duration(reduction, Cluster(2, 1, fast, slow, 0)) == pytest.approx(2e-3 + 8_000 / 1e8)


def test_buckets_fill_in_the_order_of_the_backward_pass():
    """A bucket of 1 MiB ends with the gradient that fills it."""
    config = RECIPES[0].config(MODEL)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, bucket_cap_mb=1))
    gradients = [Gradient(2**17, 0.1), Gradient(2**18, 0.3), Gradient(2**18, 0.4), Gradient(5, 1.0)]
    found = [(bucket.size, bucket.ready) for bucket in buckets(gradients, config)]
    assert found == [(4 * (2**17 + 2**18), 0.3), (2**20, 0.4), (20, 1.0)]


def test_the_backward_pass_hides_reductions():
    """By hand: of 3 s, the backward pass takes 2 s. Reductions of 0.5 s start at 1.0 s and at its end."""
    link = Link("link", 1e6, 0.0)
    cluster = Cluster(1, 2, link, link, launch=0.0)
    found = step(3.0, [Collective("all_reduce", 500_000, "gradients", ready) for ready in (0.5, 1.0)], cluster)
    assert (found.seconds, found.communication, found.waiting) == pytest.approx((3.5, 1.0, 0.5))
    found = step(3.0, [Collective("all_reduce", 1_500_000, "gradients", 0.5)] * 2, cluster)  # the second one queues
    assert (found.seconds, found.efficiency) == pytest.approx((5.0, 0.6))
    found = step(3.0, [Collective("all_reduce", 500_000, "losses", every=10)], cluster)
    assert found.waiting == pytest.approx(0.05)


def test_a_slow_network_costs_speed(tex, monkeypatch):
    """Eight A100 lose almost nothing over NVLink; on 1 Gbit/s, two machines wait for their gradients."""
    monkeypatch.setattr("fingerprint_accel.plan.count", lambda *_: tex)
    text = plan(100_000, 10, "8xA100-80")
    assert "scaling efficiency  99.8 %" in text
    slow = step(0.5, collectives(tex, RECIPES[3].config(MODEL), 100_000, 2), Cluster(2, 1, ethernet(1), ethernet(1)))
    assert slow.efficiency < 0.6
    assert "communication     not estimated with FSDP" in plan(100_000, 10, "8xA100-80", fsdp=True)
    assert "communication" not in plan(100_000, 10, "1xA100-80")
