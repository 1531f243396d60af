"""Minutiae that do not fit the print that they came with.

A minutia is where a ridge ends or forks, and its direction is that of the ridge there. So minutiae lie where there is
ink, and run along the flow that the structure tensor of the canvas tells. Those of another finger, a mirrored template,
or one read in another convention lie anyhow.
"""

from __future__ import annotations

import numpy as np
import torch

from fingerprint_accel.data.order import mix64
from fingerprint_accel.evaluation.audit.suspects import Suspect
from fingerprint_accel.extraction.print_quality import ridge_field

FEWEST = 8  # minutiae, below which nothing is said
PAPER = 0.03  # deviation of the ink, 0 to 1, below which a neighbourhood may be paper
FAINT = 0.3  # and this share of that where the print is strongest: faint prints are no paper
MOST_ON_PAPER = 0.5  # share of the minutiae
LEAST_ALONG = 0.4  # agreement of directions
PER_PIXEL, PER_RADIAN = 4, 500  # steps, to which places and angles of a template are rounded
KEYS = 4  # of a template, by which those that share minutiae are found
SHARED = 0.5  # of its keys, from which two templates are one


def fit(images: torch.Tensor, ppi: int, minutiae: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How minutiae fit the ridges of their prints.

    Args:
        images: (B, S, S) uint8, ridges dark.
        ppi: of the images.
        minutiae: (B, M, 4) x, y, angle, quality.
        counts: (B,) of them that are there.

    Returns:
        (B, 2) float: the share of minutiae on paper, and how far the others run along the ridges: the mean cosine of
        twice the angle between, weighted by how clear the flow is, 1 to -1. nan where there are fewer than `FEWEST`.
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
    """`fits` (N, 2) of all prints, as `fit` gives them -> those whose minutiae lie on paper, or across the ridges."""
    found = []
    for row, (paper, along) in enumerate(fits.tolist()):
        if paper > MOST_ON_PAPER:
            why = f"{paper:.0%} of the minutiae are on paper"
            found.append(Suspect("template-off-ridges", (row,), paper, why))
        elif along < LEAST_ALONG:
            why = f"directions agree with the ridges by {along:.2f}; 1 is always, 0 is chance"
            found.append(Suspect("template-against-flow", (row,), along, why))
    return found


def keys_of(minutiae: np.ndarray) -> np.ndarray:
    """(n, 4) minutiae, x, y, angle, quality -> (k,) uint64, ascending: keys that a template keeps where it is moved,
    and cut at a border: of each two minutiae that follow each other, their angles and how they lie to each other."""
    keys = np.zeros(max(0, len(minutiae) - 1), np.uint64)
    if len(minutiae) < FEWEST:
        return keys[:0]
    steps = (np.diff(minutiae[:, :2], axis=0) * PER_PIXEL).round()
    angles = (minutiae[:, 2:3] * PER_RADIAN).round()
    for column in np.hstack([steps, angles[:-1], angles[1:]]).T:
        keys = mix64(keys ^ column.astype(np.int64).view(np.uint64))
    return np.unique(keys)


class Reuse:
    """Finds templates that several prints have, in time linear in prints: those that share one of the `KEYS` lowest
    keys are compared with the first of them."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._keys: dict[int, np.ndarray] = {}
        self._of: dict[int, list[int]] = {}

    def add(self, row: int, minutiae: np.ndarray) -> None:
        """Takes the (n, 4) minutiae of a print."""
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
        """Templates that several prints have, which are not one `picture` (N,)."""
        found = []
        for rows in self._of.values():
            pictures = len(set(picture[rows].tolist()))
            if pictures > 1:
                why = f"the same minutiae in {pictures} pictures"
                found.append(Suspect("template-reused", tuple(rows), float(pictures), why))
        return found
