import dataclasses

import pytest

from fingerprint_accel.config import Config, LossConfig, ModelConfig, TrainingConfig, load_yaml, parse, save_yaml
from fingerprint_accel.errors import UserError

RECIPE = Config(training=TrainingConfig(batch_size=7, learning_rate=0.5))


def test_yaml_round_trip(tmp_path):
    model, loss = ModelConfig(variant="LocMinu", width=16), LossConfig(nested=(64, 128))
    config = dataclasses.replace(RECIPE, data="prints", model=model, loss=loss)
    save_yaml(config, tmp_path / "config.yaml")
    assert load_yaml(tmp_path / "config.yaml") == config


def test_command_line_wins_over_file_wins_over_recipe(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("training:\n  learning_rate: 1e-3\n  seed: 5\n")
    config = parse(RECIPE, "", ["--training.seed", "9", "--config", str(file), "--preprocess.augment.noise", "0"])
    assert config.training.batch_size == 7
    assert config.training.learning_rate == 1e-3
    assert config.training.seed == 9
    assert config.preprocess.augment.noise == 0
    assert parse(RECIPE, "", [f"--config={file}"]).training.seed == 5
    assert parse(RECIPE, "", ["--loss.nested", "64", "128"]).loss.nested == (64, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  lerning_rate: 1", "training: no knob named 'lerning_rate'"),
        ("training:\n  seed: soon", "training.seed must be int, not 'soon'"),
        ("training: 3", "expected a mapping"),
        ("loss:\n  nested: 64", "loss.nested must be a list, not 64"),
        ("loss:\n  nested: [64, many]", "loss.nested must be int, not 'many'"),
        ("model:\n  variant: Text", "model.variant must be one of Tex, "),
        ("model:\n  embedding_dim: 33", "embedding_dim must be even for TexMinu"),
        ("model:\n  norm: group", "add --model.trunk compact"),
        (
            "training:\n  batch_size: 10\nreading:\n  impressions_per_finger: 4",
            "training.batch_size 10 is not a multiple of reading.impressions_per_finger 4",
        ),
        (
            "training:\n  batch_size: 12\nreading:\n  siblings: 4\n  impressions_per_finger: 2",
            "training.batch_size 12 is not a multiple of 8, all impressions of the siblings",
        ),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_in_a_file_name_file_and_knob(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_yaml(file)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.batch-size", "0"], "training.batch_size must be at least 1"),
        (["--training.batch-siz", "0"], "Unrecognized options: --training.batch-siz"),
        (["--model.variant", "Text"], "LocTexMinu"),
        (["--reading.impressions-per-finger", "2"], "training.batch_size 7 is not a multiple of"),
    ],
)
def test_mistakes_on_the_command_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(RECIPE, "", words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        parse(RECIPE, "", ["--config", "nowhere.yaml"])


def test_every_knob_is_explained(capsys):
    with pytest.raises(SystemExit):
        parse(RECIPE, "About this recipe.", ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "About this recipe." in text
    assert "--training.accumulation" in text
    assert "Micro-batches per optimizer step" in text
    assert "(default: 7)" in text
