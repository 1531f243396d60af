"""Measure what template protection changes: error rates with the same key, across keys, and after an attack.

python benchmarks/protection.py --data FOLDER --out protection.json

FOLDER holds the sets of benchmarks/real_sets.py. All pairs of prints are compared as they are, without poses. Instead
of FOLDER, or in addition to it, --dataset names a dataset folder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import machine, versions
from real_sets import SETS, read_set, sets_in
from results_file import check_results, write_results

from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import one_line_errors, require
from fingerprint_accel.extraction.extractor import open_extractor
from fingerprint_accel.extraction.protection import Protection
from fingerprint_accel.extraction.template_formats import Kind, TemplateFormat
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.similarity import mask_of, similarity

KINDS: tuple[Kind, ...] = ("float32", "int8", "binary")
KEYS = [bytes([number] * 32) for number in range(1, 21)]  # for measurements only
PAIRS = (1, 2, 4, 8, 16, 32)  # plain and protected templates of the same prints that the attacker has


@dataclass(frozen=True)
class Rates:
    """Results of one set of prints.

    Attributes:
        change: largest change of a similarity by a key, for float32 templates.
        eer: EER of each kind of template without a key, and the mean over the keys.
        across: EER, mean mated and mean non-mated similarity of templates under two different keys.
        plain: the same for protected templates that are compared with plain ones.
        attacked: the EER for protected templates from which an attacker with some pairs has removed the protection,
            compared with plain ones, by number of pairs.
        linked: share of prints whose template under another key is found by the sorted norms of the cells, and the EER
            of sorted norms for other prints of the finger. Templates with one cell have no such norms: 0 and 0.5.
    """

    change: float
    eer: dict[Kind, tuple[float, float]]
    across: tuple[float, float, float]
    plain: tuple[float, float, float]
    attacked: dict[int, float]
    linked: tuple[float, float]


def between(first: np.ndarray, second: np.ndarray, fingers: np.ndarray, cells: int) -> tuple[float, float, float]:
    """Compare the templates (N, D) of each print with those of all other prints in a second form.

    Returns:
        EER, mean mated similarity, and mean non-mated similarity.
    """
    scores = similarity(first, second, cells)
    other = ~np.eye(len(fingers), dtype=bool)
    same = fingers[:, None] == fingers
    mated, nonmated = scores[same & other], scores[~same]
    return compute_metrics(mated, nonmated).eer, float(mated.mean()), float(nonmated.mean())


def attack(plain: np.ndarray, protected: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the transform from n plain templates and the protected templates of the same prints, (n, D) each.

    Cells are matched by their norms, which the transform does not change. The rotation of each cell is the solution of
    the orthogonal Procrustes problem (Schoenemann 1966).

    Returns:
        Order of the cells (C,), and rotations (C, D / C, D / C), as in `protection`.
    """
    count = max(1, cells)
    before, after = (part.reshape(len(part), count, -1).astype(np.float64) for part in (plain, protected))
    norms, turned = (np.linalg.norm(part, axis=2) for part in (before, after))
    order = np.abs(turned.T[:, None] - norms.T[None]).sum(axis=2).argmin(axis=1)
    products = np.einsum("nck,ncj->ckj", before[:, order], after)
    left, _, right = np.linalg.svd(products)
    return order, left @ right


