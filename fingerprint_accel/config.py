"""Every knob once, with its unit and default.

A configuration is a tree of frozen dataclasses. It is read from the command line (`--training.steps 500`), from a YAML
file of the same shape (`--config run.yaml`), or both, the command line last.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from fingerprint_accel.command_line import parse_command_line
from fingerprint_accel.config_dict import check_words, from_dict, renamed
from fingerprint_accel.errors import UserError, require

Variant = Literal["Tex", "Minu", "TexMinu", "LocTex", "LocMinu", "LocTexMinu", "Dense", "LocDense"]
Trunk = Literal["inception_v4", "compact", "vit_small", "vit_base", "flx"]


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of pose and quality during training. Amplitudes are maxima of uniform draws; 0 means none."""

    enabled: bool = True
    """Switches all of it."""
    rotation_degrees: float = 20.0
    """Rotation to either side, degrees."""
    translation: float = 20.0
    """Shift along each axis, canvas pixels."""
    scale: float = 0.05
    """Relative change of size: 0.05 draws from 1/1.05 to 1.05, uniform in the logarithm."""
    elastic: float = 3.0
    """Largest displacement of the smooth skin distortion, canvas pixels."""
    contrast: float = 0.4
    """Relative change of contrast around the mean grey of the print."""
    gain: float = 0.2
    """Relative change of brightness."""
    ridge_thickness: float = 0.5
    """Ridges made thicker (wet) or thinner (dry): blend with the local minimum or maximum, 0 to 1."""
    noise: float = 0.06
    """Standard deviation of sensor noise, as a share of the grey range."""
    occlusion: float = 0.15
    """Largest share of the input's area lost to a missing contact patch."""
    start: float = 1.0
    """Share of every amplitude at the first step; below 1 augmentation starts mild."""
    ramp: float = 0.0
    """Share of the run over which augmentation rises, linearly, from `start` to full strength; 0 starts with it."""

    def __post_init__(self) -> None:
        for knob in dataclasses.fields(self):
            value = getattr(self, knob.name)
            require(value >= 0, f"preprocess.augment.{knob.name} must not be negative, not {value}")
        for name in ("start", "ramp"):
            require(getattr(self, name) <= 1, f"preprocess.augment.{name} must be at most 1")
        require(self.ridge_thickness <= 1, "preprocess.augment.ridge_thickness must be at most 1")
        require(self.occlusion < 1, "preprocess.augment.occlusion must be below 1")

    def scaled(self, strength: float) -> AugmentConfig:
        """The same with every amplitude multiplied by `strength`, 0 to 1."""
        amplitudes = {
            knob.name: strength * getattr(self, knob.name)
            for knob in dataclasses.fields(self)
            if knob.name not in ("enabled", "start", "ramp")
        }
        return dataclasses.replace(self, **amplitudes)


