"""Models and configurations that are damaged, or made by an attacker: one line, soon, and in bounded memory."""

import json
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from fingerprint_accel.config import Config, ModelConfig, PreprocessConfig, TrainingConfig, load_yaml, parse
from fingerprint_accel.config_dict import from_dict
from fingerprint_accel.durable import file_sha256
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.history import read_history
from fingerprint_accel.extraction.calibration import Calibration, Way
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.models.saved_model import BUNDLED, MODEL, bundled_models, find_model
from fingerprint_accel.outputs import check_folder
from tests.editing import edited

OPEN = FingerprintExtractor.from_pretrained
WAY = Way(1, 80, 10, 280, 2880, 0.05, {"0.01": 0.4}, {"0.01": 0.1})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    extractor = FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
    metric = {"dataset": "a", "metric": "eer", "value": 0.01, "args": {"interval_95": [0.0, 0.1]}}
    calibration = Calibration("scans", False, "all-pairs", [WAY]).values()
    extractor.notes = {"usual_norm": 1.2, "calibration": calibration, "metrics": [metric]}
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture
def model(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def refused(model):
    """The line that opening a model ends with."""
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        OPEN(model)
    assert time.monotonic() - started < 2
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


def without_checksums(model):
    """As a stranger writes it, or an earlier version."""
    edited(model / "config.json", sha256=None)


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_state_the_checksums_of_their_files(name):
    config = json.loads((BUNDLED / name / "config.json").read_text())
    files = {file: file_sha256(BUNDLED / name / file) for file in ("model.safetensors", "README.md")}
    assert config["sha256"] == files
    assert len(config["checksum"]) == 64
    find_model(name)


def test_an_exported_model_states_the_checksums_of_its_files(model):
    config = json.loads((model / "config.json").read_text())
    assert config["sha256"] == {name: file_sha256(model / name) for name in ("model.safetensors", "README.md")}
    extractor = OPEN(model)
    extractor.save_notes(model)
    assert json.loads((model / "config.json").read_text())["sha256"] == config["sha256"]
    without_checksums(model)
    assert OPEN(model).identity == extractor.identity, "models of earlier versions open"


def test_a_flipped_weight_makes_no_embeddings(model):
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x40
    file.write_bytes(data)
    assert refused(model).startswith(f"{file}: differs from its sha256 in config.json; export the model again")


def test_a_changed_digit_of_the_configuration_makes_no_embeddings(model):
    file = model / "config.json"
    file.write_text(file.read_text().replace('"crop": 256', '"crop": 255'))
    assert f"{file}: damaged (differs from its checksum; if you edited it yourself, delete the line" in refused(model)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(number, model):
    without_checksums(model)
    file = model / "model.safetensors"
    weights = load_file(file)
    name = next(name for name, tensor in weights.items() if tensor.ndim == 4)
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights[name].view(-1)[5] = number
    save_file(weights, file)
    assert refused(model) == f"{file}: {name} contains NaN or infinity; export the model again, or use another copy"


VALUES = {
    "canvas": (100_000, 0, -1, 3.5, None, "320", [], {}, True, 10**30),
    "ppi": (0, -500, 10**6, None, "300"),
    "enhanced": (1, "yes", None),
    "format_version": (2, 0, "1"),
    "sha256": ({"../model.safetensors": "0" * 64}, {"/etc/passwd": "0" * 64}, 5, {"model.safetensors": 3}),
    "model": (None, [], 3, {"width": 10**9}, {"grid": -1}, {"trunk": 5}, {"embedding_dim": 10**12}),
    "preprocess": (
        *(None, {"size": 10**6}, {"crop": float("nan")}, {"augment": {"noise": 1e300}}, {"augment": []}),
        {"crop": 999},  # more than the canvas has
    ),
    "notes": (
        *([], 5, {"usual_norm": "x"}, {"usual_norm": float("inf")}, {"least_print_area_mm2": []}),
        *({"calibration": value} for value in (5, {}, {"source": "a"}, {"ways": [3]})),
        *({"metrics": value} for value in (5, [3], [{"dataset": "a", "metric": "b", "value": 10**400}])),
    ),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in VALUES.items() for value in values],
    ids=lambda value: str(value)[:24],
)
def test_values_of_a_model_are_checked(name, value, model):
    config = json.loads((model / "config.json").read_text())
    del config["checksum"]
    inner = {**config[name], **value} if name in ("model", "preprocess") and isinstance(value, dict) else value
    (model / "config.json").write_text(json.dumps({**config, name: inner}))
    assert refused(model).startswith(str(model))


CALIBRATIONS = {
    **dict.fromkeys(("poses", "mated", "nonmated", "prints", "fingers"), (-1, "1", None, 1.5)),
    "eer": (-0.1, 1.1, "0", None),
    "thresholds": ({"0.01": "high"}, {"0.01": 1e300}, {"0.001": 0.5}, {"abc": 0.4}, {"1e-400": 0.4}, [0.4], None),
    "fnmr": ({"0.01": 2}, {}, 3),
    "eer_before": (5, "a"),
}


