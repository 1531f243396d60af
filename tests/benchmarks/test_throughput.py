"""`benchmarks/throughput.py`, its reference and `benchmarks/mixing.py`: right on what can be computed by hand."""

import dataclasses
import importlib
import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import starting
import torch
from shard_writer import ShardWriter

from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
TINY = [
    *("--preprocess.crop", "64", "--preprocess.size", "32"),
    *("--model.trunk", "compact", "--model.width", "8", "--model.embedding-dim", "16"),
    *("--training.batch-size", "4", "--training.precision", "no", "--seconds", "0.1"),
]
TOO_LARGE = "2000000000"  # prints of 64 x 64 do not fit into any address space


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """24 gratings of 6 fingers, 64 x 64 pixels, two minutiae each."""
    folder = tmp_path_factory.mktemp("data") / "gratings"
    minutiae = np.array([[20, 30, 1.0, 1.0], [40, 35, 3.0, 1.0]], np.float32)
    with ShardWriter(folder, ppi=300, canvas=64) as writer:
        for row in range(24):
            writer.add(Record(grating(64, 6, row / 8), f"finger-{row % 6}", row // 6, "test", minutiae))
    return folder


def grating(side, period, angle=0.0):
    y, x = np.mgrid[:side, :side]
    wave = np.cos(2 * np.pi * (x * math.cos(angle) + y * math.sin(angle)) / period)
    return (127.5 - 127 * wave).astype(np.uint8)


def run(*words):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return starting.run([BENCHMARKS / "throughput.py", *words], environment=environment)


def test_stages_and_sweep(dataset, tmp_path):
    out = tmp_path / "speed.json"
    result = run(
        *("--data", dataset, *TINY, "--out", out, "--variants", "Tex,TexMinu", "--batch-sizes", f"4,{TOO_LARGE}"),
        "--preprocess.enhance",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(out.read_text())
    rows, ceilings = found["results"], found["ceilings"]
    per_size = ["prepare", "step", "train"]
    assert [row["stage"] for row in rows] == ["read", "raw", *4 * per_size]
    failed = [row for row in rows if "error" in row]
    assert {row["error"] for row in failed} == {"out of memory"}
    assert [row["batch_size"] for row in failed] == 6 * [int(TOO_LARGE)]
    for row in rows:
        if row in failed:
            continue
        rates = row["rounds"]
        assert row["slowest_round"] == min(rates) <= row["samples_per_second"] <= max(rates) == row["fastest_round"]
        assert row["samples_per_second"] == sorted(rates)[len(rates) // 2]
        assert row["peak_memory_mb"] > 10
        speed, ceiling = row["samples_per_second"], ceilings.get(row.get("ceiling"))
        if row["stage"] in ("read", "raw"):
            assert row["copy_share"] == pytest.approx(speed * 2 * 64**2 / 1e9 / ceiling)
        elif row["stage"] == "prepare":
            drawn = ["minutia maps"] if row["variant"] == "TexMinu" else []
            names = ["to ink", "pose", "resample", "augment", *drawn, "normalize", "enhance", "rest"]
            assert sorted(row["parts"]) == sorted(names)
            assert sum(part["share"] for part in row["parts"].values()) == pytest.approx(1)
            assert all(0 <= part["share"] <= 1 for part in row["parts"].values())
        else:
            assert row["mfu"] == pytest.approx(speed * row["flops_per_print"] / 1e12 / ceiling)
            assert 0 < row["mfu"] < 1
        assert ("data_wait_share" in row) == (row["stage"] == "train")
        assert 0 <= row.get("data_wait_share", 0) <= 1
    flops = {row["variant"]: row["flops_per_print"] for row in rows if row["stage"] == "step" and row not in failed}
    assert flops["TexMinu"] > flops["Tex"] > 1e6
    setting = found["setting"]
    assert setting["versions"]["torch"] == torch.__version__
    assert setting["processes"] == 1
    assert setting["cpu_cores_usable"] >= 1
    assert setting["config"]["training"]["batch_size"] == 4
    assert out.with_suffix(".png").stat().st_size > 5000
    assert "out of memory" in result.stdout
    assert "products of fp32 matrices" in result.stdout


def test_only_what_is_compiled_is_called_so():
    tool = importlib.import_module("throughput")
    rows = [{"stage": "step", "compile": mode} for mode in ("no", "default")]
    assert [tool.describe(row) for row in rows] == ["step", "step compiled"]


def test_memory_that_graphs_hold_is_counted(monkeypatch):
    sizes = {(0, 0): 3_000_000, (0, 1): 2_000_000, (1, 0): 5_000_000}
    segments = [{"total_size": size, "segment_pool_id": pool} for pool, size in sizes.items()]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert importlib.import_module("timing").held_by_graphs_mb() == 7.0


def test_what_was_measured_is_kept(monkeypatch, tmp_path):
    """By a run that fails, or is cut off, at its second combination."""
    tool, options = importlib.import_module("throughput"), importlib.import_module("throughput_options")
    rows = iter([[{"stage": "step", "samples_per_second": 5.0}]])
    monkeypatch.setattr(tool, "measure_ceilings", lambda *_: {"matmul_fp32_tflops": 1.0})
    monkeypatch.setattr(tool, "measure", lambda *_: next(rows))
    asked = options.read_options(["--stages", "step", "--batch-sizes", "4,8", "--out", str(tmp_path / "speed.json")])
    process = SimpleNamespace(device=torch.device("cpu"), num_processes=1, is_main_process=True, print=lambda *_: None)
    with pytest.raises(StopIteration):
        tool.run_stages(asked, process)
    assert json.loads((tmp_path / "speed.json").read_text())["results"] == [
        {"stage": "step", "samples_per_second": 5.0}
    ]


def test_comparison(dataset, tmp_path):
    out, plot = tmp_path / "compare.json", tmp_path / "other.png"
    words = ("--data", dataset, *TINY, "--compare", "reference", "--reference-workers", "1")
    result = run(*words, "--out", out, "--plot", plot)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(out.read_text())["comparison"]
    training, core, ratio = found["training"], found["preprocess_per_core"], found["ratio"]
    plain, ours = (training[side]["samples_per_second"] for side in ("reference", "ours"))
    assert ratio["training"] == pytest.approx(ours / plain)
    rates = {name: side["samples_per_second"] for name, side in core.items()}
    for name, ending in (("ours", ""), ("ours_with_filter_bank", "_with_filter_bank")):
        assert ratio["preprocess_per_core" + ending] == pytest.approx(rates[name] / rates["reference"])
    parts = core["reference"]["ms_per_print"]
    assert sorted(parts) == ["decode", "minutia map", "pose", "ridge filter bank", "segment"]
    assert parts["ridge filter bank"] > parts["decode"] > 0
    assert "enhance" in core["ours_with_filter_bank"]["ms_per_print"]
    assert "enhance" not in core["ours"]["ms_per_print"]
    assert training["reference"]["batch_size"] == 16
    assert training["reference"]["worker_start_seconds"] > 0
    assert all(0 <= training[side]["data_wait_share"] <= 1 for side in training)
    hours = found["projected"]["hours_per_epoch"]
    assert [(row["prints"], row["devices"]) for row in hours] == [
        (prints, devices) for prints in (500_000, 1_000_000, 1_500_000) for devices in (1, 4, 8)
    ]
    for row in hours:
        assert row["our_hours"] == pytest.approx(row["prints"] / ours / row["devices"] / 3600)
        assert row["reference_hours"] == pytest.approx(row["prints"] / plain / row["devices"] / 3600)
    assert "linear" in found["projected"]["assumption"]
    assert plot.stat().st_size > 5000
    assert "projected hours per epoch" in result.stdout


DIM_15 = ["--model.variant", "Tex", "--model.embedding-dim", "15"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stages", "sleep"], "--stages sleep: there are read, raw, decode, prepare, step, train"),
        (["--batch-sizes", "8,none"], "--batch-sizes none: must be a whole number above 0"),
        (["--variants", "Text"], "--variants Text: there are Tex, Minu"),
        (["--precisions", "fp8"], "--precisions fp8: there are no, bf16, fp16"),
        (["--compile", "yes"], "--compile yes: there are no, default, reduce-overhead, max-autotune"),
        (["--seconds", "0"], "--seconds 0: must be above 0"),
        (["--seconds", "soon"], "invalid float value: 'soon'"),
        (["--compare", "flx"], "--compare flx: only `reference` exists"),
        (["--compare", "reference", "--batch-sizes", "8,16"], "--compare takes one combination"),
        (["--compare", "reference", "--stages", "read"], "--compare has its own stages"),
        (["--out", "speed.txt"], "--out speed.txt: must be a file that ends in .json"),
        ([*DIM_15, "--variants", "Tex,TexMinu"], "model.embedding_dim must be even for TexMinu"),
    ],
)
def test_mistakes(words, message):
    from throughput_options import read_options

    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_options(words)
    assert "\n" not in str(error.value)


def test_combinations():
    from throughput_options import read_options

    options = read_options(
        ["--variants", "Tex,Minu", "--batch-sizes", "8", "--precisions=no,bf16", "--model.width", "8"]
    )
    found = [(c.model.variant, c.training.batch_size, c.training.precision, c.model.width) for c in options.configs]
    assert found == [("Tex", 8, "no", 8), ("Tex", 8, "bf16", 8), ("Minu", 8, "no", 8), ("Minu", 8, "bf16", 8)]
    assert options.plot is None
    assert read_options(["--out", "speed.json"]).plot == Path("speed.png")


def test_decoding_is_measured_where_shards_are_compressed(dataset):
    from stages import not_here

    from fingerprint_accel.data.loader import subset_of_fingers
    from fingerprint_accel.data.shards import open_dataset

    shards = open_dataset(dataset)
    train = subset_of_fingers(shards, np.ones(6, bool))
    for encoding, here in (("raw", ["raw"]), ("lz4", ["decode"])):
        shards.info = dataclasses.replace(shards.info, encoding=encoding)
        assert [stage for stage in ("raw", "decode") if not_here(stage, SimpleNamespace(train=train)) is None] == here
    assert not_here("raw", SimpleNamespace(train="rendered")) == "prints are rendered, not read"


def test_flops_of_a_linear_layer():
    from ceilings import flops_of

    layer, inputs = torch.nn.Linear(64, 32), torch.randn(8, 64, requires_grad=True)
    assert flops_of(lambda: layer(inputs)) == 2 * 8 * 64 * 32
    assert flops_of(lambda: layer(inputs).sum().backward()) == 3 * 2 * 8 * 64 * 32


def test_flops_without_memory_are_those_of_a_real_step():
    from ceilings import flops_of, training_flops

    from fingerprint_accel.config import Config, ModelConfig, PreprocessConfig
    from fingerprint_accel.losses.deepprint import DeepPrintLoss
    from fingerprint_accel.models.deepprint import DeepPrint

    config = Config(
        model=ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=16),
        preprocess=PreprocessConfig(crop=64, size=64),
    )
    model = DeepPrint(config.model, 32)
    loss = DeepPrintLoss(config.loss, model, 5)
    image, maps, finger = torch.randn(6, 1, 64, 64), torch.zeros(6, 6, 32, 32), torch.arange(6) % 5
    there = torch.ones(6, dtype=torch.bool)
    real = flops_of(lambda: loss(model(image), finger, maps, there).total.backward())
    assert training_flops(config, classes=5) == real / 6


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_reference_bank_answers_ridges(angle):
    from reference import BANKS, enhance, ridges_and_valleys

    assert [tuple(bank.shape) for bank in BANKS] == [(16, 1, side, side) for side in (15, 25, 41)]
    for bank in BANKS:
        assert bank.sum(dim=(1, 2, 3)).abs().max() < 1e-5
    grey = torch.from_numpy(grating(160, 10, angle)).float() / 255  # ridges 5 pixels wide
    ridges, valleys = ridges_and_valleys(grey)
    middle = (slice(50, 110), slice(50, 110))
    dark, bright = grey[middle] < 0.1, grey[middle] > 0.9
    assert ridges[middle][dark].min() > 0.6
    assert valleys[middle][bright].min() > 0.6
    assert ridges[middle][bright].max() < 0.2
    enhanced = enhance(ridges, valleys)
    assert enhanced[middle][dark].min() > 0.9
    assert enhanced[middle][bright].max() == 0


def test_reference_bank_is_silent_on_flat_grey():
    from reference import enhance, ridges_and_valleys

    for level in (0.0, 0.5, 1.0):
        ridges, valleys = ridges_and_valleys(torch.full((96, 96), level))
        assert max(ridges.max(), valleys.max(), enhance(ridges, valleys).max()) < 1e-3


def test_reference_minutia_map():
    from reference import minutia_map

    drawn = minutia_map(np.array([[21.0, 41.0, 0.0, 1.0]], np.float32), size=256, map_size=128, sigma=1.5)
    assert drawn.shape == (6, 128, 128)  # the minutia lies at (10.5, 20.5) of the map, the centre of a pixel
    assert drawn[0, 20, 10] == 1
    assert drawn[0, 20, 11] == pytest.approx(math.exp(-1 / 4.5))
    assert drawn[0, 22, 11] == pytest.approx(math.exp(-5 / 4.5))
    turned = math.exp(-(math.pi / 3) / (2 * (math.pi / 6) ** 2))
    assert drawn[1, 20, 10] == drawn[5, 20, 10] == pytest.approx(turned)
    assert drawn[0, 20, 14] == 0  # beyond two standard deviations
    assert np.count_nonzero(drawn[0]) == 49


def test_reference_moves_minutiae_with_the_image():
    from reference import Pose, move_minutiae, resample_one

    pose = Pose(angle=0.3, scale=1.04, shift_x=5.0, shift_y=-7.0)
    canvas = torch.zeros(128, 128)
    canvas[40:43, 80:83] = 1  # a spot around (81.5, 41.5)
    image = resample_one(canvas, pose, crop=96, size=96)
    y, x = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    seen = [float((axis * image).sum() / image.sum()) for axis in (x, y)]
    moved = move_minutiae(np.array([[81.5, 41.5, 1.0, 1.0]]), pose, canvas=128, crop=96, size=96)[0]
    assert moved[:2] == pytest.approx(seen, abs=0.05)
    step = move_minutiae(np.array([[81.5 + math.cos(1), 41.5 - math.sin(1), 1, 1]]), pose, 128, 96, 96)[0]
    assert math.atan2(moved[1] - step[1], step[0] - moved[0]) == pytest.approx(moved[2])


def test_mated_pairs_of_a_batch():
    from mixing import expected_pairs, mated_pairs

    assert mated_pairs(np.array([[3, 3, 3, 7], [1, 2, 1, 2], [4, 5, 6, 7]])).tolist() == [3, 2, 0]
    assert expected_pairs(np.array([2, 2]), batch=2) == pytest.approx(1 / 3)  # 2 of the 6 pairs are mated
    assert expected_pairs(np.array([3, 1, 5]), batch=9) == pytest.approx(3 + 10)  # the whole dataset


def test_expected_pairs_are_those_of_uniform_permutations():
    from mixing import expected_pairs, mated_pairs

    generator = np.random.default_rng(0)
    prints = generator.integers(1, 12, 60)
    labels = np.repeat(np.arange(60), prints)
    batches = np.stack([generator.permutation(labels)[:32] for _ in range(4000)])
    pairs = mated_pairs(batches)
    error = pairs.std(ddof=1) / math.sqrt(len(pairs))
    assert abs(pairs.mean() - expected_pairs(prints, 32)) < 4 * error
    assert error < 0.03 * pairs.mean()


def test_mixing_of_the_orders():
    from mixing import expected_pairs, mixing

    labels = np.arange(20_000) // 8
    expected = expected_pairs(np.bincount(labels), 256)
    whole = mixing(labels, "permutation", 256, 0, seed=0)
    assert abs(whole["mean"] - expected) < 4 * whole["standard_error"]
    assert whole["batches"] == 78
    assert mixing(labels, "sequential", 256, 0, seed=0)["mean"] == 256 / 8 * math.comb(8, 2)
    block = mixing(labels, "block", 256, 2000, seed=0)  # ten blocks, each a dataset of its own
    inside = expected_pairs(np.full(250, 8), 256)
    assert abs(block["mean"] - inside) < 0.1 * inside
