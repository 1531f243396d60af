"""Synthetic prints for the mixed tree, and their expected appearance in the dataset."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from fingerprint_accel.data.canvas import put_on_canvas
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters

PPI, SIDE = 500, 540  # pixels: 27 mm, too narrow for two fingers
DRAWN = 2  # prints are rendered at half the resolution, in a quarter of the time
DATASET_PPI, CANVAS = 300, 320
IMPRESSIONS = 8  # of each finger
BATCH = 8  # fingers made at a time
SEED = 11


@dataclass(frozen=True)
class Print:
    """An impression.

    Attributes:
        number: Number of the print in the tree.
        grey: (SIDE, SIDE) uint8, ridges dark.
        minutiae: (n, 4) float32 x, y, angle, quality. Coordinates are whole pixels, because files hold whole numbers.
    """

    number: int
    grey: np.ndarray
    minutiae: np.ndarray

    @property
    def subject(self) -> str:
        """Return the id of the person, who has ten fingers."""
        return f"s{self.number // (10 * IMPRESSIONS):04d}"

    @property
    def position(self) -> int:
        """Return the finger position code, 1 to 10."""
        return self.number // IMPRESSIONS % 10 + 1

    @property
    def impression(self) -> int:
        """Return the number of the impression, from 1."""
        return self.number % IMPRESSIONS + 1

    @property
    def finger_key(self) -> str:
        """Return the key that the import gives to the finger."""
        return f"{self.subject}_{self.position:02d}"

    @property
    def stem(self) -> str:
        """Return the name of the file without a suffix."""
        return f"{self.finger_key}_{self.impression}"

    @functools.cached_property
    def placed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the expected canvas (CANVAS, CANVAS) uint8, and the expected minutiae in canvas pixels."""
        return put_on_canvas(self.grey, self.minutiae, PPI, DATASET_PPI, CANVAS)


class Prints:
    """A source of prints. Prints are made on demand, and each is returned once."""

    def __init__(self) -> None:
        self.made: list[Print] = []
        self._next = 0

    def take(self) -> Print:
        """Return the next print."""
        if self._next == len(self.made):
            self._make()
        self._next += 1
        return self.made[self._next - 1]

    def _make(self) -> None:
        """Make eight more fingers. Half of the impressions are rendered, and their mirror images are another finger."""
        start = len(self.made) // IMPRESSIONS
        fingers = torch.arange(start, start + BATCH, 2)
        which = torch.arange(len(fingers)).repeat_interleave(IMPRESSIONS)
        keys = impression_keys(SEED, fingers[which], torch.arange(IMPRESSIONS).repeat(len(fingers)))
        style = Style(sensors=("optical",), quality="clean", ppi=PPI // DRAWN, canvas=SIDE // DRAWN, partial=0.0)
        drawn = render(make_masters(SEED, fingers), which, keys, style)
        for finger in range(len(fingers)):
            for mirrored in (False, True):
                for row in range(finger * IMPRESSIONS, (finger + 1) * IMPRESSIONS):
                    grey = np.asarray(Image.fromarray(drawn.image[row].numpy()).resize((SIDE, SIDE)))
                    minutiae = drawn.minutiae[row, : drawn.count[row]].numpy().copy()
                    minutiae[:, :2] = (DRAWN * minutiae[:, :2]).round().clip(0, SIDE - 1)
                    if mirrored:
                        grey = grey[:, ::-1].copy()
                        minutiae[:, 0] = SIDE - 1 - minutiae[:, 0]
                        minutiae[:, 2] = (math.pi - minutiae[:, 2]) % (2 * math.pi)
                    self.made.append(Print(len(self.made), grey, minutiae))
