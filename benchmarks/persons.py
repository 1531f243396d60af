"""Measure the identification of persons by 1, 2, 4 and 10 fingers, with float32 and int8 references.

python benchmarks/persons.py --quality poor --partial 1 --out persons.json
python benchmarks/persons.py --dataset datasets/cards --model runs/mine

Without --dataset, synthetic persons of ten fingers are made. The first impression of a finger is its reference, each
other impression belongs to one probe set of the person. The second table compares fusions, with all references and
with 30 % of the references removed at random. Its open-set rates are means over 20 choices of the enrolled half.
Fingers, qualities and contact areas of a synthetic person are independent of each other. The prints of a real person
are of similar quality, so more fingers help less than here.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import machine, versions
from results_file import check_results, write_results

from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.evaluation.persons import FINGERS, prints_of_persons
from fingerprint_accel.extraction.extractor import open_extractor
from fingerprint_accel.extraction.int8_templates import dequantise, quantise
from fingerprint_accel.metrics.fusion import fused_score
from fingerprint_accel.metrics.persons import PREFERRED, PersonPrints, search_persons
from fingerprint_accel.similarity import similarity
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.writing import write_synthetic_dataset
from fingerprint_accel.text import aligned

FPIR = 0.01
MISSING = 0.3  # share of the references that are removed to compare fusions
CHOICES = 20  # random choices of the enrolled half of the persons
FUSIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum / sqrt(n)": fused_score,
    "mean": lambda scores: np.nanmean(scores, axis=-1),
    "sum": lambda scores: np.nansum(scores, axis=-1),
    "max": lambda scores: np.nanmax(scores, axis=-1),
}


def identification(embeddings: np.ndarray, prints: PersonPrints, cells: int) -> dict[str, dict[str, Any]]:
    """Return the rates by template and number of fingers.

    Args:
        embeddings: (N, D) float32 of unit length.
        prints: persons, positions and impressions of the N prints.
        cells: number of grid cells of a dense template, 0 for other templates.
    """
    stored = embeddings.copy()
    references = prints.ordinals() == 0
    stored[references] = dequantise(*quantise(embeddings[references]))
    found: dict[str, dict[str, Any]] = {}
    for template, vectors in (("float32", embeddings), ("int8", stored)):
        for fingers in FINGERS:
            searches = search_persons(vectors, prints, fingers, cells=cells)
            fnir = searches.open.fnir(FPIR)
            rates = {"rank_1": searches.closed.identified(1), "rank_10": searches.closed.identified(10)}
            found[f"{template}, {fingers} fingers"] = rates | {"fnir": None if fnir is None else fnir[0]}
    return found


def all_scores(embeddings: np.ndarray, prints: PersonPrints, cells: int) -> np.ndarray:
    """Return the similarities (sets, persons, persons, fingers) of probe sets and references; NaN if not compared.

    Fingers are in the order `PREFERRED`.
    """
    ordinals, count = prints.ordinals(), int(prints.persons.max()) + 1
    found = np.full((int(ordinals.max()), count, count, len(PREFERRED)), np.nan, np.float32)
    for place, position in enumerate(PREFERRED):
        here = prints.positions == position
        references = np.flatnonzero(here & (ordinals == 0))
        for ordinal in range(1, len(found) + 1):
            probes = np.flatnonzero(here & (ordinals == ordinal))
            scores = similarity(embeddings[probes], embeddings[references], cells)
            found[ordinal - 1, prints.persons[probes][:, None], prints.persons[references], place] = scores
    return found


def rates_of_fusion(fused: np.ndarray) -> tuple[float, float]:
    """Return the rank-1 identification rate, and the mean FNIR at `FPIR`, of fused scores (sets, persons, persons)."""
    count = fused.shape[1]
    diagonal = np.arange(count)
    fused = np.where(np.isnan(fused), -np.inf, fused)
    own, others = fused[:, diagonal, diagonal], fused.copy()
    others[:, diagonal, diagonal] = -np.inf
    fnir = []
    for seed in range(CHOICES):
        enrolled = np.random.default_rng(seed).permutation(count) < count // 2
        nonmated = np.sort(others[:, ~enrolled][:, :, enrolled].max(axis=2).ravel())[::-1]
        fnir.append(float((own[:, enrolled] <= nonmated[int(FPIR * len(nonmated))]).mean()))
    return float((own > others.max(axis=2)).mean()), float(np.mean(fnir))


def fusions(scores: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return the rates of every fusion with 2, 4 and 10 fingers, with all references and without some of them."""
    draws = np.random.default_rng(0).random(scores.shape[2:])
    draws[:, 0] = 1  # every person has a right index finger
    removed = np.where(draws < MISSING, np.nan, scores)
    found: dict[str, dict[str, Any]] = {}
    for fingers in FINGERS[1:]:
        for name, fuse in FUSIONS.items():
            rates: dict[str, Any] = {}
            for which, some in (("all", scores), ("missing", removed)):
                rates[f"rank_1_{which}"], rates[f"fnir_{which}"] = rates_of_fusion(fuse(some[..., :fingers]))
            found[f"{name}, {fingers} fingers"] = rates
    return found


def table(found: dict[str, dict[str, Any]], first: str) -> str:
    """Format rates in percent as a table, one row for each entry."""
    titles = list(next(iter(found.values())))
    rows = [(first, *titles)]
    for name, rates in found.items():
        rows.append((name, *("-" if value is None else f"{100 * value:.1f}" for value in rates.values())))
    return aligned(rows, words=1)


def main(
    dataset: Path | None = None,
    model: Path = Path("small"),
    persons: int = 300,
    impressions: int = 3,
    quality: str = "mixed",
    partial: float | None = None,
    seed: int = 26,
    out: Path | None = None,
) -> None:
    """Print the tables, and write JSON.

    Args:
        dataset: Dataset whose finger keys state person and position, instead of synthetic persons.
        model: Model that embeds the prints.
        persons: Number of synthetic persons.
        impressions: Impressions of each synthetic finger.
        quality: Quality of synthetic prints.
        partial: Share of partial synthetic prints.
        seed: Random seed of synthetic prints.
        out: JSON file to write.
    """
    check_results(out)
    extractor = open_extractor(model)
    with tempfile.TemporaryDirectory() as folder:
        if dataset is None:
            dataset = Path(folder) / "persons"
            style = Style(quality=quality, partial=partial, ppi=extractor.ppi, canvas=extractor.canvas)
            write_synthetic_dataset(dataset, 10 * persons, impressions, seed, style, persons=True)
        shards = open_dataset(dataset)
        prints, embeddings = prints_of_persons(shards), extractor.extract(shards)
    found = identification(embeddings, prints, extractor.cells)
    fused = fusions(all_scores(embeddings, prints, extractor.cells))
    count = int(prints.persons.max()) + 1
    print(f"{count} persons, {len(prints.persons):,} prints; rates in percent, FNIR at FPIR {100 * FPIR:g} %")
    print(table(found, "references"), "", table(fused, "fusion"), sep="\n")
    if out:
        about = {"command": sys.argv, "machine": machine(torch.device("cpu")), "versions": versions()}
        write_results(out, {"persons": count, "identification": found, "fusions": fused, **about})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
