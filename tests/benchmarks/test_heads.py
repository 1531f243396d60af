"""The benchmark of heads counts what processes send."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_bytes_are_those_of_the_collectives(monkeypatch, tmp_path, capsys):
    """Two processes, 32 prints of 64 numbers in all, float32; a ring reduction sends as much as there is to reduce."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    import heads

    size = {"dim": 64, "batch_size": 32, "sampling": 0.1, "steps": 2}
    heads.main(cases=(), traffic_classes=1500, out=tmp_path / "heads.json", **size)
    rows = json.loads((tmp_path / "heads.json").read_text())["results"]
    assert [(row["name"], row["processes"]) for row in rows] == [("data parallel", 2), ("sharded", 2)]
    # gather: 16 embeddings and fingers; reduce: largest logits, three sums per print, gradients of all embeddings
    sharded = {"all_gather": 16 * 64 * 4 + 16 * 8, "all_reduce": 32 * 4 + 3 * 32 * 4 + 32 * 64 * 4}
    assert rows[1]["sent_by_collective"] == sharded
    assert rows[0]["sent_by_collective"] == {"all_reduce": 1500 * 64 * 4}
    assert rows[0]["over_loopback_per_process"] == pytest.approx(1500 * 64 * 4, rel=0.2)
    assert all(row["peak_memory_mb"] > 100 and row["core_seconds"] > 0 for row in rows)
    assert "data parallel" in capsys.readouterr().out
