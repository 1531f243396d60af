"""Measure int8 templates in PostgreSQL, which the package does not use: signs select candidates, int8 rescores them."""

from __future__ import annotations

import statistics
import struct
import time
from typing import Any

import numpy as np
from engine_references import DIMS, mates, references
from tqdm import tqdm

from fingerprint_accel.extraction.bulk_enrolment import BATCH
from fingerprint_accel.extraction.engine_connection import connect
from fingerprint_accel.extraction.engine_rows import COPY_END, COPY_HEADER, as_half, bit_text
from fingerprint_accel.extraction.int8_templates import dequantise, quantise

TABLE = """
DROP TABLE IF EXISTS prints_int8;
CREATE TABLE prints_int8 (id bigint NOT NULL, position smallint NOT NULL, scale real NOT NULL,
    signs bit({dims}) NOT NULL, template bytea NOT NULL);
ALTER TABLE prints_int8 ALTER template SET STORAGE PLAIN
"""
CANDIDATES = 1000


def measure_int8(url: str, count: int, likeness: float, quick: int) -> dict[str, Any]:
    """Load `count` references of the benchmark with int8 templates; return disk, latency, recall@1 and score errors."""
    rows = np.random.default_rng(2).choice(count, quick, replace=False)
    probes = mates(rows, count, likeness, 0)
    with connect(url) as connection:
        connection.execute(TABLE.format(dims=DIMS))
        for start in tqdm(range(0, count, BATCH), desc="int8", unit="batch", mininterval=5):
            vectors = references(start, count, 0)
            values, scale = quantise(vectors)
            signs = np.packbits(vectors > 0, axis=1)
            with (
                connection.transaction(),
                connection.cursor().copy("COPY prints_int8 FROM STDIN (FORMAT BINARY)") as copy,
            ):
                copy.write(COPY_HEADER)
                for row in range(len(vectors)):
                    copy.write(
                        struct.pack(
                            ">hiqihifii", 5, 8, start + row, 2, row % 10 + 1, 4, scale[row], 4 + DIMS // 8, DIMS
                        )
                        + signs[row].tobytes()
                        + struct.pack(">i", DIMS)
                        + values[row].tobytes()
                    )
                copy.write(COPY_END)
        connection.execute("CREATE INDEX ON prints_int8 (id)")
        connection.execute("CREATE INDEX prints_int8_signs ON prints_int8 (position) INCLUDE (id, signs)")
        connection.execute("VACUUM (ANALYZE) prints_int8")
        nearest = f"SELECT id FROM prints_int8 ORDER BY signs <~> %s::bit({DIMS}) LIMIT {CANDIDATES}"
        query = f"SELECT p.id, p.scale, p.template FROM ({nearest}) found JOIN prints_int8 p USING (id)"
        times, found, errors, of_half = [], 0, [], []
        for row, probe in zip(rows.tolist(), probes, strict=True):
            started = time.perf_counter()
            got = connection.execute(query, (bit_text(probe > 0),), binary=True).fetchall()
            ids = np.array([each[0] for each in got])
            values = np.frombuffer(b"".join(each[2] for each in got), np.int8).reshape(len(got), DIMS)
            scores = dequantise(values, np.array([each[1] for each in got], np.float32)) @ probe
            times.append(time.perf_counter() - started)
            found += ids[scores.argmax()] == row
            finger = references(row - row % BATCH, count, 0)[row % BATCH]
            errors.append(abs(float(scores.max()) - float(finger @ probe)))
            of_half.append(abs(float(as_half(finger[None])[0].astype(np.float32) @ probe) - float(finger @ probe)))
        size = connection.execute(
            "SELECT pg_relation_size('prints_int8'), pg_relation_size('prints_int8_signs')"
        ).fetchone()
        connection.execute("DROP TABLE prints_int8")
    assert size is not None, "a query of sizes has one row"
    return {
        "references": count,
        "table_bytes_per_print": size[0] / count,
        "signs_bytes_per_print": size[1] / count,
        "milliseconds": 1000 * statistics.median(times),
        "recall_at_1": found / quick,
        "median_error_of_a_mated_score_int8": statistics.median(errors),
        "median_error_of_a_mated_score_float16": statistics.median(of_half),
    }
