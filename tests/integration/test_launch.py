"""Every recipe runs as its help says and on two processes, and two processes train what one would."""

import json
import math
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import starting
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from fingerprint_accel.config import Config, ReadingConfig, parse
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.splitting import split_prints
from fingerprint_accel.recipe import run_training

from .conftest import ROOT, TINY, launched

RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.py"))
HARDWARE = sorted((ROOT / "recipes" / "hardware").glob("*.yaml"))


def launch(launcher, recipe, environment, *words):
    return launched(launcher, [ROOT / "recipes" / recipe, *TINY, *words], environment)


def records(folder, kind="train"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_parses(recipe, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")  # as `python recipes/NAME.py` does
    names = runpy.run_path(str(ROOT / "recipes" / recipe), run_name="recipe")
    assert isinstance(names["CONFIG"], Config)
    assert "accelerate launch" in names["__doc__"]


@pytest.mark.parametrize("path", HARDWARE, ids=lambda path: path.name)
def test_hardware_parses(path):
    config = load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text())
    assert config.mixed_precision == values["mixed_precision"]
    assert config.num_processes == values["num_processes"]


EVERY_LAUNCHER = "train_10k.py"
LARGER = ["train_100k.py", "train_500k.py", "train_1m.py", "train_1_5m.py"]  # launched like train_10k.py
LAUNCHED = [recipe for recipe in RECIPES if recipe not in LARGER]
TWO_PROCESSES_ONLY = "pretrain_base.py"  # to save time
RUNS = [
    (EVERY_LAUNCHER, "one process"),
    (EVERY_LAUNCHER, "accelerate"),  # torchrun: test_survival.py
    *((recipe, "one process") for recipe in LAUNCHED if recipe not in (EVERY_LAUNCHER, TWO_PROCESSES_ONLY)),
]
RUNS += [(recipe, "two processes") for recipe in LAUNCHED if recipe != EVERY_LAUNCHER]  # must be one run of both

SHRUNK = {  # the tiny network has few numbers, and is not of the bundled one's shape
    "pretrain_small.py": ["--reading.siblings", "1"],
    "pretrain_base.py": ["--reading.siblings", "1", "--model.variant", "LocDense", "--model.grid", "4"],
    "finetune.py": ["--model.init-from", ""],
    "quickstart.py": ["--model.init-from", ""],
}


@pytest.mark.parametrize(("recipe", "launcher"), RUNS)
def test_recipe_runs(recipe, launcher, prints, environment, tmp_path):
    words = SHRUNK.get(recipe, [])
    shutil.copytree(prints, tmp_path / "run" / "unseen-prints")  # else some recipes make them
    result = launch(launcher, recipe, environment, "--data", prints, "--out", tmp_path / "run", *words)
    assert "best validation EER" in result.stdout
    assert ("cpu:0 x 2 | " in result.stdout) == (launcher == "two processes")
    assert len(records(tmp_path / "run")) == 12
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    notes = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["notes"]
    if not recipe.startswith("pretrain_"):  # they keep notes of their own
        assert notes["usual_norm"] > 0
        (way,) = notes["calibration"]["ways"]
        assert notes["calibration"]["source"] == f"validation fingers of {prints.name}"
        assert notes["calibration"]["synthetic"]
        assert way["prints"] == 4 * way["fingers"]
        assert list(way["thresholds"]) == (["0.01"] if way["nonmated"] < 1000 else ["0.01", "0.001"])
    if recipe == "quickstart.py":
        metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
        assert 0 <= metrics["eer"] <= 1
        assert (tmp_path / "run" / "evaluation" / "report.html").stat().st_size > 10_000
    if recipe.startswith("pretrain_"):
        as_is, posed = notes["calibration"]["ways"]
        poses = 6 if "LocDense" in words else 45
        assert (as_is["nonmated"], posed["nonmated"], posed["poses"]) == (4416, 4416, poses)
        assert 0 <= posed["eer"] <= 1
        assert list(posed["thresholds"]) == ["0.01", "0.001"]


def test_two_processes_calibrate_as_one(prints, environment, tmp_path):
    """The same checkpoint, exported by one process and again by two."""
    run = tmp_path / "run"
    words = ["--data", prints, "--out", run]
    launch("one process", "train_10k.py", environment, *words)
    found = json.loads((run / "model" / "config.json").read_text())["notes"]
    shutil.rmtree(run / "model")
    launch("two processes", "train_10k.py", environment, *words, "--resume", "auto", "--training.batch-size", "2")
    assert json.loads((run / "model" / "config.json").read_text())["notes"] == found


def test_two_processes_cross_validate(prints, environment, tmp_path):
    """Fold membership and the number of comparisons are those of one process."""
    words = ["--data", prints, "--out", tmp_path / "cv", "--model.init-from", "", "--folds", "2"]
    checked = {**environment, "ACCELERATE_DEBUG_MODE": "true"}  # "Should distributed operations be checked?"
    result = launch("two processes", "finetune.py", checked, *words)
    assert result.stdout.count("cross-validation: ") == 1
    assert result.stdout.count("fold 1/2 holds out 12 of 24 fingers (48 prints)") == 1
    found = json.loads((tmp_path / "cv" / "cross_validation.json").read_text())
    assert [(row["fingers"], row["mated"], row["nonmated"]) for row in found["folds"]] == [(12, 72, 1056)] * 2
    for row in found["folds"]:
        best = json.loads((tmp_path / "cv" / f"fold-{row['fold'][0]}" / "best.json").read_text())
        assert row["eer"] == pytest.approx(best["eer"], abs=5e-3), "random weights give scores that rounding reorders"


def test_subjects_are_split_alike_by_two_processes_and_after_a_resume(prints, environment, tmp_path):
    """Six subjects of four fingers, by a csv file."""
    shards = open_dataset(prints)
    table = tmp_path / "subjects.csv"
    lines = [f"{key},{place // 4}" for place, key in enumerate(sorted(shards.key_of_finger))]
    table.write_text("\n".join(["finger_key,subject", *lines]))
    words = ["--data", prints, "--out", tmp_path / "run", "--reading.split-by", table]
    split = split_prints(shards, ReadingConfig(validation_fraction=0.3, split_by=str(table)))
    assert split.fingers == 4 * split.held_out > 0
    result = launch("one process", "train_10k.py", environment, *words, "--training.steps", "6")
    assert result.stdout.count(split.note()) == 1
    resumed = [*words, "--resume", "auto", "--training.batch-size", "2"]
    result = launch("two processes", "train_10k.py", environment, *resumed)
    assert result.stdout.count(split.note()) == 1
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, 13))
    other = [ROOT / "recipes" / "train_10k.py", *TINY, *words[:-2], "--resume", "auto"]
    result = starting.run(other, environment=environment)
    assert result.returncode == 2
    assert "use the same data, seed and options of the group reading" in result.stderr


