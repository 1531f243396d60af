"""Compare our exact search, FAISS and LanceDB: build time, disk, memory, latency and recall.

pip install faiss-cpu lancedb
python benchmarks/search_engines.py --out search_engines.json

References are unit vectors, one for each finger. Probes are further impressions of some of these fingers. The cosine of
a probe and its mate, the first impression of the finger, is --likeness. Recall@10 is the share of the ten most similar
references that an engine finds. `mate first` is the share of probes whose best hit is the mate. Each engine builds in
one process and searches in another. The memory of a process is the largest growth of its resident set during the work,
with imports of the engine and pages of mapped files. Fingers lie in random directions, the hardest case for an index:
only the mate is closer to the probe than chance.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import machine, usable_cores, versions
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel.errors import UserError, one_line_errors, require
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.text import aligned

TOP = 10
AT_ONCE = 50_000  # references that are made or added together
REFERENCES, PROBES = "references.f32", "probes.npy"
Search = Callable[[np.ndarray], np.ndarray]  # probe (D,) -> (TOP,) rows


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass(frozen=True)
class References:
    """Vectors (count, dim) float32 in a file, read in parts so that only the engine needs memory."""

    path: Path
    count: int
    dim: int

    def first(self, count: int, start: int = 0) -> np.ndarray:
        """Read at most `count` vectors (n, dim) from `start` on."""
        count = min(count, self.count - start)
        values = np.fromfile(self.path, np.float32, count * self.dim, offset=4 * start * self.dim)
        return values.reshape(count, self.dim)

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the vectors in parts, each with the index of its first row."""
        for start in range(0, self.count, AT_ONCE):
            yield start, self.first(AT_ONCE, start)


