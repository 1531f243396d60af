"""Plans agree with the recipes, with what a dataset takes on disk, and with what a GPU was measured to take."""

import json
import runpy
from pathlib import Path

import pytest

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.plan import DEVICES, GIB, MFU, MODEL, RECIPES, ROW_BYTES, SIZE, count, need, plan
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
