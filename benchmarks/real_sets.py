"""Sets of real prints that no training may touch, and what two classical matchers reach on them.

The sets `fvc...` are free downloads of the FVC competitions (http://bias.csr.unibo.it). The prints of FVC2002 DB4_B
were generated (SFinGe): the set stands apart, and means are over real sets only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fingerprint_accel.data.images import read_grey
from fingerprint_accel.data.listing import list_files
from fingerprint_accel.errors import UserError


@dataclass(frozen=True)
class RealSet:
    """A set and what two matchers reach on it: EER over all cross-finger pairs, percent, measured on these images."""

    title: str
    ppi: int
    nbis: float
    sourceafis: float
    synthetic: bool = False


SETS = {
    "fvc2002_db1_b": RealSet("FVC2002 DB1_B", 500, 4.29, 3.19),
    "fvc2002_db2_b": RealSet("FVC2002 DB2_B", 569, 1.46, 1.60),
    "fvc2002_db3_b": RealSet("FVC2002 DB3_B", 500, 8.88, 11.43),
    "fvc2002_db4_b": RealSet("FVC2002 DB4_B (SFinGe)", 500, 5.36, 6.07, synthetic=True),
    "fvc2000_db1_b": RealSet("FVC2000 DB1_B", 500, 4.49, 3.93),
    "upek": RealSet("UPEK", 500, 0.74, 0.00),
}


@dataclass(frozen=True)
class Prints:
    """The prints of a set: paths, finger numbers (N,) int64 and impressions (N,) int64."""

    paths: list[Path]
    fingers: np.ndarray
    impressions: np.ndarray

    def images(self, turn: float = 0.0) -> list[np.ndarray]:
        """(H, W) uint8 each; with `turn`, each is turned by up to so many degrees, always the same ones."""
        images = [read_grey(path) for path in self.paths]
        if not turn:
            return images
        draws = np.random.default_rng(0).uniform(-turn, turn, len(images))
        return [turned(image, degrees) for image, degrees in zip(images, draws, strict=True)]


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """An image turned about its middle; what comes in from outside has the median grey of its border."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    paper = int(np.median(border))
    picture = Image.fromarray(image)
    return np.asarray(picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=paper))


def read_set(folder: Path) -> Prints:
    """The prints of a set, in the order of their paths."""
    table = list_files(folder, "fvc").table.to_pydict()
    fingers = np.unique(table["finger_key"], return_inverse=True)[1]
    return Prints([folder / path for path in table["path"]], fingers, np.asarray(table["impression"]))


def sets_in(data: Path) -> dict[str, RealSet]:
    """The sets that are there.

    Raises:
        UserError: none is.
    """
    there = {name: known for name, known in SETS.items() if (data / name).is_dir()}
    if not there:
        raise UserError(f"{data}: none of {', '.join(SETS)} in it")
    return there


def mean_of_real(values: Mapping[str, float]) -> float:
    """Mean over the sets of real prints; NaN where there is none."""
    real = [value for name, value in values.items() if not SETS[name].synthetic]
    return float(np.mean(real)) if real else math.nan
