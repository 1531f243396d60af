"""Every knob once, with its unit and default.

A configuration is a tree of frozen dataclasses. It is read from the command line (`--training.steps 500`), from a YAML
file of the same shape (`--config run.yaml`), or both, the command line last.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
import yaml

from fingerprint_accel.config_dict import from_dict, to_dict
from fingerprint_accel.errors import UserError
from fingerprint_accel.errors import require as _require
from fingerprint_accel.training_config import TrainingConfig

Variant = Literal["Tex", "Minu", "TexMinu", "LocTex", "LocMinu", "LocTexMinu"]


@dataclass(frozen=True)
class ReadingConfig:
    """How prints come from the shards."""

    validation_data: str = ""
    """Dataset folder to validate on. Empty: hold out fingers of the training data."""
    validation_fraction: float = 0.05
    """Share of fingers held out for validation, chosen by a hash of the finger key (stable when data is added)."""
    order: Literal["permutation", "block"] = "permutation"
    """`permutation` shuffles all prints; `block` shuffles blocks of neighbouring prints (data larger than memory)."""
    block_size: int = 16384
    """Prints per block for `block` order."""
    impressions_per_finger: int = 1
    """Different impressions of each finger in a micro-batch; it divides the batch size. 1 leaves them to chance."""
    prefetch: int = 3
    """Batches read ahead by the reading thread."""

    def __post_init__(self) -> None:
        _require(0.0 <= self.validation_fraction < 1.0, "reading.validation_fraction must be at least 0 and below 1")
        for name in ("block_size", "impressions_per_finger"):
            _require(getattr(self, name) >= 1, f"reading.{name} must be at least 1")
        _require(self.prefetch >= 1, "reading.prefetch must be at least 1")


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
            _require(value >= 0, f"preprocess.augment.{knob.name} must not be negative, not {value}")
        for name in ("start", "ramp"):
            _require(getattr(self, name) <= 1, f"preprocess.augment.{name} must be at most 1")
        _require(self.ridge_thickness <= 1, "preprocess.augment.ridge_thickness must be at most 1")
        _require(self.occlusion < 1, "preprocess.augment.occlusion must be below 1")

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
    map_size: int = 128
    """Side of the minutia map, pixels."""
    map_sigma: float = 1.5
    """Spread of one minutia in the map, map pixels."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _require(self.crop >= 32, "preprocess.crop must be at least 32")
        _require(self.size >= 32, "preprocess.size must be at least 32")
        _require(self.map_size >= 8, "preprocess.map_size must be at least 8")
        _require(self.map_sigma > 0, "preprocess.map_sigma must be above 0")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    variant: Variant = "TexMinu"
    """DeepPrint variant: texture branch, minutia branch, or both; `Loc` puts the aligning network in front."""
    trunk: Literal["inception_v4", "compact"] = "inception_v4"
    """`inception_v4` is DeepPrint's; `compact` has a few million parameters and trains on CPUs."""
    embedding_dim: int = 512
    """Length of the whole embedding; variants with two branches give each half."""
    width: int = 32
    """Channels of the compact trunk's first stage."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of the compact trunk; `group` makes results independent of the batch."""
    dropout: float = 0.2
    """Dropout in front of the embedding layers."""
    localization_max_degrees: float = 60.0
    """Largest rotation of the aligning network, degrees."""
    localization_max_translation: float = 0.25
    """Largest shift of the aligning network, as a share of the input's side."""

    def __post_init__(self) -> None:
        both = self.variant.endswith("TexMinu")
        _require(self.embedding_dim >= 2, "model.embedding_dim must be at least 2")
        _require(not both or self.embedding_dim % 2 == 0, f"model.embedding_dim must be even for {self.variant}")
        _require(self.width >= 8 and self.width % 8 == 0, "model.width must be a positive multiple of 8")
        _require(0 <= self.dropout < 1, "model.dropout must be at least 0 and below 1")
        _require(
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
    margin_start: float = 0.0
    """Share of the run before which the margin is 0."""
    margin_ramp: float = 0.0
    """Share of the run over which the margin then rises, linearly, to `margin`."""
    identity_weight: float = 1.0
    center_weight: float = 0.125
    minutia_map_weight: float = 0.3
    contrastive_weight: float = 0.0
    """Weight of the InfoNCE term; it learns from fingers with several prints in a micro-batch
    (`reading.impressions_per_finger`)."""
    contrastive_temperature: float = 0.1
    """Temperature of the InfoNCE term: smaller looks at the most similar other fingers only."""
    center_rate: float = 0.01
    """Share by which a class centre moves towards the mean of its prints in each step."""

    def __post_init__(self) -> None:
        _require(self.scale > 0, "loss.scale must be above 0")
        _require(self.contrastive_temperature > 0, "loss.contrastive_temperature must be above 0")
        weights = ("identity_weight", "center_weight", "minutia_map_weight", "contrastive_weight")
        for name in (*weights, "margin", "margin_start", "margin_ramp"):
            _require(getattr(self, name) >= 0, f"loss.{name} must not be negative")
        _require(self.margin_start + self.margin_ramp <= 1, "loss.margin_start + loss.margin_ramp must be at most 1")
        _require(0 <= self.center_rate <= 1, "loss.center_rate must lie between 0 and 1")


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
        _require(
            batch_size % per_finger == 0,
            f"training.batch_size {batch_size} is not a multiple of reading.impressions_per_finger {per_finger}",
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
