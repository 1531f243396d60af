"""Every knob once, with its unit and default.

A configuration is a tree of frozen dataclasses. It is read from the command line (`--training.steps 500`), from a YAML
file of the same shape (`--config run.yaml`), or both, the command line last.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
import yaml

from fingerprint_accel.config_dict import from_dict, to_dict
from fingerprint_accel.config_preprocess import AugmentConfig, PreprocessConfig
from fingerprint_accel.config_training import TrainingConfig
from fingerprint_accel.errors import UserError, require

__all__ = ["AugmentConfig", "PreprocessConfig", "TrainingConfig"]  # where all knobs are found

Variant = Literal["Tex", "Minu", "TexMinu", "LocTex", "LocMinu", "LocTexMinu", "Dense", "LocDense"]
Trunk = Literal["inception_v4", "compact", "vit_small", "vit_base", "flx"]


@dataclass(frozen=True)
class ReadingConfig:
    """How prints come from the shards."""

    validation_data: str = ""
    """Dataset folder to validate on. Empty: hold out fingers of the training data."""
    validation_fraction: float = 0.05
    """Share of fingers held out for validation, chosen by a hash of the finger key (stable when data is added)."""
    order: Literal["permutation", "block"] = "permutation"
    """`permutation` shuffles all prints; `block` reads block by block, each shuffled (data larger than memory)."""
    block_size: int = 16384
    """Prints per block for `block` order; a block is made of runs of 1,024 neighbours from all over the data."""
    impressions_per_finger: int = 1
    """Different impressions of each finger in a micro-batch; it divides the batch size. 1 leaves them to chance."""
    balanced: bool = False
    """Every finger equally often, however many prints it has."""
    siblings: int = 1
    """So many fingers whose keys follow each other come together: with `synth --siblings` these are the ones that only
    minutiae tell apart, and the contrastive term sees them in one micro-batch."""
    prefetch: int = 3
    """Batches read ahead by the reading thread."""

    def __post_init__(self) -> None:
        require(0.0 <= self.validation_fraction < 1.0, "reading.validation_fraction must be at least 0 and below 1")
        for name in ("block_size", "impressions_per_finger", "siblings"):
            require(getattr(self, name) >= 1, f"reading.{name} must be at least 1")
        require(self.prefetch >= 1, "reading.prefetch must be at least 1")
        require(
            self.order == "permutation"
            or (self.impressions_per_finger == 1 and not self.balanced and self.siblings == 1),
            "reading.order block reads neighbouring prints, but impressions_per_finger, balanced and siblings gather "
            "prints from all over the data: leave reading.order at permutation",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    start_from: str = ""
    """Trained network of the same shape to start from: a bundled model (`small`), a run folder, a checkpoint, or an
    exported model. The prints need the ppi and canvas of those it was trained on. Heads start afresh: the fingers are
    others. Empty: random weights."""
    variant: Variant = "TexMinu"
    """DeepPrint variant: texture branch, minutia branch, or both; `Dense` describes the finger cell by cell, and prints
    are compared where both show it; `Loc` puts the aligning network in front."""
    trunk: Trunk = "inception_v4"
    """`inception_v4` is DeepPrint's; `compact` has a few million parameters and trains on CPUs; `vit_small` and
    `vit_base` are vision transformers; `flx` is Inception v4 as flx builds it, for its weights: no activations in
    minutia branch, map decoder and aligning network."""
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
    localization_frozen: bool = False
    """Leave the aligning network as it starts (`start_from`); the rest learns behind it."""
    stem_frozen: bool = False
    """Leave the first layers as they start (`start_from`), those in front of all branches: less work for a trunk that
    knows ridges."""
    trunk_frozen: bool = False
    """Leave everything but the last layer of each branch as it starts (`start_from`): for a few fingers of your own."""
    recompute: bool = False
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
    negative_sampling: float = 1.0
    """Share of its fingers that a process compares prints with in an update, drawn anew each time, those of the prints
    always among them; below 1 it needs `sharded`."""
    filter_above: float = 1.0
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
    (`reading.impressions_per_finger`)."""
    mask_weight: float = 1.0
    """Weight of the loss by which dense variants learn which cells a print shows."""
    pose_weight: float = 1.0
    """Weight of the loss by which the aligning network learns where a finger lies, from prints that know it: synthetic
    ones."""
    contrastive_temperature: float = 0.1
    """Temperature of the InfoNCE term: smaller looks at the most similar other fingers only."""
    nested: tuple[int, ...] = ()
    """Lengths at which the beginning of each branch's embedding also learns to stand alone, shortest first: cut there
    and scaled to unit length, it is an embedding by itself (Matryoshka)."""
    center_rate: float = 0.01
    """Share by which a class centre moves towards the mean of its prints in each step."""

    def __post_init__(self) -> None:
        require(self.scale > 0, "loss.scale must be above 0")
        require(self.contrastive_temperature > 0, "loss.contrastive_temperature must be above 0")
        weights = tuple(
            f"{name}_weight" for name in ("identity", "center", "minutia_map", "contrastive", "mask", "pose")
        )
        for name in (*weights, "margin", "margin_start", "margin_ramp"):
            require(getattr(self, name) >= 0, f"loss.{name} must not be negative")
        rising = all(low < high for low, high in zip((0, *self.nested), self.nested, strict=False))
        require(rising, "loss.nested must be lengths above 0, shortest first")
        require(0 < self.negative_sampling <= 1, "loss.negative_sampling must be above 0 and at most 1")
        require(0 < self.filter_above <= 1, "loss.filter_above must be above 0 and at most 1")
        for name in ("negative_sampling", "filter_above"):
            require(
                self.sharded or getattr(self, name) == 1, f"loss.{name} needs loss.sharded: add --loss.sharded True"
            )
        require(
            self.head != "softmax" or self.filter_above == 1,
            "loss.filter_above compares cosines: choose --loss.head arcface or cosface",
        )
        require(self.margin_start + self.margin_ramp <= 1, "loss.margin_start + loss.margin_ramp must be at most 1")
        require(0 <= self.label_smoothing < 1, "loss.label_smoothing must be at least 0 and below 1")
        require(
            not (self.sharded and self.label_smoothing), "loss.label_smoothing needs heads held whole: one of the two"
        )
        require(0 <= self.center_rate <= 1, "loss.center_rate must lie between 0 and 1")


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
        batch_size, per_finger = self.training.batch_size, self.reading.impressions_per_finger
        require(
            batch_size % per_finger == 0,
            f"training.batch_size {batch_size} is not a multiple of reading.impressions_per_finger {per_finger}",
        )
        together = per_finger * self.reading.siblings
        require(
            batch_size % together == 0,
            f"training.batch_size {batch_size} is not a multiple of {together}, all impressions of the siblings "
            "(reading.impressions_per_finger x reading.siblings)",
        )
        require(
            not (self.model.recompute and self.training.compile != "no"),
            "model.recompute and training.compile do not go together: compiled code decides itself what to keep",
        )
        require(
            not self.model.trunk_frozen or self.model.start_from != "",
            "model.trunk_frozen keeps what it starts from: give --model.start-from a trained network",
        )
        require(
            not (self.loss.nested and self.model.cells),
            "loss.nested: the beginning of a dense embedding is only the top of the finger; leave it out",
        )
        branch = self.model.embedding_dim // (2 if self.model.variant.endswith("TexMinu") else 1)
        require(
            all(length < branch for length in self.loss.nested),
            f"loss.nested {self.loss.nested}: a branch's embedding has {branch} numbers, give shorter lengths",
        )


