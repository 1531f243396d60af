"""Two prints, one number, and what the number means."""

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
    """Two prints as they compared best.

    Attributes:
        similarity: of their embeddings, -1 to 1.
        canvases: (2, S, S) uint8, reference and probe as the network was given them.
        pose: lays the probe on the reference.
        tried: how many poses.
        verdicts: for each false match rate of the model, what the similarity says, see `decisions`.
        basis: what the verdicts rest on, or why there are none.
    """

    similarity: float
    canvases: np.ndarray
    pose: Pose
    tried: int
    verdicts: list[tuple[str, str]]
    basis: str

    def rows(self) -> list[tuple[str, str]]:
        """What to print, as names and texts."""
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
    """Compares two prints in every pose that is `tried`, and keeps the best one.

    Arguments and errors are those of `FingerprintExtractor.compare`; `probe_ppi` is that of the probe, 0 for `ppi`.
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
    pose = extractor.pose_of(images[:1], tried, i).inverse().within(extractor.pose_of(images[1:], tried, j))
    basis = decision_basis(extractor.notes, len(tried) if tried in (UPRIGHT, extractor.usual_poses) else 0)
    pose = Pose(pose.matrix.cpu(), pose.shift.cpu(), None, pose.crop)
    return Comparison(best, canvases, pose, len(tried), decisions(best, basis.thresholds), basis.line)


def decisions(value: float, thresholds: dict[str, float]) -> list[tuple[str, str]]:
    """Rows to print: for each false match rate of `thresholds` ("0.001": 0.41) whether a similarity reaches it."""
    rows = []
    for rate, threshold in sorted(thresholds.items(), key=lambda item: -float(item[0])):
        verdict = "match" if value >= threshold else "no match"
        rows.append((f"at FMR {float(rate):.4g}", f"{verdict} (threshold {threshold:.3f})"))
    return rows
