"""Options for the prints: which ones are read, in which order, and how they become the input of the network.

A dataset stores each print on a canvas, a square image of the same size for all prints.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Literal

from fingerprint_accel.config_dict import check_numbers
from fingerprint_accel.errors import require


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the pose and quality of training prints, drawn uniformly up to a maximum.

    A maximum of 0 disables a change.
    """

    enabled: bool = True
    """Augment training prints. If off, all options of this group have no effect."""
    rotation_degrees: float = 20.0
    """Maximum rotation to either side, in degrees."""
    translation: float = 20.0
    """Maximum shift along each axis, in canvas pixels."""
    scale: float = 0.05
    """Maximum relative change of size: 0.05 draws factors between 1/1.05 and 1.05, uniformly in their logarithm."""
    elastic: float = 3.0
    """Maximum displacement of the smooth skin distortion, in canvas pixels."""
    contrast: float = 0.4
    """Maximum relative change of contrast around the mean grey value of the print."""
    gain: float = 0.2
    """Maximum relative change of brightness."""
    ridge_thickness: float = 0.5
    """Maximum share, 0 to 1, of the local minimum or maximum that is blended into each pixel. This makes ridges
    thicker, as of wet skin, or thinner, as of dry skin."""
    noise: float = 0.06
    """Maximum standard deviation of sensor noise, as a share of the grey range."""
    occlusion: float = 0.15
    """Maximum share of the input area that is masked, as by missing contact with the sensor."""
    start: float = 1.0
    """Factor on all maxima of this group at the first step, 0 to 1; no effect if `ramp` is 0."""
    ramp: float = 0.0
    """Share of the training steps in which the factor rises linearly from `start` to 1; 0 keeps the factor at 1 for the
    whole run."""

    def __post_init__(self) -> None:
        check_numbers(self, "preprocess.augment", rotation_degrees=180, translation=2048, scale=100, elastic=2048)
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            require(value >= 0, f"preprocess.augment.{option.name} must not be negative, not {value}")
        for name in ("start", "ramp"):
            require(getattr(self, name) <= 1, f"preprocess.augment.{name} must be at most 1")
        require(self.ridge_thickness <= 1, "preprocess.augment.ridge_thickness must be at most 1")
        require(self.occlusion < 1, "preprocess.augment.occlusion must be below 1")

    def scaled(self, strength: float) -> AugmentConfig:
        """Return a copy with weaker random changes: all maxima are multiplied by `strength`, 0 to 1."""
        amplitudes = {
            option.name: strength * getattr(self, option.name)
            for option in dataclasses.fields(self)
            if option.name not in ("enabled", "start", "ramp")
        }
        return dataclasses.replace(self, **amplitudes)


@dataclass(frozen=True)
class PreprocessConfig:
    """Options for the preprocessing of stored prints to network inputs. Preprocessing runs on the device."""

    crop: int = 299
    """Side of the square that is cut from the centre of the canvas (the image of a stored print), in canvas pixels."""
    size: int = 299
    """Side of the input of the network, in pixels. The cut square is resized to this size."""
    normalize: Literal["local", "none"] = "local"
    """`local` equalises brightness and contrast around each pixel; `none` scales grey values to the range 0 to 1, with
    bright ridges."""
    enhance: bool = False
    """Apply multi-scale Gabor ridge enhancement before normalisation."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check_numbers(self, "preprocess", crop=2048, size=2048)
        for name in ("crop", "size"):
            require(getattr(self, name) >= 32, f"preprocess.{name} must be at least 32")


@dataclass(frozen=True)
class ReadingConfig:
    """Options for the selection of training and validation prints, and for the order in which prints are read."""

    validation_data: str = ""
    """Dataset folder to validate on. If empty, fingers of the training data are held out."""
    validation_fraction: float = 0.05
    """Share of the fingers to hold out for validation; 0 trains on all fingers, without validation. At least two
    fingers with two prints each are held out. They are chosen by a hash of the finger key (the name of a finger in the
    dataset), so the choice does not change when data is added."""
    split_by: str = ""
    """Hold out whole subjects or whole sessions instead of single fingers. `subject` reads the subject from finger keys
    that end in a finger position, such as 00002302_07 or anna_left_index. A regular expression with a group
    (?P<subject>...) is searched in finger keys, one with (?P<session>...) in the column `source` of the dataset. A file
    FILE.csv has the columns finger_key,subject or source,session."""
    fold: str = ""
    """Hold out one fold of a cross-validation instead of a share of the fingers: 2/5 is the second of five folds.
    --folds sets this option for each model."""
    order: Literal["permutation", "block"] = "permutation"
    """`permutation` shuffles all prints. `block` is for data larger than memory: it collects runs of 1024 neighbouring
    prints from random places into blocks of 16384 prints, and shuffles each block."""
    samples_per_class: int = 1
    """Number of different impressions of each finger in a micro-batch; the batch size must be a multiple of this
    number. 1 draws prints independently."""
    balanced: bool = False
    """Draw every finger equally often, regardless of its number of prints."""
    siblings: int = 1
    """Number of sibling fingers that are put into the same micro-batch. Siblings are synthetic fingers that differ in
    their minutiae only. Use the value of `synth --siblings`. The contrastive loss compares siblings."""

    def __post_init__(self) -> None:
        check_numbers(self, "reading", samples_per_class=2**20, siblings=2**20)
        require(0.0 <= self.validation_fraction < 1.0, "reading.validation_fraction must be at least 0 and below 1")
        for name in ("samples_per_class", "siblings"):
            require(getattr(self, name) >= 1, f"reading.{name} must be at least 1")
        require(
            self.order == "permutation" or (self.samples_per_class == 1 and not self.balanced and self.siblings == 1),
            "reading.order block reads neighbouring prints, but samples_per_class, balanced and siblings need prints "
            "from the whole dataset: leave reading.order at permutation",
        )
        for name in ("split_by", "fold"):
            require(
                not (self.validation_data and getattr(self, name)),
                f"reading.{name} holds out prints of the training data: leave out reading.validation_data",
            )
        parts = re.fullmatch(r"(\d{1,4})/(\d{1,4})", self.fold)
        require(
            not self.fold or (parts is not None and 1 <= int(parts[1]) <= int(parts[2]) >= 2),
            f"reading.fold {self.fold[:20]}: write K/N with K from 1 to N, as 2/5",
        )