@pytest.mark.parametrize("recipe", LARGER)
def test_larger_recipe_runs(recipe, prints, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")
    config = runpy.run_path(str(ROOT / "recipes" / recipe), run_name="recipe")["CONFIG"]
    words = [
        *TINY,
        "--loss.matryoshka-dims",
        "8",
        "--training.steps",
        "20",
        "--data",
        str(prints),
        "--out",
        str(tmp_path / "run"),
    ]
    run_training(parse(config, "", words))
    found = records(tmp_path / "run")
    assert len(found) == 20
    assert all(math.isfinite(record["loss"]) for record in found)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_no_other_machine_is_within_reach(environment, tmp_path):
    """Of all that is launched here, the quickstart among it."""
    asking = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    log = tmp_path / "asked"
    result = subprocess.run(
        [sys.executable, "-c", asking],
        env={**environment, "REFUSED_CONNECTIONS": str(log)},
        capture_output=True,
        text=True,
    )
    assert "no network in tests: 192.0.2.1" in result.stderr
    assert log.read_text() == "192.0.2.1\n"


PAIRS = [
    *("--reading.samples-per-class", "2", "--loss.contrastive-weight", "1.0"),
    *("--preprocess.augment.start", "0.2", "--preprocess.augment.ramp", "0.5"),
    *("--loss.margin-start", "0.25", "--loss.margin-ramp", "0.5"),
]


# sgd shows wrongly scaled gradients, which adamw hides
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("words", [[], PAIRS], ids=["plain", "pairs"])
def test_two_processes_train_what_one_does(optimizer, words, prints, environment, tmp_path):
    same = [*words, "--data", prints, "--model.norm", "group", "--model.dropout", "0", "--training.validate-every", "6"]
    same += ["--loss.scale", "16"]  # at 32 the loss is 40, stored in steps of 4e-6: too coarse to compare within 1e-5
    same += ["--training.optimizer", optimizer, "--training.learning-rate", {"adamw": "5e-4", "sgd": "0.05"}[optimizer]]
    one = [*same, "--out", tmp_path / "one", "--training.batch-size", "8"]
    two = [*same, "--out", tmp_path / "two", "--training.batch-size", "4"]
    launch("one process", "train_10k.py", environment, *one)
    launch("two processes", "train_10k.py", environment, *two)
    losses = [[record["loss"] for record in records(tmp_path / name)] for name in ("one", "two")]
    assert len(losses[0]) == 12
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)
    for kind in ("model", "training_state"):
        place = f"checkpoints/step-00000012/{kind}.safetensors"
        found = [load_file(tmp_path / name / place) for name in ("one", "two")]
        for name in found[0]:
            np.testing.assert_allclose(found[0][name], found[1][name], rtol=0, atol=1e-4, err_msg=name)
    steps = [[record["step"] for record in records(tmp_path / name, "validation")] for name in ("one", "two")]
    assert steps == [[6, 12], [6, 12]]
    if optimizer == "sgd" and not words:
        more = ["--training.gradient-compression", "bf16", "--training.bucket-cap-mb", "1", "--out", tmp_path / "half"]
        launch("two processes", "train_10k.py", environment, *same, "--training.batch-size", "4", *more)
        compressed = [record["loss"] for record in records(tmp_path / "half")]
        np.testing.assert_allclose(compressed, losses[1], rtol=0.02)
        assert compressed[0] == losses[1][0], "before the first exchange"
        assert compressed != losses[1], "it does round"
    if words:
        found = records(tmp_path / "two")
        assert all(record["contrastive_texture"] > 0.1 and record["contrastive_minutia"] > 0.1 for record in found)
        strengths, margins = ([record[name] for record in found] for name in ("augmentation", "margin"))
        np.testing.assert_allclose(strengths[:6], 0.2 + 0.8 * np.arange(6) / 6)
        np.testing.assert_allclose(margins, 0.2 * np.clip((np.arange(12) - 3) / 6, 0, 1))


