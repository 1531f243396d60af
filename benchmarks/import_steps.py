"""Measure the steps of importing a print, in milliseconds, in one process.

python benchmarks/import_steps.py --data FOLDER       # of images; default: synthetic prints, 480 x 440 pixels
"""

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from slap_images import prints_of

from fingerprint_accel.data.canvas import put_on_canvas
from fingerprint_accel.data.decoding import decode
from fingerprint_accel.data.minutiae_fit import why_foreign
from fingerprint_accel.data.minutiae_record import NO_MINUTIAE
from fingerprint_accel.data.plausibility import is_inverted, ridge_period
from fingerprint_accel.data.walking import IMAGE, walk
from fingerprint_accel.text import aligned

PPI, COUNT = 500, 60


def files(data: Path | None) -> list[bytes]:
    """Read the image files of a folder, or make PNG files of synthetic prints."""
    if data is not None:
        return [(data / met.path).read_bytes() for met in walk(data) if met.kind == IMAGE][:COUNT]
    found = []
    for image in prints_of(list(range(COUNT)))[0]:
        file = io.BytesIO()
        Image.fromarray(image[40:520, 60:500]).save(file, "PNG")
        found.append(file.getvalue())
    return found


def pixels(file: bytes) -> np.ndarray:
    """Decode an image file to (H, W) uint8."""
    image = decode(file)
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width)


def main(data: Path | None = None) -> None:
    """Print the median time of each step.

    Args:
        data: Folder of images at 500 ppi.
    """
    prints = files(data)
    greys = [pixels(file) for file in prints]
    random = np.random.default_rng(0)
    minutiae = (random.random((40, 4)) * (300, 300, 6, 1)).astype(np.float32)
    steps: dict[str, Callable[[bytes, np.ndarray], object]] = {
        "decode": lambda file, _: decode(file),
        "find the ridges, whiten the background, resample": lambda _, grey: put_on_canvas(
            grey, NO_MINUTIAE, PPI, 300, 320
        ),
        "distance of the ridges": lambda _, grey: ridge_period(grey, PPI),
        "light on dark?": lambda _, grey: is_inverted(grey),
        "check 40 minutiae, if a file states them": lambda _, grey: why_foreign(grey, PPI, minutiae),
    }
    rows = []
    for name, step in steps.items():
        times = []
        for file, grey in zip(prints, greys, strict=True):
            started = time.perf_counter()
            step(file, grey)
            times.append(time.perf_counter() - started)
        rows.append((name, f"{1000 * statistics.median(times):.1f} ms"))
    print(aligned(rows))


if __name__ == "__main__":
    tyro.cli(main)
