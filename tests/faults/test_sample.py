"""A few trials of each fault, as `python -m tests.faults --sample` runs them: nothing is lost, nothing is silent."""

import os
from pathlib import Path

import pytest
import starting

from tests.faults.__main__ import PARTS
from tests.faults.results import Records

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["-m", "tests.faults", "--sample", "--out", folder]
    result = starting.run(words, environment=environment, cwd=ROOT, timeout=500)
    assert result.returncode in (0, 1), result.stderr[-3000:]
    return Records(folder).rows


@pytest.mark.parametrize("part", [part for part in PARTS if part != "clusters"])  # only in long runs
def test_nothing_is_lost_or_silent(part, outcomes):
    rows = [row for row in outcomes if row["trial"]["part"] == part]
    failures = [f"{row['key']}: {detail}" for row in rows for detail in row["details"]]
    assert not failures, "\n".join(failures)
    assert sum(sum(row["counts"].values()) for row in rows) >= len(rows) > 0