@dataclass(frozen=True)
class PreprocessConfig:
    """From uint8 canvases to the network's input, on the device."""

    crop: int = 299
    """Side of the central part of the canvas that the network sees, canvas pixels."""
    size: int = 299
    """Side of the network's input, pixels; differs from `crop` to see the same area at another resolution."""
    normalize: Literal["local", "none"] = "local"
    """`local` evens out brightness and contrast around each pixel; `none` only scales to 0..1, ridges bright."""
    enhance: bool = False
    """Multi-scale Gabor ridge enhancement before normalisation."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("crop", "size"):
            require(getattr(self, name) >= 32, f"preprocess.{name} must be at least 32")


@dataclass(frozen=True)
class ReadingConfig:
    """How prints come from the shards."""

    validation_data: str = ""
    """Dataset folder to validate on. Empty: hold out fingers of the training data."""
    validation_fraction: float = 0.05
    """Share of fingers held out for validation, chosen by a hash of the finger key (stable when data is added)."""
    order: Literal["permutation", "block"] = "permutation"
    """`permutation` shuffles all prints; `block` shuffles blocks of 16,384 prints, each made of runs of 1,024
    neighbours from all over the data (for data larger than memory)."""
    samples_per_class: int = 1
    """Different impressions of each finger in a micro-batch; it divides the batch size. 1 leaves them to chance."""
    balanced: bool = False
    """Every finger equally often, however many prints it has."""
    siblings: int = 1
    """So many fingers whose keys follow each other come together: with `synth --siblings` these are the ones that only
    minutiae tell apart, and the contrastive term sees them in one micro-batch."""

    def __post_init__(self) -> None:
        require(0.0 <= self.validation_fraction < 1.0, "reading.validation_fraction must be at least 0 and below 1")
        for name in ("samples_per_class", "siblings"):
            require(getattr(self, name) >= 1, f"reading.{name} must be at least 1")
        require(
            self.order == "permutation" or (self.samples_per_class == 1 and not self.balanced and self.siblings == 1),
            "reading.order block reads neighbouring prints, but samples_per_class, balanced and siblings gather "
            "prints from all over the data: leave reading.order at permutation",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    init_from: str = ""
    """Trained network of the same shape to start from: a bundled model (`small`), a run folder, a checkpoint, or an
    exported model. The prints need the ppi and canvas of those it was trained on. Heads start afresh: the fingers are
    others. Empty: random weights."""
    variant: Variant = "TexMinu"
    """DeepPrint variant: texture branch, minutia branch, or both; `Dense` describes the finger cell by cell, and prints
    are compared where both show it; `Loc` puts the alignment network in front."""
    trunk: Trunk = "inception_v4"
    """`inception_v4` is DeepPrint's; `compact` has a few million parameters and trains on CPUs; `vit_small` and
    `vit_base` are vision transformers; `flx` is Inception v4 as flx builds it, for its weights: no activations in
    minutia branch, map decoder and alignment network."""
    embedding_dim: int = 512
    """Length of the whole embedding; variants with two branches give each half."""
    grid: int = 8
    """Cells along each side of the square that the dense variants describe; they share the embedding's numbers."""
    width: int = 32
    """Channels of the compact trunk's first stage; `vit_small` has 12 times as many in every layer, `vit_base` 24."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of the compact trunk; `group` makes results independent of the batch."""
    dropout: float = 0.2
    """Dropout in front of the embedding layers."""
    alignment_frozen: bool = False
    """Leave the alignment network as it starts (`init_from`); the rest learns behind it."""
    stem_frozen: bool = False
    """Leave the first layers as they start (`init_from`), those in front of all branches: less work for a trunk that
    knows ridges."""
    trunk_frozen: bool = False
    """Leave everything but the last layer of each branch as it starts (`init_from`): for a few fingers of your own."""
    gradient_checkpointing: bool = False
    """Keep only what passes between the blocks of the trunk, and compute the rest again in the backward pass: less
    memory, about a third more time (gradient checkpointing)."""

    @property
    def needs_minutia_maps(self) -> bool:
        """Whether the network learns to draw minutia maps."""
        return "Minu" in self.variant or self.cells > 0

    @property
    def cells(self) -> int:
        """Number of cells of a dense embedding, 0 for the other variants."""
        return self.grid**2 if self.variant.endswith("Dense") else 0

    def __post_init__(self) -> None:
        both = self.variant.endswith("TexMinu")
        require(self.embedding_dim >= 2, "model.embedding_dim must be at least 2")
        require(not both or self.embedding_dim % 2 == 0, f"model.embedding_dim must be even for {self.variant}")
        require(self.grid >= 1, "model.grid must be at least 1")
        require(
            self.cells == 0 or self.embedding_dim % self.cells == 0,
            f"model.embedding_dim {self.embedding_dim} must be a multiple of the {self.cells} cells of model.grid "
            f"{self.grid}",
        )
        require(self.cells == 0 or self.trunk != "flx", f"model.variant {self.variant}: not with trunk flx")
        require(self.width >= 8 and self.width % 8 == 0, "model.width must be a positive multiple of 8")
        require(0 <= self.dropout < 1, "model.dropout must be at least 0 and below 1")
        require(
            self.norm == "batch" or self.trunk == "compact",
            "model.norm group exists for the compact trunk only: add --model.trunk compact",
        )


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: identity head + center loss + contrastive loss + minutia-map loss."""

    head: Literal["softmax", "arcface", "cosface"] = "softmax"
    """Identity head on each branch."""
    scale: float = 64.0
    """Scale of the cosine for arcface and cosface."""
    margin: float = 0.35
    """Additive margin: radians for arcface, cosine for cosface."""
    sharded: bool = False
    """Every process keeps a slice of the fingers of each head (PartialFC), instead of all of them: for many fingers.
    Loss and gradients are the same."""
    class_sample_rate: float = 1.0
    """Share of its fingers that a process compares prints with in an update, drawn anew each time, those of the prints
    always among them; below 1 it needs `sharded`."""
    interclass_filter_threshold: float = 1.0
    """Other fingers with a larger cosine to a print do not count, since they may be its own under another name: for
    noisy labels. Below 1 it needs `sharded`, and arcface or cosface."""
    margin_start: float = 0.0
    """Share of the run before which the margin is 0."""
    margin_ramp: float = 0.0
    """Share of the run over which the margin then rises, linearly, to `margin`."""
    label_smoothing: float = 0.0
    """Share of the identity target that is spread over all fingers, for labels that are sometimes wrong."""
    identity_weight: float = 1.0
    center_weight: float = 0.125
    minutia_map_weight: float = 0.3
    """Weight of the minutia-map loss. It needs prints with minutiae; 0 trains a minutia branch without any."""
    contrastive_weight: float = 0.0
    """Weight of the InfoNCE term; it learns from fingers with several prints in a micro-batch
    (`reading.samples_per_class`)."""
    mask_weight: float = 1.0
    """Weight of the loss by which dense variants learn which cells a print shows."""
    pose_weight: float = 1.0
    """Weight of the loss by which the alignment network learns where a finger lies, from prints that know it: synthetic
    ones."""
    contrastive_temperature: float = 0.1
    """Temperature of the InfoNCE term: smaller looks at the most similar other fingers only."""
    matryoshka_dims: tuple[int, ...] = ()
    """Lengths at which the beginning of each branch's embedding also learns to stand alone, shortest first: cut there
    and scaled to unit length, it is an embedding by itself (Matryoshka)."""

    def __post_init__(self) -> None:
        require(self.scale > 0, "loss.scale must be above 0")
        require(self.contrastive_temperature > 0, "loss.contrastive_temperature must be above 0")
        weights = [knob.name for knob in dataclasses.fields(self) if knob.name.endswith("_weight")]
        for name in (*weights, "margin", "margin_start", "margin_ramp"):
            require(getattr(self, name) >= 0, f"loss.{name} must not be negative")
        rising = all(low < high for low, high in zip((0, *self.matryoshka_dims), self.matryoshka_dims, strict=False))
        require(rising, "loss.matryoshka_dims must be lengths above 0, shortest first")
        for name in ("class_sample_rate", "interclass_filter_threshold"):
            require(0 < getattr(self, name) <= 1, f"loss.{name} must be above 0 and at most 1")
            require(self.sharded or getattr(self, name) == 1, f"loss.{name} needs loss.sharded: add --loss.sharded")
        require(
            self.head != "softmax" or self.interclass_filter_threshold == 1,
            "loss.interclass_filter_threshold compares cosines: choose --loss.head arcface or cosface",
        )
        require(self.margin_start + self.margin_ramp <= 1, "loss.margin_start + loss.margin_ramp must be at most 1")
        require(0 <= self.label_smoothing < 1, "loss.label_smoothing must be at least 0 and below 1")
        require(
            not (self.sharded and self.label_smoothing), "loss.label_smoothing needs heads held whole: one of the two"
        )


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    epochs: float = 20.0
    """Passes over the training prints; ignored when `steps` is given."""
    steps: int = 0
    """Optimizer steps; 0 derives them from `epochs`."""
    batch_size: int = 64
    """Prints per process and micro-batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    auto_micro_batch_size: Literal["auto", "yes", "no"] = "auto"
    """Rehearse a micro-batch before the first step, and where memory runs out on any process take smaller ones and more
    of them on all, with the same prints per step; `auto` does so on GPUs."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast of the network, losses stay in float32; `auto` takes what `accelerate launch` was told."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    """Peak learning rate, for the whole batch as given (it is not rescaled)."""
    head_lr_mult: float = 1.0
    """Learning rate of the identity heads, as a multiple of `learning_rate`."""
    layer_decay: float = 1.0
    """Each block of the network learns at this share of the rate of the block behind it: below 1 to keep the early
    layers of a trained network (`model.init_from`)."""
    ema_decay: float = 0.0
    """Keep a moving average of the weights, this share of it at each step (less in the beginning): validated and saved
    beside the raw weights, and exported in their place. 0 keeps none, 0.999 suits runs of 10,000 steps. With
    `model.init_from` the average begins with the trained weights and still holds ema_decay^steps of them at the end:
    0.999 keeps half of them over 700 steps."""
    weight_decay: float = 0.02
    momentum: float = 0.9
    """Momentum of sgd."""
    warmup_steps: int = 100
    """Steps of linear warm-up, then cosine decay."""
    min_lr_ratio: float = 0.01
    """Learning rate at the last step, as a share of the peak."""
    max_grad_norm: float = 5.0
    """Largest gradient norm; 0 switches clipping off."""
    validate_every: int = 500
    """Steps between validations; 0 validates at the end only."""
    patience: int = 0
    """Stop after this many validations without a lower EER; 0 never stops early."""
    log_every: int = 20
    """Steps between records in metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints; 0 saves at the end only."""
    save_total_limit: int = 3
    """Checkpoints kept, besides the best one."""
    tracker: str = "tensorboard"
    """Any tracker Accelerate knows, by name (`wandb`, `mlflow`, ...), or `none`."""
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    """Compile the network, on a GPU also the losses, with torch.compile. `reduce-overhead` adds CUDA graphs (worth most
    where a small network or batch leaves the GPU waiting for Python), `max-autotune` also tries out kernels."""
    gradient_compression: Literal["no", "bf16", "fp16"] = "no"
    """Send gradients between processes in half the bytes; bf16 keeps the range of float32."""
    bucket_cap_mb: int = 25
    """Gradients that processes exchange at a time, MiB: larger for many GPUs or a slow network."""
    timeout: int = 600
    """Seconds without an answer from another process after which it counts as lost, and the job ends."""
    seed: int = 0
    """Seed of initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        counts = ("batch_size", "gradient_accumulation_steps", "log_every", "save_total_limit")
        for name in (*counts, "bucket_cap_mb", "timeout"):
            require(getattr(self, name) >= 1, f"training.{name} must be at least 1")
        every = ("validate_every", "save_every", "patience")
        for name in (*every, "steps", "warmup_steps", "max_grad_norm", "head_lr_mult", "seed"):
            require(getattr(self, name) >= 0, f"training.{name} must not be negative")
        require(0 < self.layer_decay <= 1, "training.layer_decay must be above 0 and at most 1")
        require(0 <= self.ema_decay < 1, "training.ema_decay must be at least 0 and below 1")
        require(self.learning_rate > 0, "training.learning_rate must be above 0")
        require(self.steps > 0 or self.epochs > 0, "training.epochs must be above 0")


