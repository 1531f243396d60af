"""The lines of docs/extraction.md that put embeddings into other engines."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
COUNT, DIM, FAILED = 40, 16, 3


def documented(engine: str) -> str:
    """The lines that import an engine."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extraction.md").read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if block.startswith(f"import {engine}\n")]
    return lines


@pytest.fixture
def vectors(tmp_path, monkeypatch):
    """(COUNT, DIM) float32 as `extract` leaves them in embeddings/db1 of the current folder; one print failed."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "embeddings" / "db1"
    folder.mkdir(parents=True)
    vectors = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[FAILED] = 0
    finger, impression = np.arange(COUNT, dtype=np.int32), np.ones(COUNT, np.int16)
    tensors = {"embeddings": vectors, "quality": np.ones(COUNT, np.float32), "finger": finger, "impression": impression}
    save_file(tensors, folder / "embeddings.safetensors")
    pq.write_table(pa.table({"source": [f"{row}.png" for row in range(COUNT)]}), folder / "prints.parquet")
    (folder / "failed.jsonl").write_text(json.dumps({"row": FAILED, "source": "", "reason": "blank"}) + "\n")
    (folder / "config.json").write_text(json.dumps({"template": {"kind": "float32", "length": DIM}}))
    return vectors


def nearest(vectors: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The ten rows most similar to one, and their similarities."""
    scores = vectors @ vectors[row]
    scores[FAILED] = -np.inf
    rows = np.argsort(-scores)[:10]
    return rows, scores[rows]


def test_faiss_finds_the_nearest(vectors):
    pytest.importorskip("faiss")
    names: dict = {}
    exec(documented("faiss"), names)
    rows, similarity = nearest(vectors, 0)
    np.testing.assert_array_equal(names["row"][0], rows)
    np.testing.assert_allclose(names["similarity"][0], similarity, atol=1e-5)
    assert names["index"].ntotal == COUNT - 1
    assert Path("gallery.faiss").exists()


def test_lancedb_finds_the_nearest(vectors):
    pytest.importorskip("lancedb")
    names: dict = {}
    exec(documented("lancedb"), names)
    rows, similarity = nearest(vectors, 0)
    assert names["source"] == [f"{row}.png" for row in rows]
    np.testing.assert_allclose(names["similarity"], similarity, atol=1e-5)
    assert names["gallery"].count_rows() == COUNT - 1
