"""The configuration of a training run: nested frozen dataclasses, read from a YAML file and from the command line.

A recipe sets values first. Values of a YAML file (`--config run.yaml`) replace them, and values of the command line
(`--training.steps 500`) replace both.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from fingerprint_accel.command_line import parse_command_line
from fingerprint_accel.config_dict import check_numbers, check_words, from_dict, renamed
from fingerprint_accel.config_network import LossConfig, ModelConfig, Trunk, Variant
from fingerprint_accel.config_prints import AugmentConfig, PreprocessConfig, ReadingConfig
from fingerprint_accel.durable import write_file
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.ranks import launched_local_rank
from fingerprint_accel.untrusted import UnreadableError, read_bytes, read_yaml

CHECKSUM_LINE = "# checksum: "  # start of the last line of the config.yaml of a run
MOST_SEED = 2**63 - 1
MOST_OPTIONS = 2**16  # bytes of a YAML file; all options take 3 KB, and this much up to a second

__all__ = [
    "AugmentConfig",
    "Config",
    "LossConfig",
    "ModelConfig",
    "PreprocessConfig",
    "ReadingConfig",
    "TrainingConfig",
    "Trunk",
    "Variant",
    "load_yaml",
    "parse",
    "save_yaml",
]


@dataclass(frozen=True)
class TrainingConfig:
    """Options for the optimizer, the learning rate, checkpoints and speed."""

    epochs: float = 20.0
    """Number of passes over the training prints; it has no effect if `steps` is given."""
    steps: int = 0
    """Number of optimizer steps. 0 computes it from `epochs`."""
    batch_size: int = 64
    """Number of prints in a micro-batch of one process."""
    gradient_accumulation_steps: int = 1
    """Number of micro-batches per optimizer step."""
    auto_micro_batch_size: Literal["auto", "yes", "no"] = "auto"
    """Before training, check whether a micro-batch fits into memory. If not, use more and smaller micro-batches, with
    the same number of prints per step. `auto` is `yes` on GPUs, and `no` on CPUs and with FSDP."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision of the network; losses are in float32. `auto` uses the setting of `accelerate launch`."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    learning_rate: float = 1e-3
    """Peak learning rate. It is not scaled with the batch size."""
    head_lr_mult: float = 1.0
    """Factor on the learning rate for the identity heads, which classify the finger of a print in training."""
    layer_decay: float = 1.0
    """Learning rate of a network block divided by the learning rate of the following block. With a value below 1,
    early layers of a trained network (`model.init_from`) change less than late layers."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights, 0 to 1; 0 keeps no average. The average is validated and exported
    instead of the raw weights. 0.999 suits runs of 10,000 steps. At the end, the initial weights (`model.init_from`)
    contribute the share ema_decay^steps to the average. At 0.999, this share is about one half after 700 steps."""
    weight_decay: float = 0.02
    """Weight decay of weight matrices. Biases and normalisation layers have no weight decay."""
    momentum: float = 0.9
    """Momentum of `sgd`; `adamw` does not use it."""
    warmup_steps: int = 100
    """Number of steps in which the learning rate rises linearly to its peak, but at most a tenth of all steps. A cosine
    decay follows."""
    min_lr_ratio: float = 0.01
    """Learning rate at the last step, as a share of the peak."""
    max_grad_norm: float = 5.0
    """Maximum gradient norm, to which larger gradients are clipped; 0 disables clipping."""
    validate_every: int = 500
    """Number of steps between validations; 0 validates at the end only."""
    patience: int = 0
    """Stop if the EER has not reached a new minimum in this many consecutive validations; 0 never stops early."""
    log_every: int = 20
    """Number of steps between records in metrics.jsonl."""
    save_every: int = 500
    """Number of steps between checkpoints; 0 saves at the end only. After a validation with the lowest EER so far, a
    checkpoint is saved additionally."""
    save_total_limit: int = 3
    """Number of checkpoints to keep; the best one is always kept."""
    tracker: str = "tensorboard"
    """Name of an experiment tracker that Accelerate supports (`tensorboard`, `wandb`, `mlflow`, ...), several names
    with commas between them, or `none`."""
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    """Mode of torch.compile for the network, and on a GPU for the losses. `reduce-overhead` adds CUDA graphs, for small
    networks and batches. `max-autotune` also tries several kernels for each operation."""
    gradient_compression: Literal["no", "bf16", "fp16"] = "no"
    """Number format in which processes exchange gradients; `no` is float32. bf16 has the same exponent range as
    float32."""
    bucket_cap_mb: int = 25
    """Size of the buckets in which processes exchange gradients, in MiB. Larger buckets suit many GPUs or a slow
    network."""
    timeout: int = 600
    """Seconds that a process waits for the other processes before the job ends with an error."""
    seed: int = 0
    """Seed of the initial weights, the order of prints, and augmentation."""

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("batch_size", "gradient_accumulation_steps", "save_total_limit"), 2**31)
        check_numbers(self, "training", **sizes, epochs=1e6, timeout=1e7, bucket_cap_mb=2**20, seed=MOST_SEED)
        counts = ("batch_size", "gradient_accumulation_steps", "log_every", "save_total_limit")
        for name in (*counts, "bucket_cap_mb", "timeout"):
            require(getattr(self, name) >= 1, f"training.{name} must be at least 1")
        every = ("validate_every", "save_every", "patience")
        least_zero = ("weight_decay", "momentum", "min_lr_ratio", "max_grad_norm", "head_lr_mult", "seed")
        for name in (*every, *least_zero, "steps", "warmup_steps"):
            require(getattr(self, name) >= 0, f"training.{name} must not be negative")
        require(0 < self.layer_decay <= 1, "training.layer_decay must be above 0 and at most 1")
        require(0 <= self.ema_decay < 1, "training.ema_decay must be at least 0 and below 1")
        require(self.learning_rate > 0, "training.learning_rate must be above 0")
        require(self.steps > 0 or self.epochs > 0, "training.epochs must be above 0")


