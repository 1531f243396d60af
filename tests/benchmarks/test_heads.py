"""The benchmark of heads counts what processes send."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import starting

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DIM, BATCH, CLASSES = 64, 32, 1500  # 32 prints of 64 numbers of both processes, float32
# gather: 16 embeddings and fingers; reduce: largest logits, three sums per print, gradients of all embeddings
SHARDED = {"all_gather": 16 * DIM * 4 + 16 * 8, "all_reduce": BATCH * 4 + 3 * BATCH * 4 + BATCH * DIM * 4}


@pytest.fixture
def heads(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    import heads

    return heads


def test_data_parallel_sends_every_gradient(heads, tmp_path, capsys):
    """A ring reduction sends from each of two as much as there is to reduce; on a loopback that nobody else uses."""
    size = {"dim": DIM, "batch_size": BATCH, "steps": 2}
    heads.main(cases=("data parallel",), classes=CLASSES, traffic_classes=0, out=tmp_path / "heads.json", **size)
    (row,) = json.loads((tmp_path / "heads.json").read_text())["results"]
    assert (row["name"], row["processes"], row.get("failed")) == ("data parallel", 2, None)
    assert row["sent_by_collective"] == {"all_reduce": CLASSES * DIM * 4}
    assert row["over_loopback_per_process"] == pytest.approx(CLASSES * DIM * 4, rel=0.2)
    assert row["peak_memory_mb"] > 100 and row["core_seconds"] > 0
    assert "data parallel" in capsys.readouterr().out


def test_bytes_of_a_sharded_head_are_those_of_its_collectives(heads):
    case = heads.Case("sharded", CLASSES, DIM, BATCH, 0.1, "adamw", 2, 2)
    words = [BENCHMARKS / "heads.py", "--case", json.dumps(asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    result = starting.run(words, processes=2, environment=environment)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert row["sent_by_collective"] == SHARDED
    assert row["peak_memory_mb"] > 100 and row["core_seconds"] > 0