def load_yaml(path: Path, base: Config | None = None) -> Config:
    """Reads a configuration file; knobs it does not name keep the values of `base`.

    Raises:
        UserError: the file is missing, is not YAML, or does not fit `Config`.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file to --config") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from error
    return from_dict(Config, values or {}, base, str(path) + ":")


def save_yaml(config: Config, path: Path) -> None:
    """Writes every knob, resolved, to a YAML file that `load_yaml` reads back."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def parse(defaults: Config, description: str, arguments: Sequence[str] | None = None) -> Config:
    """Reads a run's configuration: recipe defaults, then `--config FILE.yaml`, then `--group.knob value`.

    Args:
        defaults: what the recipe sets.
        description: text on top of `--help`.
        arguments: command line without the program; default `sys.argv[1:]`.

    Raises:
        UserError: a configuration file that cannot be used, or knobs that do not go together.
        SystemExit: with status 2 and a usage message for unknown or malformed arguments.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    base = defaults
    for position, word in enumerate(words):
        if word == "--config" or word.startswith("--config="):
            name = word.partition("=")[2] if "=" in word else "".join(words[position + 1 : position + 2])
            del words[position : position + (1 if "=" in word else 2)]
            base = load_yaml(Path(name), defaults)
            break
    text = description.strip() + "\n\n--config FILE.yaml reads knobs from a file first (see config.yaml of any run)."
    return tyro.cli(Config, default=base, description=text, args=words, config=(tyro.conf.FlagConversionOff,))
