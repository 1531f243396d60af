"""How alike embeddings are: cosines, the best over poses where prints were embedded in several.

A leaf module: it imports numpy only, so that everything may use it.
"""

from __future__ import annotations

import numpy as np

OVERLAP_FLOOR = 0.1  # share of a dense template that an overlap counts as at least: few cells look alike by chance
_GATHERED_BYTES = 2**27  # of embeddings that are gathered for listed pairs at a time


def similarity(reference: np.ndarray, probe: np.ndarray) -> np.ndarray:
    """Best cosine of one print as it is with the other in any pose, tried both ways around.

    Args:
        reference: (N, P, D) float32 of unit length, the print as it is first; (N, D) is one pose.
        probe: (M, P, D) or (M, D).

    Returns:
        (N, M) float32.
    """
    reference, probe = _with_poses(reference), _with_poses(probe)
    best = reference[:, 0] @ probe[:, 0].T
    for pose in range(1, probe.shape[1]):
        np.maximum(best, reference[:, 0] @ probe[:, pose].T, out=best)
    for pose in range(1, reference.shape[1]):
        np.maximum(best, reference[:, pose] @ probe[:, 0].T, out=best)
    return best


def pair_similarity(reference: np.ndarray, probe: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """`similarity` of listed pairs only.

    Args:
        reference, probe: as of `similarity`.
        pairs: (n, 2) rows of the two.

    Returns:
        (n,) float32.
    """
    reference, probe = _with_poses(reference), _with_poses(probe)
    scores = np.empty(len(pairs), np.float32)
    step = max(1, _GATHERED_BYTES // (4 * reference.shape[2] * max(reference.shape[1], probe.shape[1])))
    for start in range(0, len(pairs), step):
        first, second = pairs[start : start + step].T
        found = np.einsum("nd,npd->np", reference[first, 0], probe[second]).max(axis=1)
        if reference.shape[1] > 1:
            turned = np.einsum("npd,nd->np", reference[first, 1:], probe[second, 0]).max(axis=1)
            np.maximum(found, turned, out=found)
        scores[start : start + step] = found
    return scores


def _with_poses(prints: np.ndarray) -> np.ndarray:
    return prints[:, None] if prints.ndim == 2 else prints