@pytest.mark.parametrize(("name", "values"), CALIBRATIONS.items(), ids=CALIBRATIONS)
def test_values_of_a_calibration_are_checked(name, values):
    for value in values:
        notes = {"calibration": Calibration("scans", False, "all-pairs", [WAY]).values()}
        notes["calibration"]["ways"][0][name] = value
        with pytest.raises(UserError, match="calibration"):
            Calibration.from_notes(notes)


def test_a_small_file_cannot_describe_a_large_network(model):
    """A gigabyte would be filled with random weights before their absence is noticed."""
    config = json.loads((model / "config.json").read_text())
    edited(model / "config.json", model={**config["model"], "width": 2048})
    assert "does not fit its configuration" in refused(model)


@pytest.mark.parametrize(
    "kind", ["large header", "cut off", "no header", "empty", "pipe", "folder", "missing", "extra"]
)
def test_files_that_hold_no_weights_are_refused(kind, model):
    without_checksums(model)
    file = model / "model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    file.unlink()
    if kind == "large header":
        with file.open("wb") as opened:
            opened.write((80_000_000).to_bytes(8, "little"))
            opened.truncate(90_000_000)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "extra":
        save_file({**tensors, "more": torch.zeros(3)}, file)
    elif kind != "missing":
        file.write_bytes({"cut off": whole[:-7], "no header": b"\xff" * 9, "empty": b""}[kind])
    assert refused(model).startswith(f"{file}: ")


def test_drafts_of_a_killed_calibration_do_not_stand_in_the_way(model):
    (model / ".config.json.tmp").write_text("{")
    (model / ".README.md.tmp").write_text("")
    check_folder(model, MODEL)
    OPEN(model).save_pretrained(model)
    assert {path.name for path in model.iterdir()} == {"model.safetensors", "config.json", "README.md"}


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    "content", [BOMB, "[" * 5000, "training: " * 400, "a: !!python/object:x {}", "#" * 200_000, "\0"]
)
def test_a_configuration_file_is_bounded(content, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(content)
    started = time.monotonic()
    with pytest.raises(UserError, match=f"^{file}: ") as caught:
        parse(Config(), "", ["--config", str(file)])
    assert time.monotonic() - started < 2
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(UserError, match="not a regular file; give a YAML file with options"):
            load_yaml(tmp_path / name)


OPTIONS = [
    *[("training", "learning_rate", value) for value in (float("nan"), float("inf"), -1.0, "nan", "1e999", 10**400)],
    *[("training", "steps", value) for value in (10**30, -1, 1e300, "5", None)],
    *[
        ("training", name, float("nan"))
        for name in ("epochs", "weight_decay", "momentum", "max_grad_norm", "ema_decay")
    ],
    *[("training", name, 2**40) for name in ("batch_size", "timeout", "bucket_cap_mb", "save_total_limit")],
    *[("training", "seed", value) for value in (-1, 2**64)],
    *[("model", "embedding_dim", value) for value in (10**12, -2, 0)],
    *[("model", name, value) for name in ("width", "grid") for value in (10**9, -8)],
    *[("loss", name, value) for name in ("scale", "margin", "center_weight") for value in (float("nan"), 1e300)],
    ("loss", "matryoshka_dims", [10**30]),
    *[("preprocess", name, value) for name in ("crop", "size") for value in (10**9, -1, 0)],
    *[("reading", "samples_per_class", value) for value in (10**30, 0)],
    ("reading", "fold", "1/" + "9" * 5000),
    ("reading", "split_by", "a\0b"),
]


@pytest.mark.parametrize(("group", "name", "value"), OPTIONS, ids=lambda value: str(value)[:20])
def test_numbers_of_a_configuration_are_finite_and_in_range(group, name, value):
    with pytest.raises(UserError, match=rf"{group}.{name}") as caught:
        from_dict(Config, {group: {name: value}})
    assert len(str(caught.value)) < 200


def test_the_largest_numbers_are_accepted():
    training = {"steps": 10**9, "seed": 2**63 - 1, "learning_rate": 1e3}
    assert from_dict(Config, {"training": training}).training.seed == TrainingConfig(seed=2**63 - 1).seed


def test_records_of_a_damaged_run_are_skipped(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "kind": "train", "loss": 2.0, "skipped": 0}\n'
    file.write_text(
        good + f'{{"step": {10**400}, "kind": "train"}}\n{"[" * 100_000}\n"a"\n' + '{"step": 2, "kind": []}\n'
    )
    train, validation = read_history(file)
    assert train["loss"].tolist() == [2.0]
    assert len(validation["step"]) == 0
    with file.open("wb") as opened:
        opened.truncate(1 << 30)
    assert len(read_history(file)[0]["step"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{file}: has 1073.7 MB, more than the limit of 268.4 MB; its records are left out"