def make_prints(folder: Path, references: int, impressions: int, probes: int, dim: int, likeness: float) -> None:
    """Write the vectors `REFERENCES`, finger after finger, and `PROBES`, of fingers spread over all, (N, D) float32."""
    generator = np.random.default_rng(0)
    noise = np.sqrt(1 / likeness - 1)  # unit vectors along c + noise * n have this cosine

    def impression(fingers: np.ndarray) -> np.ndarray:
        other = unit(generator.standard_normal(fingers.shape, np.float32))
        return unit(fingers + np.float32(noise) * other)

    asked, step, whole = [], max(1, references // probes), AT_ONCE - AT_ONCE % impressions
    with (folder / REFERENCES).open("wb") as file:
        for start in range(0, references, whole):
            stop = min(references, start + whole)
            centres = unit(generator.standard_normal((-(-(stop - start) // impressions), dim), np.float32))
            impression(np.repeat(centres, impressions, axis=0)[: stop - start]).tofile(file)
            rows = np.arange(-(-start // step) * step, stop, step)
            asked.append(impression(centres[(rows - start) // impressions]))
    np.save(folder / PROBES, np.concatenate(asked)[:probes])


def build_ours(references: References, folder: Path) -> None:
    """Build a gallery of this package."""
    gallery = Gallery.create(folder, references.dim, "random directions")
    for start, part in references.parts():
        gallery.append(part, [str(start + i) for i in range(len(part))])


def build_indexed(references: References, folder: Path) -> None:
    """Build a gallery with the index of `search --index`."""
    build_ours(references, folder)
    ApproximateSearch(Gallery(folder))


def search_ours(folder: Path) -> Search:
    """Open a gallery for exact search."""
    gallery = Gallery(folder)
    return lambda probe: gallery.search(probe[None], TOP).row[0]


def search_indexed(folder: Path) -> Search:
    """Open a gallery for search by index, with exact comparison of candidates."""
    search = ApproximateSearch(Gallery(folder))
    return lambda probe: search.search(probe[None], TOP).row[0]


def build_faiss(references: References, folder: Path, recipe: str) -> None:
    """Build a FAISS index by its factory string, as one file."""
    import faiss

    folder.mkdir()
    index = faiss.index_factory(references.dim, recipe, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(references.first(65_536))
    for _, part in references.parts():
        index.add(part)
    faiss.write_index(index, str(folder / "index.faiss"))


def search_faiss(folder: Path, nprobe: int) -> Search:
    """Open a FAISS index in memory."""
    import faiss

    index: Any = faiss.read_index(str(folder / "index.faiss"))
    if nprobe:
        index.nprobe = nprobe
    return lambda probe: index.search(probe[None], TOP)[1][0]


def build_lancedb(references: References, folder: Path, cells: int) -> None:
    """Build a table of `row` and `embedding`, with an IVF_PQ index of `cells` cells; 0 for none."""
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfPq

    def batches() -> Any:
        for start, part in references.parts():
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), references.dim)
            rows = pa.array(np.arange(start, start + len(part)))
            yield pa.record_batch([rows, vectors], names=["row", "embedding"])

    schema = pa.schema([("row", pa.int64()), ("embedding", pa.list_(pa.float32(), references.dim))])
    table = lancedb.connect(folder).create_table("gallery", batches(), schema=schema)
    if cells:
        config = IvfPq(distance_type="dot", num_partitions=cells, num_sub_vectors=references.dim // 8)
        table.create_index("embedding", config=config)


def search_lancedb(folder: Path, nprobe: int) -> Search:
    """Open a table on disk. With an index, 20 times as many candidates are compared exactly."""
    import lancedb

    table = lancedb.connect(folder).open_table("gallery")

    def search(probe: np.ndarray) -> np.ndarray:
        query = table.search(probe, "embedding").distance_type("dot").limit(TOP).select(["row", "_distance"])
        if nprobe:
            query = query.nprobes(nprobe).refine_factor(20)
        return query.to_arrow()["row"].to_numpy()

    return search


def engines(references: int, nprobe: int) -> dict[str, tuple[Callable[..., None], tuple, Callable[..., Search], tuple]]:
    """Return the functions that build and open each engine by name, each with its further arguments."""
    cells = max(1, min(1024, references // 64))
    return {
        "ours, exact": (build_ours, (), search_ours, ()),
        "ours, --index": (build_indexed, (), search_indexed, ()),
        "FAISS Flat, exact": (build_faiss, ("Flat",), search_faiss, (0,)),
        f"FAISS IVF{cells},Flat": (build_faiss, (f"IVF{cells},Flat",), search_faiss, (nprobe,)),
        f"FAISS IVF{cells},SQ8": (build_faiss, (f"IVF{cells},SQ8",), search_faiss, (nprobe,)),
        "LanceDB, exact": (build_lancedb, (0,), search_lancedb, (0,)),
        f"LanceDB IVF{cells},PQ": (build_lancedb, (cells,), search_lancedb, (nprobe,)),
    }


def resident(what: str) -> float:
    """Return MB of the process: "VmRSS" at present, "VmHWM" at most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1e3


def forget_peak() -> float:
    """Reset the peak of the resident memory, and return the present value in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def timed_build(references: References, build: Callable[..., None], folder: Path, arguments: tuple) -> dict[str, float]:
    """Return seconds and memory to build, and bytes on disk."""
    before, started = forget_peak(), time.perf_counter()
    build(references, folder, *arguments)
    seconds = time.perf_counter() - started
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"build_seconds": seconds, "build_memory_mb": resident("VmHWM") - before, "disk_mb": disk / 1e6}


def timed_search(data: Path, opened: Callable[..., Search], folder: Path, arguments: tuple) -> dict[str, Any]:
    """Return the rows found, the median latency of one probe, and memory."""
    before = forget_peak()
    search, probes = opened(folder, *arguments), np.load(data / PROBES)
    for probe in probes[:3]:
        search(probe)
    found, times = [], []
    for probe in probes:
        started = time.perf_counter()
        found.append(search(probe).tolist())
        times.append(time.perf_counter() - started)
    wait = 1000 * statistics.median(times)
    return {"found": found, "milliseconds": wait, "search_memory_mb": resident("VmHWM") - before}


def alone(function: Callable[..., dict], *arguments: Any) -> dict[str, Any]:
    """Run a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main(
    references: int = 1_000_000,
    impressions: int = 1,
    probes: int = 100,
    dim: int = 512,
    likeness: float = 0.7,
    nprobe: int = 256,
    out: Path | None = None,
) -> None:
    """Print a table and write JSON.

    Args:
        references: Vectors in the gallery.
        impressions: Impressions of each finger in the gallery.
        probes: Probes, searched one after the other.
        dim: Length of an embedding, a multiple of 8.
        likeness: Cosine of two impressions of a finger.
        nprobe: Cells that an index searches.
        out: JSON file to write.
    """
    check_results(out)
    for package, name in (("faiss", "faiss-cpu"), ("lancedb", "lancedb")):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install {name}")
    require(references >= 1000 and probes >= 1 and dim % 8 == 0, "--references 1000 or more, --dim a multiple of 8")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        data = Path(place)
        make_prints(data, references, impressions, probes, dim, likeness)
        for name, (build, built, opened, asked) in tqdm(engines(references, nprobe).items(), unit="engine"):
            folder = data / "engine"
            results[name] = alone(timed_build, References(data / REFERENCES, references, dim), build, folder, built)
            results[name] |= alone(timed_search, data, opened, folder, asked)
            shutil.rmtree(folder)
    truth = next(iter(results.values()))["found"]
    fingers = np.arange(0, references, max(1, references // probes))[:probes] // impressions
    titles = ("engine", "build s", "build MB", "disk MB", "search MB", "ms a probe", "recall@10", "mate first")
    rows: list[tuple[str, ...]] = [titles]
    for name, row in results.items():
        found = row.pop("found")
        row["recall_at_10"] = float(np.mean([len({*a} & {*b}) / TOP for a, b in zip(found, truth, strict=True)]))
        row["mate_first"] = float(np.mean([a[0] // impressions == b for a, b in zip(found, fingers, strict=True)]))
        numbers = [f"{value:,.0f}" for value in list(row.values())[:3]]
        wait, memory = row["milliseconds"], row["search_memory_mb"]
        rows.append(
            (name, *numbers, f"{memory:,.0f}", f"{wait:.1f}", f"{row['recall_at_10']:.1%}", f"{row['mate_first']:.0%}")
        )
    print(aligned(rows, words=1))
    if out is not None:
        packages = {name: version(name) for name in ("faiss-cpu", "lancedb")}
        setting = {"machine": machine(torch.device("cpu")), "cores": usable_cores(), "versions": versions() | packages}
        asked = {"references": references, "impressions": impressions, "probes": probes, "dim": dim}
        facts = {**asked, "likeness": likeness, "nprobe": nprobe, "command": sys.argv}
        write_results(out, {"results": results, **facts, **setting})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
