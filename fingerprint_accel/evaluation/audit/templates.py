"""Find minutia templates that do not fit their print, or that several prints share.

A minutia template is the list of minutiae that is stored with a print. A minutia is the end or the fork of a ridge, and
its direction is the direction of the ridge. Minutiae of a print are therefore at dark pixels, and their directions are
parallel to the ridges around them. These properties do not hold for minutiae of another finger, for minutiae of a
mirrored print, or if the convention of the file format was misread. The ridge directions are computed with the
structure tensor of the image.
"""

from __future__ import annotations

import numpy as np
import torch

from fingerprint_accel.data.order import mix64
from fingerprint_accel.evaluation.audit.suspects import Suspect
from fingerprint_accel.extraction.print_quality import ridge_field

FEWEST = 8  # templates with fewer minutiae are not judged
PAPER = 0.03  # background has a lower contrast than this: the standard deviation of the darkness, which is 0 to 1
FAINT = 0.3  # background also has a lower contrast than this share of the strongest contrast of the print
MOST_ON_PAPER = 0.5  # largest share of minutiae on the background in a template that fits
LEAST_ALONG = 0.4  # smallest agreement with the ridge directions of a template that fits; see `fit`
PER_PIXEL, PER_RADIAN = 4, 500  # positions are rounded to 1/4 pixel, angles to 1/500 radian
KEYS = 4  # number of hashes of a template by which similar templates are found
SHARED = 0.5  # two templates are considered the same if at least this part of their hashes is equal


def fit(images: torch.Tensor, ppi: int, minutiae: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Measure how well minutiae fit the ridges of their prints.

    Args:
        images: (B, S, S) uint8 images of prints, ridges dark.
        ppi: resolution of the images, pixels per inch.
        minutiae: (B, M, 4) x and y in pixels, angle in radians, and quality.
        counts: (B,) number of minutiae of each print; the rest of the M rows is ignored.

    Returns:
        (B, 2) float. The first column is the share of minutiae on the white background. The second column is the
        agreement of the other minutiae with the ridges, from -1 to 1. The agreement is the mean cosine of twice the
        angle between minutia and ridge, weighted by the clarity of the ridges. Values are NaN for prints with fewer
        than `FEWEST` (8) minutiae.
    """
    field = ridge_field(images, ppi)
    flow, contrast = field.flow.numpy(), field.contrast.numpy()
    found = np.full((len(images), 2), np.nan)
    most = contrast.shape[1] - 1
    for number, count in enumerate(counts.tolist()):
        if count < FEWEST:
            continue
        x, y, angle, _ = minutiae[number, :count].T
        row, column = ((place / field.cell).astype(int).clip(0, most) for place in (y, x))
        limit = min(PAPER, FAINT * float(np.percentile(contrast[number], 95)))
        on_paper = contrast[number, row, column] < limit
        found[number, 0] = on_paper.mean()
        cosine, sine = flow[number][:, row[~on_paper], column[~on_paper]]
        if len(cosine) >= FEWEST:
            twice = 2 * angle[~on_paper]
            along = np.cos(twice) * cosine + np.sin(twice) * sine
            found[number, 1] = along.sum() / max(1e-6, float(np.hypot(cosine, sine).sum()))
    return found


def misfits(fits: np.ndarray) -> list[Suspect]:
    """Find the prints whose minutiae are outside the print or do not follow the direction of the ridges.

    Args:
        fits: (N, 2) results of `fit`; NaN for prints that are not judged.

    Returns:
        One suspect for each such print.
    """
    found = []
    for row, (paper, along) in enumerate(fits.tolist()):
        if paper > MOST_ON_PAPER:
            why = f"{paper:.0%} of the minutiae are outside the print"
            found.append(Suspect("template-off-ridges", (row,), paper, why))
        elif along < LEAST_ALONG:
            why = f"agreement of directions with the ridges {along:.2f} (1 is perfect, 0 is chance)"
            found.append(Suspect("template-against-flow", (row,), along, why))
    return found


def keys_of(minutiae: np.ndarray) -> np.ndarray:
    """Compute hashes by which copies of a minutia template are recognised.

    Each hash depends on two consecutive minutiae: their angles, and their relative position. The hashes therefore do
    not change if the template is shifted, and some remain if it is cropped.

    Args:
        minutiae: (n, 4) x, y, angle and quality.

    Returns:
        (k,) uint64 hashes in ascending order; none for fewer than `FEWEST` (8) minutiae.
    """
    keys = np.zeros(max(0, len(minutiae) - 1), np.uint64)
    if len(minutiae) < FEWEST:
        return keys[:0]
    steps = (np.diff(minutiae[:, :2], axis=0) * PER_PIXEL).round()
    angles = (minutiae[:, 2:3] * PER_RADIAN).round()
    for column in np.hstack([steps, angles[:-1], angles[1:]]).T:
        keys = mix64(keys ^ column.astype(np.int64).view(np.uint64))
    return np.unique(keys)


class Reuse:
    """Finds minutia templates that occur in several prints, in time linear in the number of prints.

    A template is compared only with earlier templates that have one of its `KEYS` (4) lowest hashes.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._keys: dict[int, np.ndarray] = {}
        self._of: dict[int, list[int]] = {}

    def add(self, row: int, minutiae: np.ndarray) -> None:
        """Add the minutia template of a print.

        Args:
            row: row of the print in the dataset.
            minutiae: (n, 4) x, y, angle and quality.
        """
        keys = keys_of(minutiae)
        lowest = keys[:KEYS].tolist()
        for first in {self._first[key] for key in lowest if key in self._first}:
            known = self._keys[first]
            if np.isin(keys, known).sum() >= SHARED * min(len(keys), len(known)):
                self._of[first].append(row)
                return
        if lowest:
            self._keys[row], self._of[row] = keys, [row]
            for key in lowest:
                self._first.setdefault(key, row)

    def suspects(self, picture: np.ndarray) -> list[Suspect]:
        """Return one suspect for each template that occurs in prints of several original images.

        Args:
            picture: (N,) identifier of the original image of each print; copies of one image have the same identifier.
        """
        found = []
        for rows in self._of.values():
            pictures = len(set(picture[rows].tolist()))
            if pictures > 1:
                why = f"same minutiae in {pictures} pictures"
                found.append(Suspect("template-reused", tuple(rows), float(pictures), why))
        return found