@dataclass(frozen=True)
class Config:
    """All options of a training run: data, run folder, how to resume, and the groups of further options."""

    data: str = ""
    """Dataset folder to train on, made by `fingerprint-accel import` or `synth`; or a synthetic source such as
    synth:fingers=20000, which renders prints during training."""
    out: str = ""
    """Run folder to write: checkpoints, metrics and the exported model."""
    resume: str = "never"
    """`never` starts a new run; `auto` continues from the latest checkpoint in --out, or starts if there is none; a
    checkpoint folder continues from that checkpoint."""
    folds: int = 0
    """Number of folds for cross-validation, at least 2; 0 trains a single model. Each fold trains a model without some
    of the fingers, in OUT/fold-1, OUT/fold-2, ..., and evaluates it on these fingers. The error rates are printed and
    written to OUT/cross_validation.json."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        check_numbers(self, "--folds", folds=1000)
        batch_size, per_finger = self.training.batch_size, self.reading.samples_per_class
        require(
            batch_size % per_finger == 0,
            f"training.batch_size {batch_size} is not a multiple of reading.samples_per_class {per_finger}",
        )
        together = per_finger * self.reading.siblings
        require(
            batch_size % together == 0,
            f"training.batch_size {batch_size} is not a multiple of {together}, the prints of one family of siblings "
            "(reading.samples_per_class x reading.siblings)",
        )
        require(
            not (self.model.gradient_checkpointing and self.training.compile != "no"),
            "model.gradient_checkpointing does not work with training.compile, which decides itself what to recompute: "
            "leave one of them out",
        )
        require(
            not self.model.trunk_frozen or self.model.init_from != "",
            "model.trunk_frozen needs trained weights: add --model.init-from MODEL",
        )
        require(
            not (self.loss.matryoshka_dims and self.model.cells),
            "loss.matryoshka_dims does not work with dense variants: the first numbers of a dense embedding are its "
            "upper cells, not a shorter embedding",
        )
        branch = self.model.embedding_dim // (2 if self.model.variant.endswith("TexMinu") else 1)
        require(
            all(length < branch for length in self.loss.matryoshka_dims),
            f"loss.matryoshka_dims {self.loss.matryoshka_dims}: a branch has {branch} numbers, give shorter lengths",
        )
        require(self.folds == 0 or self.folds >= 2, f"--folds {self.folds}: give at least 2, or 0 for a single model")
        for name in ("validation_data", "fold"):
            require(
                not (self.folds and getattr(self.reading, name)),
                f"--folds {self.folds} chooses the prints to hold out: leave out reading.{name}",
            )


def load_yaml(path: Path, base: Config | None = None, stored: bool = False) -> Config:
    """Read a configuration from a YAML file.

    Args:
        path: The file.
        base: Configuration that provides the values of options that are not in the file. Defaults to `Config()`.
        stored: Whether the file is the `config.yaml` of a run. Option names of earlier versions are then accepted, and
            the file is compared with the checksum in its last line, if there is one.

    Raises:
        UserError: If the file is missing, is not YAML, or does not fit `Config`, or a stored file was changed.
    """
    try:
        if stored:
            _compare_checksum(path, read_bytes(path, MOST_OPTIONS))
        values = read_yaml(path, MOST_OPTIONS)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file to --config") from error
    except UnreadableError as error:
        raise UserError(f"{path}: {error}; give a YAML file with options") from error
    return from_dict(Config, renamed(values) if stored else values or {}, base, str(path) + ":")


def save_yaml(config: Config, path: Path) -> None:
    """Write all options of a configuration to a YAML file that `load_yaml` can read.

    The last line is a comment with the checksum of all other lines.

    Raises:
        OSError: If the file cannot be written.
    """
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    write_file(path, f"{text}{CHECKSUM_LINE}{hashlib.sha256(text.encode()).hexdigest()}\n")


def _compare_checksum(path: Path, data: bytes) -> None:
    text, mark, checksum = data.rpartition(CHECKSUM_LINE.encode())
    if mark and hashlib.sha256(text).hexdigest().encode() != checksum.strip():
        raise UserError(
            f"{path}: differs from its checksum; restore it, or delete its last line if you edited it yourself"
        )


def parse(defaults: Config, description: str, arguments: Sequence[str] | None = None) -> Config:
    """Read the configuration of a run from the command line and the file in `--config`, and return it.

    Options of the command line take precedence over options of the file. Options of the file take precedence over the
    recipe.

    Args:
        defaults: Configuration of the recipe.
        description: Text of `--help` above the options. Paragraphs are wrapped; indented lines and commands are kept.
        arguments: Words of the command line, without the name of the program. Default: `sys.argv[1:]`.

    Raises:
        UserError: If the configuration file cannot be used, or options contradict each other.
        SystemExit: With status 0 after `--help`, and with status 2 for unknown or malformed options.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE.yaml")
    file, words = parser.parse_known_args(arguments)
    base = load_yaml(file.config, defaults) if file.config else defaults
    check_words(words)
    text = f"{description.strip()}\n\n--config FILE.yaml reads options from a file first, such as config.yaml of a run."
    tells = launched_local_rank() == 0  # the other processes of the machine would print the same
    # tyro prints values that a dataclass refuses even without `console_outputs`
    with contextlib.nullcontext() if tells else contextlib.redirect_stderr(io.StringIO()):
        return parse_command_line(Config, text, words, default=base, console_outputs=tells)
