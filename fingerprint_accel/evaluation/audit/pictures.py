"""Find prints that are copies of one image: unchanged, or compressed, cropped or brightened.

Skin stretches differently at every touch, so no shift aligns the ridges of two impressions of a finger, and their
correlation is low. The correlation of two copies of one image is near 1.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from fingerprint_accel.data.ridges import MM_PER_INCH
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.evaluation.audit.suspects import Groups, Kind, Suspect
from fingerprint_accel.synthesis.workers import each

ALIKE = 0.9
"""Lowest similarity of the embeddings of two prints at which their pixels are compared."""
COPY = 0.9
"""Lowest correlation of the pixels of two prints at which they count as copies of one picture."""
RIDGES_MM = (0.3, 1.0)  # range of ridge spacings; finer structure is noise, coarser structure is the print's shape
AT_ONCE = 64  # number of pairs of images that are compared in parallel
FINER = 8  # the search for the best shift has this many steps per pixel


def digest(canvas: np.ndarray) -> bytes:
    """Return a 16-byte hash of the pixels of an image."""
    return hashlib.blake2b(canvas.tobytes(), digest_size=16).digest()


def correlation(first: np.ndarray, second: np.ndarray, ppi: float) -> float:
    """Return the highest correlation of the ridges of two images over all shifts, in steps of an eighth of a pixel.

    Args:
        first: (S, S) uint8 image of a print, ridges dark.
        second: (S, S) uint8 image of a print.
        ppi: resolution of the images, pixels per inch.
    """
    side, band = _band(len(first) // 2, ppi / 2)
    spectra = []
    for canvas in (first, second):
        even = len(canvas) // 2 * 2
        ink = 255 - canvas[:even, :even].astype(np.float32).reshape(even // 2, 2, even // 2, 2).mean(axis=(1, 3))
        spectra.append(np.fft.fft2(ink, (side, side)) * band)
    product = spectra[0] * spectra[1].conj()
    energy = np.sqrt(np.prod([(np.abs(spectrum) ** 2).sum() for spectrum in spectra]))
    if not energy:
        return 0.0
    row, column = np.unravel_index(np.fft.ifft2(product).real.argmax(), product.shape)
    steps, frequency = np.arange(-FINER, FINER + 1) / FINER, np.fft.fftfreq(side)
    down = np.exp(2j * np.pi * (row + steps)[:, None] * frequency)
    across = np.exp(2j * np.pi * (column + steps)[:, None] * frequency)
    return float((down @ product @ across.T).real.max() / energy)


@functools.lru_cache(maxsize=4)
def _band(size: int, ppi: float) -> tuple[int, np.ndarray]:
    """Return the side length of the padded 2D spectrum of an image, and a mask of the ridge frequencies.

    Args:
        size: side length of the image, pixels.
        ppi: resolution of the image, pixels per inch.

    Returns:
        Side length of the spectrum, and a (side, side) bool mask that is True at spatial frequencies of ridges.
    """
    side = 1 << (3 * size // 2 - 1).bit_length()  # only shifts by more than half an image wrap around
    frequency = np.fft.fftfreq(side)
    per_mm = np.hypot(frequency[:, None], frequency[None]) * ppi / MM_PER_INCH
    band = (per_mm > 1 / RIDGES_MM[1]) & (per_mm < 1 / RIDGES_MM[0])
    return side, band


def copies(
    shards: Shards, digests: Sequence[bytes], pairs: np.ndarray, progress: bool = True
) -> tuple[list[Suspect], np.ndarray]:
    """Find prints that are copies of one image.

    Args:
        shards: the dataset of N prints.
        digests: hash of the image of each print, from `digest`.
        pairs: (n, 2) rows of prints with similar embeddings, whose pixels are compared.
        progress: show a progress bar.

    Returns:
        Two values: a list with one suspect for each group of copies; and an (N,) int64 array with an identifier of the
            original image of each print, which is the same for copies.
    """
    groups = Groups(len(digests))
    first_of: dict[bytes, int] = {}
    same: dict[tuple[int, int], float] = {}
    for row, known in enumerate(digests):
        groups.join(row, first_of.setdefault(known, row))
    asked = [(a, b) for a, b in pairs.tolist() if digests[a] != digests[b]]

    def of_pair(rows: tuple[int, int]) -> float:
        return correlation(shards.image(rows[0]), shards.image(rows[1]), shards.info.ppi)

    with tqdm(total=len(asked), desc="comparing pixels", unit="pair", delay=2.0, disable=not progress) as bar:
        for start in range(0, len(asked), AT_ONCE):
            some = asked[start : start + AT_ONCE]
            for (a, b), value in zip(some, each(of_pair, some), strict=True):
                if value >= COPY:
                    groups.join(a, b)
                    same[a, b] = value
            bar.update(len(some))
    least: dict[int, float] = {}
    for (a, _), value in same.items():
        least[groups.find(a)] = min(value, least.get(groups.find(a), 1.0))
    found = []
    for rows in groups.of(range(len(digests))):
        if len(rows) > 1:
            score = least.get(groups.find(rows[0]), 1.0)
            exact = len({digests[row] for row in rows}) == 1
            why = "equal pixels" if exact else f"correlation of the ridges {score:.2f}"
            apart = len(set(shards.fingers[rows].tolist())) > 1
            kind: Kind = "same-picture-two-fingers" if apart else "same-picture-one-finger"
            found.append(Suspect(kind, tuple(rows), score, why))
    return found, np.array([groups.find(row) for row in range(len(digests))])
