"""Render synthetic prints for checking and quantising exported models."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from tqdm import tqdm

from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.preprocess.enhance import enhance_canvas
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters

SEED = 20261130
AT_ONCE = 2  # fingers between two updates of the progress bar


@lru_cache(maxsize=8)
def example_prints(info: PrintInfo, first: int, fingers: int, impressions: int) -> np.ndarray:
    """Render prints of different sensors and qualities, a part of them partial.

    Args:
        info: resolution and size of the canvases, and whether ridges are enhanced.
        first: index of the first finger. Different indices give different fingers.
        fingers: number of fingers.
        impressions: number of prints of each finger.

    Returns:
        (fingers * impressions, canvas, canvas) uint8 canvases. The prints of a finger follow each other. Callers share
        the array and must not change it.
    """
    style = Style(quality="mixed", ppi=info.ppi, canvas=info.canvas)
    rendered = []
    with tqdm(total=fingers, desc="rendering prints", unit="finger", leave=False, disable=fingers < 8) as bar:
        for number in torch.arange(first, first + fingers).split(AT_ONCE):
            which = torch.arange(len(number)).repeat_interleave(impressions)
            keys = impression_keys(SEED, number[which], torch.arange(impressions).repeat(len(number)))
            rendered.append(render(make_masters(SEED, number), which, keys, style).image.numpy())
            bar.update(len(number))
    canvases = np.concatenate(rendered)
    if info.enhanced:
        canvases = np.stack([enhance_canvas(canvas, info.ppi) for canvas in canvases])
    return canvases
