"""Checkpoints, pointers and configurations of runs that were damaged after they were written, or mixed up."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fingerprint_accel.config import Config, ModelConfig, PreprocessConfig, load_yaml, save_yaml
from fingerprint_accel.durable import write_json
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.models.checkpoint_folder import checkpoint_names, damage, find_checkpoint, read_pointer
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.models.saved_model import find_model
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training.checkpoint import Checkpoint, restore_optimizer, save_checkpoint
from fingerprint_accel.training.resume import checkpoint_to_resume
from fingerprint_accel.training.saving import Progress
from fingerprint_accel.untrusted import Fields
from tests.editing import edited

MODEL = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
TENSOR_FILES = ["model.safetensors", "training_state.safetensors", "ema.safetensors"]


def flip(file, place=-3):
    """Flip a bit of a file, by default in the last number of its last tensor."""
    data = bytearray(file.read_bytes())
    data[place] ^= 0x40
    file.write_bytes(data)


@pytest.fixture
def run(tmp_path):
    """A run of four checkpoints, whose second one is the best. Each stores a moving average of the weights."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_yaml(
        Config(data="x", out=str(folder), resume="auto", model=MODEL, preprocess=PreprocessConfig(size=64)),
        folder / "config.yaml",
    )
    weights = DeepPrint(MODEL).state_dict()
    for step in (10, 20, 30, 40):
        values = {
            "step": step,
            "position": 8 * step,
            "best_eer": 0.1,
            "best_step": min(step, 20),
            "ppi": 300,
            "canvas": 320,
        }
        state = {**dataclasses.asdict(Progress()), **values}
        save_checkpoint(folder, Checkpoint(weights, {"loss.a": torch.ones(3)}, state, weights))
    write_json(folder / "best.json", {"checkpoint": "step-00000020", "step": 20, "eer": 0.1})
    return folder


def resumed(run, how="auto"):
    checkpoint = checkpoint_to_resume(dataclasses.replace(load_yaml(run / "config.yaml"), resume=str(how)))
    return checkpoint and checkpoint.name


def place(run, step):
    return run / "checkpoints" / f"step-{step:08d}"


@pytest.mark.parametrize("file", TENSOR_FILES)
def test_a_flipped_weight_is_not_resumed(file, run):
    assert resumed(run) == "step-00000040"
    flip(place(run, 40) / file)
    assert damage(place(run, 40)) == f"damaged: {file} differs from its sha256"
    assert resumed(run) == "step-00000030"


@pytest.mark.parametrize(
    "change", [(b'"step": 40', b'"step": 41'), (b"320", b"321"), (b"0.1", b"0.2"), (b"best", b"bess")]
)
def test_a_changed_digit_of_a_description_is_not_resumed(change, run):
    file = place(run, 40) / "state.json"
    file.write_bytes(file.read_bytes().replace(*change, 1))
    assert damage(place(run, 40)).startswith("damaged: differs from its checksum")
    assert resumed(run) == "step-00000030"


def test_the_description_of_another_step_is_not_resumed(run):
    shutil.copy(place(run, 30) / "state.json", place(run, 40))
    assert damage(place(run, 40)) == "state.json is of step 30"
    assert resumed(run) == "step-00000030"


def test_the_weights_of_another_step_are_not_resumed(run, tmp_path):
    weights = load_file(place(run, 30) / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, place(run, 40) / "model.safetensors")
    assert resumed(run) == "step-00000030"


def test_each_checkpoint_that_an_error_advises_can_be_resumed(run):
    """Also after the newest two are damaged, by another name of the same folder."""
    for step in (40, 30):
        flip(place(run, step) / "training_state.safetensors")
    with pytest.raises(UserError) as caught:
        resumed(run, place(run, 40))
    line = str(caught.value)
    assert line.startswith(f"--resume {place(run, 40)}: damaged: training_state.safetensors differs from its sha256; ")
    advised = line.split("; --resume ")[1].removesuffix(" is intact")
    assert resumed(run, advised) == "step-00000020"
    assert resumed(run, place(run, 20).parent / ".." / "checkpoints" / "step-00000020") == "step-00000020"
    with pytest.raises(UserError, match=r"contains step-00000020, which would be lost; choose another --out"):
        resumed(run, place(run, 10))
    for step in (10, 20):
        flip(place(run, step) / "model.safetensors")
    with pytest.raises(
        UserError, match=r"no checkpoint is intact \(step-00000040: damaged: training_state.safetensors"
    ):
        resumed(run)
    with pytest.raises(UserError, match="no other checkpoint of this run is intact"):
        resumed(run, place(run, 40))


BEST = {
    "it names a damaged one": (
        lambda run: flip(place(run, 20) / "ema.safetensors"),
        40,
        "the best checkpoint, step-00000020, cannot be used (damaged: ema.safetensors differs from its sha256); using",
    ),
    "it names one that is missing": (
        lambda run: shutil.rmtree(place(run, 20)),
        40,
        "the best checkpoint, step-00000020, cannot be used (no state.json); using step-00000040",
    ),
    "a digit": (
        lambda run: (run / "best.json").write_text((run / "best.json").read_text().replace("00000020", "00000030")),
        20,
        "best.json: damaged (differs from its checksum",
    ),
    "a digit in a file of an earlier version": (
        lambda run: (run / "best.json").write_text('{"checkpoint": "step-00000030", "step": 20}'),
        20,
        "best.json: damaged (names 'step-00000030')",
    ),
    "a path": (
        lambda run: (run / "best.json").write_text('{"checkpoint": "../../other/checkpoints/step-00000030"}'),
        20,
        "best.json: damaged (names '../../other",
    ),
    "cut off": (lambda run: (run / "best.json").write_text("{"), 20, "best.json: damaged ("),
}


