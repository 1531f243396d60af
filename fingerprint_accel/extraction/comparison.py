"""Comparison of two prints: similarity, best pose, and decisions at the thresholds of the model.

A pose is a rotation and shift in which a print is embedded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fingerprint_accel.extraction.calibration import decision_basis
from fingerprint_accel.extraction.extractor import FingerprintExtractor, Image
from fingerprint_accel.extraction.poses import UPRIGHT, Poses, best_agreement
from fingerprint_accel.preprocess.geometric import Pose


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two prints.

    Attributes:
        similarity: similarity of the embeddings in the best pair of poses, -1 to 1.
        canvases: (2, S, S) uint8, images of reference and probe as the model received them, ridges dark.
        tried: number of poses in which each print was embedded.
        verdicts: (text, decision) for each FMR that has a threshold; see `decisions`.
        basis: source of the thresholds, or the reason why there are no decisions.
        find_pose: function that computes `pose`.
    """

    similarity: float
    canvases: np.ndarray
    tried: int
    verdicts: list[tuple[str, str]]
    basis: str
    find_pose: Callable[[], Pose]

    @functools.cached_property
    def pose(self) -> Pose:
        """Rotation and shift that make the probe overlay the reference, for `geometric.resample`."""
        return self.find_pose()

    def rows(self) -> list[tuple[str, str]]:
        """Return the similarity and the decisions as (name, text) rows of a table."""
        poses = f" (best of {self.tried} poses)" if self.tried > 1 else ""
        return [("similarity", f"{self.similarity:.3f}{poses}"), *self.verdicts]


def compare_prints(
    extractor: FingerprintExtractor,
    reference: Image,
    probe: Image,
    ppi: int,
    tried: Poses | None = None,
    probe_ppi: int = 0,
) -> Comparison:
    """Compare two prints in several poses, and return the best similarity, its pose and the decisions.

    Args:
        extractor: model that embeds the prints.
        reference: image file, PIL image, or uint8 array (H, W) or (H, W, 3), ridges dark.
        probe: image to compare with the reference; accepts the same types as `reference`.
        ppi: resolution of the images, pixels per inch.
        tried: poses to try; None for the usual poses of the model.
        probe_ppi: resolution of the probe, pixels per inch, if it differs from `ppi`; 0 for `ppi`.

    Raises:
        UserError: if an image shows no print, or too small a part of one.
    """
    canvases = np.stack([extractor.on_canvas(reference, ppi), extractor.on_canvas(probe, probe_ppi or ppi)])
    return compare_canvases(extractor, canvases, tried or extractor.usual_poses)


def compare_canvases(extractor: FingerprintExtractor, canvases: np.ndarray, tried: Poses) -> Comparison:
    """Compare two prints of a dataset in several poses, and return the best pose with its similarity and the decisions.

    Args:
        extractor: The model.
        canvases: (2, S, S) uint8, reference and probe, at the resolution and canvas size of the model.
        tried: Poses to try.
    """
    images = torch.from_numpy(canvases).to(extractor.device)
    embeddings = extractor(images, tried).cpu().numpy().reshape(2, len(tried), -1)
    best, i, j = best_agreement(embeddings[0], embeddings[1], extractor.cells)

    def find_pose() -> Pose:
        pose = extractor.pose_of(images[:1], tried, i).inverse().within(extractor.pose_of(images[1:], tried, j))
        return Pose(pose.matrix.cpu(), pose.shift.cpu(), None, pose.crop)

    basis = decision_basis(extractor.notes, len(tried) if tried in (UPRIGHT, extractor.usual_poses) else 0)
    return Comparison(best, canvases, len(tried), decisions(best, basis.thresholds), basis.line, find_pose)


def decisions(value: float, thresholds: dict[str, float]) -> list[tuple[str, str]]:
    """Decide at each threshold whether a similarity is a match.

    Args:
        value: similarity of two prints.
        thresholds: dictionary that maps each FMR to the lowest similarity accepted as a match, for example {"0.001":
            0.41}.

    Returns:
        (name, decision) rows of a table, highest FMR first, such as ("at FMR 0.001", "match (threshold 0.410)").
    """
    rows = []
    for rate, threshold in sorted(thresholds.items(), key=lambda item: -float(item[0])):
        verdict = "match" if value >= threshold else "no match"
        rows.append((f"at FMR {float(rate):.4g}", f"{verdict} (threshold {threshold:.3f})"))
    return rows
