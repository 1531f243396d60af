"""Knobs of preparation: augmentation and what follows it on the device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from fingerprint_accel.errors import require


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
    map_size: int = 128
    """Side of the minutia map, pixels."""
    map_sigma: float = 1.5
    """Spread of one minutia in the map, map pixels."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        require(self.crop >= 32, "preprocess.crop must be at least 32")
        require(self.size >= 32, "preprocess.size must be at least 32")
        require(self.map_size >= 8, "preprocess.map_size must be at least 8")
        require(self.map_sigma > 0, "preprocess.map_sigma must be above 0")