CONTRAST = """
import sys
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from fingerprint_accel.losses.attraction import contrastive_loss

class Embed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))

    def forward(self, inputs, finger):
        return contrastive_loss(torch.nn.functional.normalize(inputs @ self.weight, dim=1), finger, 0.1)

accelerator = Accelerator()
module, rank, processes = accelerator.prepare(Embed()), accelerator.process_index, accelerator.num_processes
inputs = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
finger = torch.tensor([0, 0, 1, 2, 3, 3, 1, 1, 4, 5, 0, 2])  # mates within ranks, across ranks, and none
mine = slice(rank * 12 // processes, (rank + 1) * 12 // processes)
loss = module(inputs[mine], finger[mine])
accelerator.backward(loss)
mean = accelerator.reduce(loss.detach(), "mean")
weight = accelerator.unwrap_model(module).weight
save_file({"loss": mean, "gradient": weight.grad}, f"{sys.argv[1]}/{processes}-{rank}")
del module, loss, weight  # DDP keeps the process group alive: it must not outlive the interpreter
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def test_contrastive_gradients_of_two_ranks_are_those_of_one(environment, tmp_path):
    script = tmp_path / "contrast.py"
    script.write_text(CONTRAST)
    for launcher in ("one process", "two processes"):
        launched(launcher, [script, tmp_path], environment)
    alone = load_file(tmp_path / "1-0")
    assert np.linalg.norm(alone["gradient"]) > 0.1
    for rank in (0, 1):
        shared = load_file(tmp_path / f"2-{rank}")
        for name in ("loss", "gradient"):
            np.testing.assert_allclose(shared[name], alone[name], rtol=0, atol=1e-6, err_msg=name)


EMBED = """
import sys
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from fingerprint_accel.config import ModelConfig, PreprocessConfig, ReadingConfig
from fingerprint_accel.data.loader import subset_of_prints
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.splitting import split_prints
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.training.validation import embed
data, out = sys.argv[1:]
shards = open_dataset(data)
subset = subset_of_prints(shards, split_prints(shards, ReadingConfig(validation_fraction=0.3)).validation)
subset = type(subset)(shards, subset.rows[:-1], subset.labels[:-1])  # an odd number, which two ranks cannot share
torch.manual_seed(0)
model = DeepPrint(ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16))
preprocessor = Preprocessor(PreprocessConfig(crop=256, size=64), shards.info.canvas)
accelerator = Accelerator()
embeddings, labels, _ = embed(accelerator, model, preprocessor, subset, batch_size=4)
name = f"{accelerator.num_processes}-{accelerator.process_index}"
save_file({"embeddings": embeddings, "labels": labels}, f"{out}/{name}")
accelerator.end_training()
"""


def test_ranks_share_the_validation_prints(prints, environment, tmp_path):
    """Whichever rank embeds a print, all ranks end with every print once, in order, as one process would."""
    script = tmp_path / "embed.py"
    script.write_text(EMBED)
    for launcher in ("one process", "two processes"):
        launched(launcher, [script, prints, tmp_path], environment)
    alone = load_file(tmp_path / "1-0")
    assert len(alone["labels"]) % 2 == 1
    for rank in (0, 1):
        shared = load_file(tmp_path / f"2-{rank}")
        assert shared["labels"].tolist() == alone["labels"].tolist()
        np.testing.assert_allclose(shared["embeddings"], alone["embeddings"], rtol=0, atol=1e-6)


def test_benchmark_runs_on_two_processes(prints, environment, tmp_path):
    words = [ROOT / "benchmarks" / "throughput.py", "--data", prints]
    words += ["--stages", "read,train", "--seconds", "0.2", "--out", tmp_path / "speed.json"]
    words += ["--model.trunk", "compact", "--model.width", "8", "--preprocess.crop", "256", "--preprocess.size", "64"]
    words += ["--model.variant", "Tex", "--training.batch-size", "4"]
    result = launched("two processes", words, environment)
    assert result.stdout.count("written to") == 1
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [row["stage"] for row in found["results"]] == ["read", "train"]
    assert all(row["samples_per_second"] > 1 for row in found["results"])
    assert 0 <= found["results"][-1]["data_wait_share"] <= 1
    assert found["setting"]["processes"] == 2


def test_mistake_under_a_launcher_is_one_line(environment, tmp_path):
    words = [ROOT / "recipes" / "train_10k.py", "--data", "nowhere", "--out", tmp_path / "r"]
    result = starting.run(words, environment=environment)
    assert result.returncode == 2
    assert result.stderr.startswith("error: nowhere: not a dataset folder")