@pytest.mark.parametrize(("change", "found", "line"), BEST.values(), ids=BEST)
def test_a_best_checkpoint_that_cannot_be_used_is_replaced_and_named(change, found, line, run, capsys):
    assert find_model(run).folder == place(run, 20)
    assert capsys.readouterr().err == ""
    change(run)
    assert find_model(run).folder == place(run, found)
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert said.endswith(f"using step-{found:08d}")


def test_a_damaged_latest_json_does_not_matter(run):
    (run / "latest.json").write_text("{")
    assert resumed(run) == find_checkpoint(run).name == "step-00000040"


def test_a_run_without_an_intact_checkpoint_says_what_is_wrong(run):
    for name in checkpoint_names(run):
        flip(run / "checkpoints" / name / "ema.safetensors")
    with pytest.raises(UserError, match=r"no intact checkpoint \(step-00000040: damaged: ema.safetensors differs"):
        find_model(run)


def test_a_model_is_not_read_from_a_damaged_checkpoint(run):
    flip(place(run, 40) / "training_state.safetensors")
    assert find_model(place(run, 40)).weights.name == "ema.safetensors", "which are intact"
    flip(place(run, 40) / "ema.safetensors")
    with pytest.raises(
        UserError, match=r"step-00000040: damaged: ema.safetensors differs from its sha256; use another"
    ):
        find_model(place(run, 40))


def test_an_average_that_was_put_into_a_checkpoint_is_not_used(run):
    file = place(run, 40) / "state.json"
    digests = json.loads(file.read_text())["sha256"]
    del digests["ema.safetensors"]
    edited(file, sha256=digests)
    assert find_model(place(run, 40)).weights.name == "model.safetensors"


def test_checkpoints_of_earlier_versions_have_no_checksums_and_open(run):
    for name in checkpoint_names(run):
        edited(run / "checkpoints" / name / "state.json", sha256=None)
    edited(run / "best.json", step=None)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text[: text.index("# checksum")])
    assert resumed(run) == "step-00000040"
    assert FingerprintExtractor.from_pretrained(run).origin == str(place(run, 20))


def test_the_configuration_of_a_run_is_compared_with_its_checksum(run):
    file = run / "config.yaml"
    text = file.read_text()
    assert text.splitlines()[-1].startswith("# checksum: ")
    file.write_text(text.replace("size: 64", "size: 96"))
    with pytest.raises(
        UserError, match=r"config.yaml: differs from its checksum; .* delete its last line if you edited"
    ):
        find_model(run)
    assert load_yaml(file).preprocess.size == 96, "--config reads edited copies"
    file.write_text("\n".join(text.replace("size: 64", "size: 96").splitlines()[:-1]))
    assert find_model(run).preprocess.size == 96


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("step", value) for value in (-1, 1e300, None, "5", [], True, 10**30)],
        *[("position", value) for value in (-1, {}, 0.5)],
        *[("best_eer", value) for value in (-0.1, "a", [], 10**400)],
        *[("meters", value) for value in (3, {"updates": -1}, {"sums": 4}, {"sums": {"loss": []}})],
        ("meters", {"sums": {"loss": [None]}}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_values_of_a_description_are_checked(name, value, run):
    state = json.loads((place(run, 40) / "state.json").read_text())
    with pytest.raises(UserError, match=r"a.json: .*; use another"):
        Progress.read(Fields({**state, name: value}, "a.json", "use another"))
    assert Progress.read(Fields(state, "a.json", "")).step == 40


@pytest.mark.parametrize("tensor", [torch.zeros(2), torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)])
def test_optimizer_state_of_another_shape_is_refused(tensor):
    """Fused optimizers would read beyond its end."""
    layer = torch.nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    with pytest.raises(RuntimeError, match=r"optimizer.w.exp_avg has the shape"):
        restore_optimizer(optimizer, {id(layer.weight): "w"}, {"optimizer.w.exp_avg": tensor})


@pytest.mark.parametrize(
    "content", ['{"checkpoint": 5}', '{"checkpoint": "step-1"}', "[]", '{"checkpoint": "step-0000000\u0661"}']
)
def test_a_pointer_names_a_checkpoint(content, tmp_path):
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(UserError, match=r"best.json: .*delete it to use the newest checkpoint"):
        read_pointer(tmp_path / "best.json")
    assert read_pointer(tmp_path / "none.json") is None


def test_a_run_whose_best_and_newest_checkpoint_is_lost_goes_on(tiny, tmp_path, capsys):
    """It ends with the weights that it had, and exports a checkpoint that exists."""
    config = dataclasses.replace(
        tiny,
        resume="auto",
        preprocess=PreprocessConfig(crop=256, size=32),
        model=dataclasses.replace(tiny.model, variant="Tex"),
        training=dataclasses.replace(tiny.training, save_every=2, validate_every=3, save_total_limit=9),
    )
    run = tmp_path / "run"
    run_training(config)
    last = place(run, 6) / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(last).items()}  # the file is mapped into memory
    flip(last)
    if read_pointer(run / "best.json") == "step-00000003":
        shutil.rmtree(place(run, 3))
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    capsys.readouterr()
    run_training(config)
    said = capsys.readouterr().err
    assert "step-00000006: damaged: model.safetensors differs from its sha256; renamed to damaged-step-00000006" in said
    assert "config.yaml: differs from its checksum" in said
    assert load_yaml(run / "config.yaml", stored=True) == config
    again = load_file(last)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert find_model(run).folder.name == read_pointer(run / "best.json")
    assert FingerprintExtractor.from_pretrained(run / "model").notes["checkpoint"] == find_model(run).folder.name
