"""The vectors of `benchmarks/engine_references.py`."""

import numpy as np
import pytest
from engine_references import mates, record, references

from fingerprint_accel.extraction.bulk_enrolment import BATCH


@pytest.mark.parametrize("cells", [0, 64])
def test_a_mate_has_the_stated_cosine_and_the_same_cells(cells):
    rows = np.array([3, BATCH + 5])
    fingers = np.stack([references(row - row % BATCH, BATCH + 10, cells)[row % BATCH] for row in rows])
    probes = mates(rows, BATCH + 10, 0.6, cells)
    np.testing.assert_allclose((fingers * probes).sum(axis=1), 0.6, atol=1e-6)
    assert ((fingers == 0) == (probes == 0)).all()
    assert bool((fingers == 0).any()) == bool(cells)
    assert record(23) == ("scans/0000000023.png", "person 000000002", 4, "", 0, 0.5)
