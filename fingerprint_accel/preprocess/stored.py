"""Enhancement done once, where prints are stored: an enhanced dataset costs nothing to read and nothing in training."""

from __future__ import annotations

import functools

import numpy as np
import torch

from fingerprint_accel.preprocess.enhance import Enhancer
from fingerprint_accel.preprocess.pipeline import PERIOD


def enhance_canvas(image: np.ndarray, ppi: int) -> np.ndarray:
    """Ridge enhancement of one canvas, as `import` and `merge` are handed it for their worker processes.

    One print at a time on one thread, so that its bytes do not depend on the company it is in.

    Args:
        image: (S, S) uint8, ridges dark.
        ppi: its resolution, pixels per inch.

    Returns:
        (S, S) uint8, ridges dark.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            ink = (255 - torch.from_numpy(image.copy()))[None, None].float() / 255  # (1, 1, S, S)
            enhanced = _enhancer(ppi)(ink)[0, 0]
            return (255 * (1 - enhanced)).round().clamp(0, 255).byte().numpy()
    finally:
        torch.set_num_threads(threads)


@functools.lru_cache(maxsize=4)
def _enhancer(ppi: int) -> Enhancer:
    return Enhancer(PERIOD * ppi).eval()
