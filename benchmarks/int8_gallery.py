"""Measure error rates with int8 references, as int8 galleries store them, and float32 probes.

python benchmarks/int8_gallery.py --data FOLDER --dataset datasets/judged --out int8_gallery.json

FOLDER holds the sets of `benchmarks/real_sets.py`. All pairs of prints are compared; the first of a pair is the
reference. The searches are those of `evaluate`: the first impressions of all fingers (rank-1) or of half of them (FNIR)
are enrolled.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import machine, versions
from real_sets import read_set, sets_in
from results_file import check_results, write_results

from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.int8_templates import dequantise, quantise
from fingerprint_accel.metrics.identification import first_enrolled, half_enrolled, search
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.similarity import similarity
from fingerprint_accel.text import aligned

FPIR = 0.1  # the real sets have too few searches for 1 %
MOST = 3000  # prints of a dataset whose pairs are all compared


def rates(embeddings: np.ndarray, fingers: np.ndarray, impressions: np.ndarray, cells: int) -> dict[str, Any]:
    """Return EER, rank-1 rate and FNIR with float32 and with int8 references, and the changes of similarities.

    Args:
        embeddings: (N, D) float32 of unit length.
        fingers, impressions: (N,) finger and impression of each print.
        cells: number of grid cells of a dense template, 0 for other templates.
    """
    stored = dequantise(*quantise(embeddings))
    first, second = np.triu_indices(min(len(fingers), MOST), 1)
    mated = fingers[first] == fingers[second]
    found: dict[str, Any] = {}
    scores = {}
    for name, references in (("float32", embeddings), ("int8", stored)):
        scores[name] = similarity(references[:MOST], embeddings[:MOST], cells)[first, second]
        closed, half = first_enrolled(fingers, impressions), half_enrolled(fingers, impressions)
        vectors = embeddings.copy()
        vectors[closed[0]] = references[closed[0]]
        fnir = search(vectors, fingers, [half], cells=cells).fnir(FPIR)
        found[name] = {
            "eer": compute_metrics(scores[name][mated], scores[name][~mated]).eer,
            "rank_1": search(vectors, fingers, [closed], cells=cells).identified(1),
            "fnir": None if fnir is None else fnir[0],
        }
    change = np.abs(scores["int8"] - scores["float32"])
    return found | {"mean_change": float(change.mean()), "largest_change": float(change.max())}


@torch.inference_mode()
def of_files(extractor: FingerprintExtractor, images: list[np.ndarray], ppi: int) -> np.ndarray:
    """Embed images, (N, D) float32; small prints are accepted."""
    canvases = np.stack([extractor.on_canvas(image, ppi, however_small=True) for image in images])
    some = [extractor(part.to(extractor.device)).cpu() for part in torch.from_numpy(canvases).split(32)]
    return torch.cat(some).numpy()


def main(data: Path, dataset: tuple[Path, ...] = (), model: Path = Path("small"), out: Path | None = None) -> None:
    """Print a table, and write JSON.

    Args:
        data: Folder with the sets of real prints.
        dataset: Dataset folders.
        model: Model that embeds the prints.
        out: JSON file to write.
    """
    check_results(out)
    extractor = open_extractor(model)
    found: dict[str, dict[str, Any]] = {}
    for name, known in sets_in(data).items():
        prints = read_set(data / name)
        embeddings = of_files(extractor, prints.images(), known.ppi)
        found[known.title] = rates(embeddings, prints.fingers, prints.impressions, extractor.cells)
    for folder in dataset:
        shards = open_dataset(folder)
        embeddings = extractor.extract(shards)
        found[folder.name] = rates(embeddings, shards.fingers, np.asarray(shards.impressions), extractor.cells)
    print(table(found))
    if out:
        about = {"command": sys.argv, "machine": machine(torch.device("cpu")), "versions": versions()}
        write_results(out, {"fpir": FPIR, "sets": found, **about})


def table(found: dict[str, dict[str, Any]]) -> str:
    """Format rates in percent, float32 and int8 side by side, and the changes of similarities."""
    rates_of = ("eer", "rank_1", "fnir")
    rows = [("set", *(f"{rate} {kind}" for rate in rates_of for kind in ("float32", "int8")), "mean change", "largest")]
    for name, row in found.items():
        values = [row[kind][rate] for rate in rates_of for kind in ("float32", "int8")]
        shown = ["-" if value is None else f"{100 * value:.2f}" for value in values]
        rows.append((name, *shown, f"{row['mean_change']:.4f}", f"{row['largest_change']:.4f}"))
    return aligned(rows, words=1)


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