def unprotected(protected: np.ndarray, order: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Remove a transform from protected templates (N, D)."""
    grid = np.einsum("ncj,ckj->nck", protected.reshape(len(protected), len(order), -1), rotations)
    found = np.zeros_like(grid)
    found[:, order] = grid
    return found.reshape(protected.shape).astype(np.float32)


def linked(first: np.ndarray, second: np.ndarray, fingers: np.ndarray, cells: int) -> tuple[float, float]:
    """Compare templates (N, D) under two keys by the sorted norms of their cells, which no key changes."""
    if not cells:
        return 0.0, 0.5
    norms = [np.sort(np.linalg.norm(part.reshape(len(part), cells, -1), axis=2)) for part in (first, second)]
    scores = -np.linalg.norm(norms[0][:, None] - norms[1][None], axis=2)
    other, same = ~np.eye(len(fingers), dtype=bool), fingers[:, None] == fingers
    found = float((scores.argmax(axis=1) == np.arange(len(fingers))).mean())
    return found, compute_metrics(scores[same & other], scores[~same]).eer


def measured(vectors: np.ndarray, fingers: np.ndarray, cells: int) -> Rates:
    """Measure all rates of a set of embeddings (N, D)."""
    keys = [Protection(key) for key in KEYS]
    protected = [key.apply(vectors, cells) for key in keys]
    eer: dict[Kind, tuple[float, float]] = {}
    for kind in KINDS:
        template = TemplateFormat(kind, vectors.shape[1], cells)
        rates = []
        for prints in (vectors, *protected):
            stored = template.decode(template.encode(prints))
            rates.append(between(stored, stored, fingers, cells)[0])
        eer[kind] = (rates[0], float(np.mean(rates[1:])))
    whole = similarity(vectors, vectors, cells)
    change = max(float(np.abs(similarity(prints, prints, cells) - whole).max()) for prints in protected)
    across = np.mean([between(protected[0], prints, fingers, cells) for prints in protected[1:]], axis=0)
    plain = np.mean([between(prints, vectors, fingers, cells) for prints in protected], axis=0)
    known = np.argsort(-mask_of(vectors, cells).sum(axis=1)) if cells else np.arange(len(vectors))
    attacked = {}
    for count in PAIRS if cells else [count * 64 for count in PAIRS]:
        if count < len(vectors) // 2:
            seen, unseen = known[:count], known[count:]
            broken = unprotected(protected[0][unseen], *attack(vectors[seen], protected[0][seen], cells))
            attacked[count] = between(broken, vectors[unseen], fingers[unseen], cells)[0]
    links = linked(protected[0], protected[1], fingers, cells)
    return Rates(change, eer, tuple(across.tolist()), tuple(plain.tolist()), attacked, links)


def columns(rates: Rates) -> dict[str, float]:
    """Return the columns of the table, in percent: EERs, and the share of prints that are linked."""
    found = {
        f"{kind}, {words}": value
        for kind, both in rates.eer.items()
        for words, value in zip(("no key", "one key"), both, strict=True)
    }
    found |= {"two keys": rates.across[0], "key and no key": rates.plain[0]}
    found |= {f"{count} pairs known": value for count, value in rates.attacked.items()}
    found |= {"same image linked": rates.linked[0], "EER of norms": rates.linked[1]}
    return {title: 100 * value for title, value in found.items()}


def markdown(found: dict[str, Rates]) -> str:
    """Format the columns of each set of prints, and their means over the sets of real prints."""
    rows = {SETS[name].title if name in SETS else name: columns(rates) for name, rates in found.items()}
    real = [columns(rates) for name, rates in found.items() if name in SETS and not SETS[name].synthetic]
    titles = list(next(iter(rows.values())))
    if real:
        means = {title: [row.get(title, np.nan) for row in real] for title in titles}
        rows["mean of real sets"] = {title: float(np.mean(values)) for title, values in means.items()}
    lines = ["| prints | " + " | ".join(titles) + " |", "|---|" + "--:|" * len(titles)]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row.get(title, np.nan):.2f}" for title in titles) + " |")
    return "\n".join(lines)


def main(data: Path | None = None, dataset: Path | None = None, model: str = "small", out: Path | None = None) -> None:
    """Measure what template protection changes.

    Args:
        data: Folder with the sets.
        dataset: Dataset folder.
        model: Bundled model, run, checkpoint or exported folder.
        out: JSON file to write.
    """
    check_results(out)
    require(data is not None or dataset is not None, "give --data, --dataset, or both")
    extractor = open_extractor(model)
    found = {}
    for name, known in sets_in(data).items() if data else ():
        prints = read_set(data / name) if data else None
        assert prints is not None
        found[name] = measured(extractor.extract(prints.paths, known.ppi), prints.fingers, extractor.cells)
    if dataset:
        shards = open_dataset(dataset)
        found[dataset.name] = measured(extractor.extract(shards), shards.fingers, extractor.cells)
    print(markdown(found))
    for name, rates in found.items():
        means = ", ".join(f"{value:.4f}" for value in (*rates.across[1:], *rates.plain[1:]))
        print(f"{name}: similarities change by at most {rates.change:.1e}; means across keys and without: {means}")
    if out:
        rows = {name: vars(rates) for name, rates in found.items()}
        facts = {"model": extractor.origin, "identity": extractor.identity, "command": sys.argv}
        device = torch.device(extractor.device)
        write_results(out, {"results": rows, **facts, "machine": machine(device), "versions": versions()})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
