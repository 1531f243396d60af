"""References and probes of the benchmarks of databases.

References are unit vectors in random directions, the hardest case for an index: only the mate is closer to the probe
than chance. With 64 cells they are dense templates that show 60 % of their cells.
"""

from __future__ import annotations

import numpy as np

from fingerprint_accel.extraction.bulk_enrolment import BATCH
from fingerprint_accel.extraction.gallery_parts import Known

DIMS, FINGERS = 512, 10


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def references(start: int, count: int, cells: int) -> np.ndarray:
    """Return the references (n, DIMS) float32 from row `start` on, a multiple of BATCH; at most BATCH of them."""
    generator = np.random.default_rng([0, start])
    vectors = generator.standard_normal((min(BATCH, count - start), DIMS), np.float32)
    if cells:
        vectors.reshape(len(vectors), cells, -1)[generator.random((len(vectors), cells), np.float32) < 0.4] = 0
    return unit(vectors)


def record(row: int) -> Known:
    """Return the record of a reference: ten fingers per person, one impression each."""
    return Known(f"scans/{row:010d}.png", f"person {row // FINGERS:09d}", row % FINGERS + 1, "", 0, 0.5)


def mates(rows: np.ndarray, count: int, likeness: float, cells: int) -> np.ndarray:
    """Return probes (n, DIMS) whose cosine with the references of `rows` is `likeness`."""
    found = []
    for row in rows.tolist():
        start = row - row % BATCH
        finger = references(start, count, cells)[row - start]
        noise = np.random.default_rng([1, row]).standard_normal(DIMS).astype(np.float32) * (finger != 0)
        noise -= (noise @ finger) * finger
        found.append(likeness * finger + np.sqrt(1 - likeness**2) * noise / np.linalg.norm(noise))
    return unit(np.stack(found)).astype(np.float32)