@dataclass(frozen=True)
class Config:
    """One training run."""

    data: str = ""
    """Dataset folder to train on (`fingerprint-accel import` or `synth` makes one), or synth:fingers=20000."""
    out: str = ""
    """Run folder to write."""
    resume: str = "never"
    """`auto` goes on from the latest checkpoint of --out (or starts); a checkpoint folder goes on from that one."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        batch_size, per_finger = self.training.batch_size, self.reading.samples_per_class
        require(
            batch_size % per_finger == 0,
            f"training.batch_size {batch_size} is not a multiple of reading.samples_per_class {per_finger}",
        )
        together = per_finger * self.reading.siblings
        require(
            batch_size % together == 0,
            f"training.batch_size {batch_size} is not a multiple of {together}, all impressions of the siblings "
            "(reading.samples_per_class x reading.siblings)",
        )
        require(
            not (self.model.gradient_checkpointing and self.training.compile != "no"),
            "model.gradient_checkpointing and training.compile do not go together: compiled code chooses what to keep",
        )
        require(
            not self.model.trunk_frozen or self.model.init_from != "",
            "model.trunk_frozen keeps what it starts from: give --model.init-from a trained network",
        )
        require(
            not (self.loss.matryoshka_dims and self.model.cells),
            "loss.matryoshka_dims: the beginning of a dense embedding is only the top of the finger; leave it out",
        )
        branch = self.model.embedding_dim // (2 if self.model.variant.endswith("TexMinu") else 1)
        require(
            all(length < branch for length in self.loss.matryoshka_dims),
            f"loss.matryoshka_dims {self.loss.matryoshka_dims}: a branch has {branch} numbers, give shorter lengths",
        )


def load_yaml(path: Path, base: Config | None = None, stored: bool = False) -> Config:
    """Reads a configuration file; knobs it does not name keep the values of `base`.

    Args:
        path: the file.
        base: default: the defaults of `Config`.
        stored: written by a run, perhaps of an earlier version, so old knobs are understood.

    Raises:
        UserError: the file is missing, is not YAML, or does not fit `Config`.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file to --config") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from error
    return from_dict(Config, renamed(values) if stored else values or {}, base, str(path) + ":")


def save_yaml(config: Config, path: Path) -> None:
    """Writes every knob, resolved, to a YAML file that `load_yaml` reads back."""
    path.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def parse(defaults: Config, description: str, arguments: Sequence[str] | None = None) -> Config:
    """Read the configuration of a run: defaults of the recipe, then `--config FILE.yaml`, then the command line.

    Args:
        defaults: Settings of the recipe.
        description: Text of `--help` above the options. Paragraphs are wrapped; indented lines and commands are kept.
        arguments: Command line without the program. Default: `sys.argv[1:]`.

    Raises:
        UserError: The configuration file cannot be used, or options contradict each other.
        SystemExit: Status 0 after `--help`, and status 2 for unknown or malformed options.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE.yaml")
    file, words = parser.parse_known_args(arguments)
    base = load_yaml(file.config, defaults) if file.config else defaults
    check_words(words)
    text = f"{description.strip()}\n\n--config FILE.yaml reads options from a file first, such as config.yaml of a run."
    return parse_command_line(Config, text, words, default=base)
