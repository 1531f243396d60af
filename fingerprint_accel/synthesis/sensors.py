"""Define simulated sensor types with the ranges of their rendering parameters, and the style of impressions.

Grey levels run from 0 (black) to 255 (white background), as in imported prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from fingerprint_accel.errors import require

Range = tuple[float, float]
PARAMETERS = (
    "width",  # width of the sensing area, mm
    "height",  # height of the sensing area, mm
    "contrast",  # difference between valleys and ridges, grey levels
    "sharpness",  # slope of ridge edges
    "blur",  # weight of a 3 x 3 binomial blur, 0 to 1
    "noise",  # standard deviation of the noise, grey levels
    "stripes",  # standard deviation of the fixed pattern noise of columns, grey levels
    "vignette",  # amplitude of the smooth shading, grey levels
    "halo",  # darkening of the whole contact area, grey levels
    "specks",  # strength of the dirt on the sensor
    "texture",  # relative variation of ink along a ridge
    "jitter",  # standard deviation of the displacement of the rows of a swipe sensor, mm
    "pressure",  # added to the pressure of the touch; larger values give thicker ridges
    "inverted",  # probability that ridges are bright
)
SENSORS: dict[str, dict[str, Range]] = {
    "optical": {
        "width": (13, 26), "height": (15, 28), "contrast": (140, 250), "sharpness": (3.5, 9.0),
        "blur": (0.0, 0.7), "noise": (0.5, 5), "stripes": (0, 1), "vignette": (0, 14), "halo": (0, 30),
        "specks": (0, 0.6), "texture": (0.1, 0.5), "jitter": (0, 0), "pressure": (-0.15, 0.15),
        "inverted": (0, 0),
    },
    "capacitive": {
        "width": (12.5, 16), "height": (14, 18.5), "contrast": (100, 220), "sharpness": (4, 10),
        "blur": (0.0, 0.5), "noise": (2, 11), "stripes": (0, 6), "vignette": (0, 24), "halo": (0, 80),
        "specks": (0, 1), "texture": (0.2, 0.7), "jitter": (0, 0), "pressure": (-0.25, 0.2),
        "inverted": (0, 0),
    },
    "thermal": {
        "width": (12, 15.2), "height": (18, 25), "contrast": (80, 180), "sharpness": (2.5, 6),
        "blur": (0.2, 1.0), "noise": (2, 9), "stripes": (0, 4), "vignette": (5, 30), "halo": (0, 35),
        "specks": (0, 0.4), "texture": (0.2, 0.6), "jitter": (0.005, 0.03), "pressure": (-0.1, 0.35),
        "inverted": (0, 0),
    },
    "ink": {
        "width": (20, 28), "height": (22, 32), "contrast": (150, 240), "sharpness": (4, 9),
        "blur": (0.1, 0.8), "noise": (2, 9), "stripes": (0, 0), "vignette": (0, 12), "halo": (0, 20),
        "specks": (0, 0.8), "texture": (0.3, 0.9), "jitter": (0, 0), "pressure": (-0.1, 0.4),
        "inverted": (0, 0),
    },
    "latent": {
        "width": (14, 28), "height": (16, 30), "contrast": (30, 100), "sharpness": (1.8, 3.5),
        "blur": (0.4, 1.0), "noise": (7, 18), "stripes": (0, 0), "vignette": (20, 60), "halo": (0, 40),
        "specks": (0.6, 2), "texture": (0.6, 1.0), "jitter": (0, 0), "pressure": (-0.3, 0.4),
        "inverted": (0, 0.5),
    },
}  # fmt: skip
DEFAULT = ("optical", "capacitive", "thermal", "ink")


@lru_cache(maxsize=16)
def sensor_ranges(names: tuple[str, ...], device: torch.device) -> torch.Tensor:
    """Return the range of each rendering parameter for each of the given sensors.

    Args:
        names: names from `SENSORS`.
        device: device of the result.

    Returns:
        (sensors, parameters, 2) float32 lowest and highest values, with the parameters in the order of `PARAMETERS`.
    """
    return torch.tensor([[SENSORS[name][parameter] for parameter in PARAMETERS] for name in names], device=device)


QUALITIES = {"clean": (0.15, 0.3), "default": (0.4, 1.3), "poor": (0.9, 1.6), "mixed": (0.15, 1.6)}
"""Lowest and highest severity of disturbances (rotation, distortion, pressure, dirt) for each quality."""
PARTIAL_SHARES = {"clean": 0.0, "default": 0.0, "poor": 0.0, "mixed": 0.4}
"""Share of impressions that show only a part of the finger, for each quality."""


@dataclass(frozen=True)
class Style:
    """Options for the appearance of synthetic impressions.

    Attributes:
        sensors: names from `SENSORS`. Each impression is rendered with a random one of these sensors.
        quality: name from `QUALITIES`.
        ppi: resolution, pixels per inch.
        canvas: side of the square image of an impression, pixels.
        siblings: number of consecutive fingers that form a family. Fingers of a family have the same pattern class,
            ridge flow, ridge period and creases, so that only minutiae distinguish them. With 1 there are no families.
        partial: share of impressions that show only a part of the finger: the tip, the lower half, one side, or a
            narrow window. The default is the share of the quality, see `PARTIAL_SHARES`.

    Raises:
        UserError: if a sensor or the quality is unknown, or a number is out of range.
    """

    sensors: tuple[str, ...] = DEFAULT
    quality: str = "default"
    ppi: int = 300
    canvas: int = 320
    siblings: int = 1
    partial: float | None = None

    @property
    def partial_share(self) -> float:
        """Share of impressions that show only a part of the finger: `partial`, or the default of the quality."""
        return PARTIAL_SHARES[self.quality] if self.partial is None else self.partial

    def __post_init__(self) -> None:
        for name in self.sensors:
            require(name in SENSORS, f"sensor {name!r}: unknown; there are {', '.join(SENSORS)}")
        require(len(self.sensors) > 0, f"no sensor: name at least one of {', '.join(SENSORS)}")
        require(self.quality in QUALITIES, f"quality {self.quality!r}: unknown; there are {', '.join(QUALITIES)}")
        require(150 <= self.ppi <= 1000, f"ppi {self.ppi}: must lie between 150 and 1000")
        require(0 <= self.partial_share <= 1, f"partial {self.partial}: a share of the touches, from 0 to 1")
        require(self.siblings >= 1, f"siblings {self.siblings}: must be at least 1")
        require(64 <= self.canvas <= 2048, f"canvas {self.canvas}: must lie between 64 and 2048")
