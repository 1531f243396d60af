"""Comparison of two prints: similarity, best pose, and decisions at the thresholds of the model."""

from __future__ import annotations

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
        similarity: similarity of the embeddings in the best pose, -1 to 1.
        canvases: (2, S, S) uint8, reference and probe on their canvases, ridges dark.
        pose: pose that resamples the probe canvas so that it overlays the reference canvas.
        tried: number of poses in which each print was embedded.
        verdicts: name and decision for each FMR of the model, see `decisions`.
        basis: source of the thresholds, or the reason why there are no decisions.
    """

    similarity: float
    canvases: np.ndarray
    pose: Pose
    tried: int
    verdicts: list[tuple[str, str]]
    basis: str

    def rows(self) -> list[tuple[str, str]]:
        """Return the similarity and the decisions as (name, text) rows to print."""
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
    """Compare two prints in several poses, and return the best pose with its similarity and the decisions.

    Args:
        extractor: the model.
        reference: image file, PIL image, or uint8 array (H, W) or (H, W, 3), ridges dark.
        probe: image to compare with the reference, likewise.
        ppi: resolution of the images, pixels per inch.
        tried: poses to try; None for the usual poses of the model.
        probe_ppi: resolution of the probe, pixels per inch; 0 for `ppi`.

    Raises:
        UserError: if an image shows no print, or too small a part of one.
    """
    tried = tried or extractor.usual_poses
    canvases = np.stack([extractor.on_canvas(reference, ppi), extractor.on_canvas(probe, probe_ppi or ppi)])
    images = torch.from_numpy(canvases).to(extractor.device)
    embeddings = extractor(images, tried).cpu().numpy().reshape(2, len(tried), -1)
    best, i, j = best_agreement(embeddings[0], embeddings[1], extractor.cells)
    pose = extractor.pose_of(images[:1], tried, i).inverse().within(extractor.pose_of(images[1:], tried, j))
    basis = decision_basis(extractor.notes, len(tried) if tried in (UPRIGHT, extractor.usual_poses) else 0)
    pose = Pose(pose.matrix.cpu(), pose.shift.cpu(), None, pose.crop)
    return Comparison(best, canvases, pose, len(tried), decisions(best, basis.thresholds), basis.line)


def decisions(value: float, thresholds: dict[str, float]) -> list[tuple[str, str]]:
    """Decide at each threshold whether a similarity is a match.

    Args:
        value: the similarity.
        thresholds: lowest similarity that counts as a match, by FMR, for example {"0.001": 0.41}.

    Returns:
        (name, decision) rows to print, highest FMR first.
    """
    rows = []
    for rate, threshold in sorted(thresholds.items(), key=lambda item: -float(item[0])):
        verdict = "match" if value >= threshold else "no match"
        rows.append((f"at FMR {float(rate):.4g}", f"{verdict} (threshold {threshold:.3f})"))
    return rows
