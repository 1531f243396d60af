"""Minutia templates that do not fit their print.

A minutia is the end or the fork of a ridge, and its direction is that of the ridge. So minutiae lie on ink, and their
directions follow the ridge flow, which the structure tensor of the canvas gives. Minutiae of another finger, of a
mirrored template, or read in another convention do not.
"""

from __future__ import annotations

import numpy as np
import torch

from fingerprint_accel.data.order import mix64
from fingerprint_accel.evaluation.audit.suspects import Suspect
from fingerprint_accel.extraction.print_quality import ridge_field

FEWEST = 8  # smallest number of minutiae of a template that is judged
PAPER = 0.03  # standard deviation of the ink, from 0 to 1, below which a neighbourhood may be paper
FAINT = 0.3  # it is paper only below this share of the strongest contrast of the print, which may be faint
MOST_ON_PAPER = 0.5  # largest share of minutiae on paper of a template that fits
LEAST_ALONG = 0.4  # smallest agreement of directions of a template that fits
PER_PIXEL, PER_RADIAN = 4, 500  # steps to which positions and angles of a template are rounded
KEYS = 4  # number of keys of a template by which similar templates are found
SHARED = 0.5  # share of common keys from which two templates count as one


def fit(images: torch.Tensor, ppi: int, minutiae: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Measure how well minutiae fit the ridges of their prints.

    Args:
        images: (B, S, S) uint8 canvases with dark ridges.
        ppi: resolution of the canvases, pixels per inch.
        minutiae: (B, M, 4) x, y, angle and quality.
        counts: (B,) number of minutiae of each print.

    Returns:
        (B, 2) float: the share of minutiae on paper, and the agreement of the others with the direction of the ridges.
        The agreement is the mean cosine of twice the angle between them, weighted by the clarity of the flow, from 1 to
        -1. Values are NaN for prints with fewer than `FEWEST` minutiae.
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
    """Return the prints whose minutiae lie on paper or across the ridges, from the (N, 2) results of `fit`."""
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
    """Return keys of a template that do not change if it is moved, and partly remain if it is cut at a border.

    Each key is a hash of two consecutive minutiae: their angles, and their relative position.

    Args:
        minutiae: (n, 4) x, y, angle and quality.

    Returns:
        (k,) uint64 keys in ascending order.
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
    """Finds templates that occur in several prints, in time linear in the number of prints.

    Templates that share one of their `KEYS` lowest keys are compared with the first of them.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._keys: dict[int, np.ndarray] = {}
        self._of: dict[int, list[int]] = {}

    def add(self, row: int, minutiae: np.ndarray) -> None:
        """Add the (n, 4) minutiae of a print."""
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
        """Return templates that occur in several prints, unless these are copies of one picture.

        Args:
            picture: (N,) number of the picture of each print.
        """
        found = []
        for rows in self._of.values():
            pictures = len(set(picture[rows].tolist()))
            if pictures > 1:
                why = f"same minutiae in {pictures} pictures"
                found.append(Suspect("template-reused", tuple(rows), float(pictures), why))
        return found
