"""Slaps of synthetic prints: four fingers of a hand on one image, with the box of each distal phalanx."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters

PPI = 500
PER_MM = PPI / 25.4
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
WIDTHS = (16.0, 17.5, 16.5, 13.5)  # mm across the distal phalanx: index, middle, ring and little finger
TIPS = (9.0, 3.0, 6.0, 16.0)  # mm from the top of the image to the tips
SHAPE = (round(2.0 * PPI), round(3.2 * PPI))


def prints_of(fingers: Sequence[int], impression: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return clean impressions (n, side, side) uint8 at 500 ppi, and where they have ridges, (n, side, side) bool."""
    style = Style(sensors=("optical",), quality="clean", ppi=PPI, canvas=560, partial=0.0)
    masters = make_masters(7, torch.tensor(fingers))
    count = torch.arange(len(fingers))
    found = render(masters, count, impression_keys(7, torch.tensor(fingers), count * 0 + impression), style)
    return found.image.numpy(), found.skin.numpy()


def slap(number: int, left_hand: bool = False, lower: bool = True) -> tuple[np.ndarray, list[Box]]:
    """Return an image (H, W) uint8 and the boxes (left, top, right, bottom) of its fingers, left to right, in pixels.

    Args:
        number: Number of the hand.
        left_hand: Draw a left hand.
        lower: Draw the phalanx below each fingertip too.
    """
    random = np.random.default_rng(number)
    paper = np.full(SHAPE, 255, np.uint8)
    images, skins = prints_of([4 * number + finger for finger in range(4)])
    order = (3, 2, 1, 0) if left_hand else (0, 1, 2, 3)
    lean = random.uniform(-12, 12)
    boxes: list[Box] = []
    x = random.uniform(3, 6) * PER_MM
    for finger in order:
        width = WIDTHS[finger] * random.uniform(0.9, 1.1) * PER_MM
        top = (TIPS[finger] + random.uniform(0, 3)) * PER_MM
        turn = lean / 3 + random.uniform(-4, 4)
        ink = finger_image(images[finger], skins[finger], width, turn, lower, random)
        left, height = round(x), min(ink[0].shape[0], SHAPE[0] - round(top))
        if left + ink[0].shape[1] > SHAPE[1]:
            left = SHAPE[1] - ink[0].shape[1]
        place = paper[round(top) : round(top) + height, left : left + ink[0].shape[1]]
        np.minimum(place, ink[0][:height], out=place)
        rows, columns = (np.flatnonzero(ink[1][:height].any(axis=axis)) for axis in (1, 0))
        boxes.append((left + columns[0], round(top) + rows[0], left + columns[-1] + 1, round(top) + rows[-1] + 1))
        x = left + ink[0].shape[1] + random.uniform(1.0, 4.0) * PER_MM
    return paper, boxes


def finger_image(
    image: np.ndarray, skin: np.ndarray, width: float, turn: float, lower: bool, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a finger (h, w) uint8, turned by `turn` degrees, and the area (h, w) bool of its distal phalanx."""
    rows, columns = (np.flatnonzero(skin.any(axis=axis)) for axis in (1, 0))
    cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    scale = width / (columns[-1] + 1 - columns[0])
    size = (round(width), round((rows[-1] + 1 - rows[0]) * scale))
    size = (size[0], min(size[1], round(27 * PER_MM)))
    tip = Image.fromarray(image[cut]).resize(size, Image.Resampling.BICUBIC)
    ellipse = Image.new("L", size, 0)
    ImageDraw.Draw(ellipse).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=255)
    inside = np.asarray(ellipse) > 0
    gap, below = (round(random.uniform(*range_) * PER_MM) for range_ in ((0.8, 2.5), (8, 16)))
    whole = np.full((size[1] + gap + below, size[0]), 255, np.uint8)
    whole[: size[1]] = np.where(inside, np.asarray(tip), 255)
    if lower:
        whole[size[1] + gap :] = lower_phalanx(below, size[0], random)
    mask = np.zeros(whole.shape, np.uint8)
    mask[: size[1]] = 255 * (inside & np.asarray(Image.fromarray((skin[cut] * 255).astype(np.uint8)).resize(size)) > 0)
    turned = Image.fromarray(whole).rotate(turn, Image.Resampling.BICUBIC, expand=True, fillcolor=255)
    return np.asarray(turned), np.asarray(Image.fromarray(mask).rotate(turn, expand=True)) > 0


def lower_phalanx(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Return ridges (height, width) uint8 across the finger, paler and less regular than those of the tip."""
    y, x = np.mgrid[:height, :width]
    wave = np.cos(2 * np.pi * (y + 0.1 * x + 3 * np.sin(x / 19)) / 9.5) + random.normal(0, 0.9, (height, width))
    inside = np.abs(x - width / 2) < 0.42 * width
    return np.where(inside, np.clip(200 + 40 * wave, 60, 255), 255).astype(np.uint8)
