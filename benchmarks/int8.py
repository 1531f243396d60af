"""Measure what 8-bit convolutions (`export --int8`) gain in speed and cost in error rates, in onnxruntime.

python benchmarks/int8.py --data FOLDER --out int8.json

Both files of each model are exported and timed alternately on the same prints, by one thread and by all cores. The
ratio of the medians counts. --fingers 0 measures only speed. FOLDER holds the sets of `benchmarks/real_sets.py`. All
pairs of prints of a set are compared by the masked similarity.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import machine, versions
from real_sets import mean_of_real, read_set, sets_in
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.cli.models import export
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.extraction.example_prints import example_prints
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.text import aligned

FORMATS = ("float32", "int8")
FIRST, IMPRESSIONS = 5000, 3  # first synthetic finger, which no export uses; prints of each finger
BATCH_SIZE = 16
Run = Callable[[np.ndarray], np.ndarray]


def opened(path: Path, threads: int) -> Run:
    """Return the function that embeds canvases with an exported file.

    Args:
        path: ONNX file.
        threads: Threads of onnxruntime; 0 for one per core.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # leaves the cores to the other file
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["embeddings"], {"images": images})[0]


def rates(runs: dict[str, Run], images: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Return prints/s of each round, after one that is not counted. The files take turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run(images)
            if turn:
                found[name].append(len(images) / (time.perf_counter() - started))
    return found


def eer(run: Run, images: np.ndarray, fingers: np.ndarray, impressions: np.ndarray, cells: int) -> float:
    """Return the EER over all pairs of prints, in percent."""
    parts = np.split(images, range(BATCH_SIZE, len(images), BATCH_SIZE))
    templates = np.concatenate([run(part) for part in tqdm(parts, desc="embedding", leave=False)])
    scores = score_protocol("all-pairs", templates, fingers, impressions, cells=cells)
    return 100 * compute_metrics(scores.mated, scores.nonmated).eer


def test_sets(
    extractor: FingerprintExtractor, fingers: int, data: Path | None
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return canvases, fingers and impressions of the synthetic and the real sets."""
    found = {}
    if fingers:
        images = example_prints(extractor.print_info, FIRST, fingers, IMPRESSIONS)
        rows = np.arange(len(images))
        found["synthetic"] = (images, rows // IMPRESSIONS, rows % IMPRESSIONS)
    if data is None:
        return found
    for name, known in sets_in(data).items():
        prints = read_set(data / name)
        canvases = [extractor.on_canvas(image, known.ppi, however_small=True) for image in prints.images()]
        found[name] = (np.stack(canvases), prints.fingers, prints.impressions)
    return found


def main(
    model: tuple[str, ...] = ("small", "base"),
    data: Path | None = None,
    fingers: int = 300,
    rounds: int = 25,
    threads: tuple[int, ...] = (1, 0),
    out: Path | None = None,
) -> None:
    """Print a table and write JSON.

    Args:
        model: Bundled models, runs, checkpoints or exported folders.
        data: Folder with the real sets.
        fingers: Synthetic fingers of the error rates; 0 for none.
        rounds: Timed rounds of each file.
        threads: Numbers of threads of onnxruntime for which speed is measured; 0 for one per core.
        out: JSON file to write.
    """
    check_results(out)
    if rounds < 1 or fingers < 0 or fingers == 1 or not threads or min(threads) < 0:
        raise UserError("--rounds must be at least 1, --fingers 0 or at least 2, --threads 0 or more")
    speeds: list[tuple[str, ...]] = [("model", "file", "MB", "threads", "prints/s", "ratio")]
    rows: list[tuple[str, ...]] = [("model", "file", "set", "EER %")]
    results = []
    for name in model:
        extractor = FingerprintExtractor.from_pretrained(name)
        with tempfile.TemporaryDirectory() as folder:
            paths = {each: Path(folder) / f"{each}.onnx" for each in FORMATS}
            export(name, paths["float32"], paths["int8"])
            sizes = {each: path.stat().st_size / 1e6 for each, path in paths.items()}
            opens = {count: {each: opened(path, count) for each, path in paths.items()} for count in threads}
        prints = example_prints(extractor.print_info, 0, 4, BATCH_SIZE // 4)
        timed = {count: rates(runs, prints, rounds) for count, runs in opens.items()}
        runs = opens[threads[-1]]
        sets = test_sets(extractor, fingers, data)
        for each in FORMATS:
            eers = {title: eer(runs[each], *those, extractor.cells) for title, those in sets.items()}
            real = {title: value for title, value in eers.items() if title != "synthetic"}
            shown = {**eers, **({"mean of the real sets": mean_of_real(real)} if real else {})}
            speed = []
            for count, found in timed.items():
                median = statistics.median(found[each])
                ratio = median / statistics.median(found["float32"])
                speeds.append((name, each, f"{sizes[each]:.1f}", str(count or "all"), f"{median:.1f}", f"{ratio:.2f}"))
                speed.append({"threads": count, "prints_per_second": median, "ratio": ratio, "rounds": found[each]})
            rows += [(name, each, title, f"{value:.2f}") for title, value in shown.items()]
            results.append(
                {"model": name, "file": each, "megabytes": sizes[each], "speed": speed, "eer_percent": shown}
            )
    print(aligned(speeds, words=2))
    if len(rows) > 1:
        print(aligned(rows, words=3))
    if out is not None:
        setting: dict[str, Any] = {
            "machine": machine(torch.device("cpu")),
            "versions": {**versions(), "onnxruntime": version("onnxruntime")},
        }
        write_results(out, {"results": results, "batch_size": BATCH_SIZE, "command": sys.argv, **setting})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
