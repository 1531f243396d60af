"""Quick search in PostgreSQL: the signs of the numbers of a template select candidates, which are compared exactly.

The signs of two vectors differ with a probability that is their angle divided by pi (Charikar 2002, STOC). The index is
a copy of the signs, 64 bytes of a template of 512 numbers. A search reads it completely, ten times faster than all
templates. A graph index (HNSW) reads less, but misses more mates: see docs/search_engine.md.
"""

from __future__ import annotations

import numpy as np

from fingerprint_accel.extraction.engine import Engine
from fingerprint_accel.extraction.engine_queries import Among
from fingerprint_accel.extraction.engine_table import build_index
from fingerprint_accel.extraction.gallery_search import Hits


class EngineIndex:
    """Search a gallery in PostgreSQL by its index of signs; the constructor builds the index if it is missing.

    Args:
        gallery: gallery to search.

    Attributes:
        added: number of prints in the index if the constructor built it, else 0; PostgreSQL keeps it up to date.

    Raises:
        UserError: if the index is missing and the user does not own the tables.
    """

    def __init__(self, gallery: Engine) -> None:
        self.gallery = gallery
        self.added = len(gallery) if build_index(gallery.connection, gallery.place) else 0

    def search(self, probes: np.ndarray, k: int = 10, among: Among | None = None) -> Hits:
        """Find the k most similar prints among the candidates that the signs select; see `Engine.search`.

        For k = 10, 1,000 candidates are compared exactly, so the returned similarities are exact. A mate is missed if
        it is not among the candidates.
        """
        return self.gallery.search(probes, k, among=among, indexed=True)
