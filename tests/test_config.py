import ast
import dataclasses
import inspect
import itertools

import pytest

from fingerprint_accel import config, config_network, config_prints
from fingerprint_accel.config import Config, LossConfig, ModelConfig, TrainingConfig, load_yaml, parse, save_yaml
from fingerprint_accel.config_dict import REMOVED, RENAMED
from fingerprint_accel.errors import UserError

RECIPE = Config(training=TrainingConfig(batch_size=7, learning_rate=0.5))


def test_yaml_round_trip(tmp_path):
    model, loss = ModelConfig(variant="LocMinu", width=16), LossConfig(matryoshka_dims=(64, 128))
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
    assert parse(RECIPE, "", ["--loss.matryoshka-dims", "64", "128"]).loss.matryoshka_dims == (64, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  lerning_rate: 1", "training: no option named 'lerning_rate'; choose from epochs, steps"),
        ("loss:\n  nested: [64]", "loss: no option named 'nested'; it is called matryoshka_dims"),
        ("training:\n  seed: soon", "training.seed must be int, not 'soon'"),
        ("training: 3", "expected a mapping"),
        ("loss:\n  matryoshka_dims: 64", "loss.matryoshka_dims must be a list, not 64"),
        ("loss:\n  matryoshka_dims: [64, many]", "loss.matryoshka_dims must be int, not 'many'"),
        ("model:\n  variant: Text", "model.variant must be one of Tex, "),
        ("model:\n  embedding_dim: 33", "embedding_dim must be even for TexMinu"),
        ("model:\n  norm: group", "add --model.trunk compact"),
        (
            "training:\n  batch_size: 10\nreading:\n  samples_per_class: 4",
            "training.batch_size 10 is not a multiple of reading.samples_per_class 4",
        ),
        (
            "training:\n  batch_size: 12\nreading:\n  siblings: 4\n  samples_per_class: 2",
            "training.batch_size 12 is not a multiple of 8, the prints of one family of siblings",
        ),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_in_a_file_name_file_and_option(tmp_path, text, message):
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
        (["--reading.samples-per-class", "2"], "training.batch_size 7 is not a multiple of"),
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


def test_help_has_the_recipe_and_the_defaults(capsys):
    with pytest.raises(SystemExit):
        parse(RECIPE, "About this recipe.", ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "About this recipe." in text
    assert "--training.gradient-accumulation-steps" in text
    assert "Number of micro-batches per optimizer step" in text
    assert "(default: 7)" in text


@pytest.mark.parametrize("module", [config_prints, config_network, config])
def test_every_option_is_explained(module):
    """Each field but the groups is followed by its help text, which ends in a full stop."""
    classes = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)]
    assert classes
    for node in classes:
        for option, following in itertools.pairwise(node.body):
            if isinstance(option, ast.AnnAssign) and not ast.unparse(option.annotation).endswith("Config"):
                assert isinstance(following, ast.Expr), ast.unparse(option)
                assert ast.literal_eval(following.value).endswith("."), ast.unparse(option)


def test_runs_of_earlier_versions_are_read(tmp_path):
    """Renamed options are read; removed options are ignored, unless another value changed the model."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "reading: {impressions_per_finger: 2, block_size: 2048, prefetch: 9}\n"
        "model: {start_from: small, localization_frozen: true, recompute: true}\n"
        "loss: {nested: [64], filter_above: 0.7, negative_sampling: 0.5, sharded: true, head: cosface, "
        "center_rate: 0.01}\n"
        "training: {accumulation: 3, fit_memory: 'yes', keep: 5, head_rate: 2.0, final_lr_share: 0.1, "
        "clip_norm: 2.0, bucket_mb: 50, max_bad_steps: 5, tf32: false}\n"
        "preprocess: {map_size: 128, map_sigma: 1.5, size: 160}\n"
    )
    config = load_yaml(file, stored=True)
    assert config.reading.samples_per_class == 2
    assert (config.model.init_from, config.model.alignment_frozen) == ("small", True)
    assert config.model.gradient_checkpointing
    loss, training = config.loss, config.training
    assert (loss.matryoshka_dims, loss.interclass_filter_threshold, loss.class_sample_rate) == ((64,), 0.7, 0.5)
    assert (training.gradient_accumulation_steps, training.auto_micro_batch_size) == (3, "yes")
    assert (training.max_grad_norm, training.bucket_cap_mb) == (2.0, 50)
    assert (training.save_total_limit, training.head_lr_mult, training.min_lr_ratio) == (5, 2.0, 0.1)
    with pytest.raises(UserError, match="no option named 'impressions_per_finger'; it is called samples_per_class"):
        load_yaml(file)
    file.write_text("training: {tf32: true}\n")
    with pytest.raises(UserError, match="no option named 'tf32'; leave it out: GPUs multiply float32 numbers in TF32"):
        load_yaml(file)
    file.write_text("preprocess: {map_size: 64}\n")
    with pytest.raises(UserError, match="no option named 'map_size'"):
        load_yaml(file, stored=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss.nested", "64"], "--loss.nested: use --loss.matryoshka-dims"),
        (["--model.start-from=small"], "--model.start-from: use --model.init-from"),
        (["--training.fit_memory", "no"], "--training.fit_memory: use --training.auto-micro-batch-size"),
        (["--loss.sharded", "True"], "--loss.sharded True: a switch has no value; give --loss.sharded"),
        (
            ["--model.stem-frozen=False"],
            "--model.stem-frozen False: a switch has no value; give --model.no-stem-frozen",
        ),
        (["--training.clip-norm", "1"], "--training.clip-norm: use --training.max-grad-norm"),
        (["--training.bucket_mb=50"], "--training.bucket_mb: use --training.bucket-cap-mb"),
        (["--training.no-tf32"], "--training.no-tf32: leave it out: GPUs multiply float32 numbers in TF32"),
        (["--reading.prefetch=5"], "--reading.prefetch: leave it out: three batches are read ahead"),
        (["--reading.block-size", "9"], "--reading.block-size: leave it out: blocks have 16,384 prints"),
    ],
)
def test_options_of_earlier_versions_are_refused(words, message):
    with pytest.raises(UserError) as error:
        parse(Config(), "", words)
    assert str(error.value) == message


def test_switches():
    config = parse(Config(), "", ["--model.stem-frozen", "--loss.no-sharded", "--preprocess.augment.no-enabled"])
    assert (config.model.stem_frozen, config.loss.sharded, config.preprocess.augment.enabled) == (True, False, False)


def test_no_option_has_the_name_of_a_removed_one():
    """The tables of old names apply to all groups."""
    groups = dataclasses.asdict(Config())
    names = {name for group in groups.values() if isinstance(group, dict) for name in group}
    names |= set(groups["preprocess"]["augment"])
    assert not names & {*RENAMED, *REMOVED}
    assert {*RENAMED.values()} <= names
