"""Measure the cost of smaller templates in error rates on real prints.

python benchmarks/templates.py --data FOLDER --out templates.json

FOLDER holds the sets of benchmarks/real_sets.py. All pairs of prints are compared as they are, without poses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import machine, versions
from real_sets import SETS, Prints, mean_of_real, read_set, sets_in
from results_file import check_results, write_results

from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.template_formats import Kind, TemplateFormat, shortened
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics

SHARES = (1, 2, 4, 8)  # divisors of the length, for models trained with `loss.matryoshka_dims`
KINDS: tuple[Kind, ...] = ("float32", "int8", "binary")


def rates(vectors: np.ndarray, prints: Prints, template: TemplateFormat, branches: int) -> tuple[float, float]:
    """Return EER, and TAR at FAR 1 %, of embeddings (N, D) that were stored in a format."""
    stored = template.encode(shortened(vectors, template.length, branches))
    scores = score_protocol(
        "all-pairs", template.decode(stored), prints.fingers, prints.impressions, cells=template.cells
    )
    metrics = compute_metrics(scores.mated, scores.nonmated)
    return metrics.eer, metrics.tar[0.01]


def measured(extractor: FingerprintExtractor, data: Path) -> list[dict]:
    """Return a row for each format: kind, numbers, bytes, and rates by set. Dense templates are not shortened."""
    dims, branches = extractor.model.config.embedding_dim, len(extractor.model.branch_dims)
    sets = {name: (read_set(data / name), known.ppi) for name, known in sets_in(data).items()}
    embedded = {name: extractor.extract(prints.paths, ppi) for name, (prints, ppi) in sets.items()}
    rows = []
    for kind in KINDS:
        for share in SHARES[:1] if extractor.cells else SHARES:
            template = TemplateFormat(kind, dims // share, extractor.cells)
            found = {name: rates(embedded[name], sets[name][0], template, branches) for name in sets}
            rows.append({"kind": kind, "numbers": template.length, "bytes": template.bytes, "rates": found})
    return rows


def markdown(rows: list[dict]) -> str:
    """Format the EER by set, and the means of EER and TAR at FAR 1 % over the sets of real prints, in percent."""
    names = list(rows[0]["rates"])
    titles = [SETS[name].title for name in names]
    lines = [
        "| template | numbers | bytes | " + " | ".join(titles) + " | mean EER of real sets | mean TAR at FAR 1 % |"
    ]
    lines.append("|---|--:|--:|" + "--:|" * (len(names) + 2))
    for row in rows:
        eers, tars = ({name: both[place] for name, both in row["rates"].items()} for place in (0, 1))
        cells = [f"{100 * eer:.1f}" for eer in eers.values()]
        cells += [f"**{100 * mean_of_real(eers):.1f}**", f"{100 * mean_of_real(tars):.1f}"]
        lines.append(f"| {row['kind']} | {row['numbers']} | {row['bytes']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(data: Path, model: str = "small", out: Path | None = None) -> None:
    """Measure the cost of smaller templates in error rates on real prints.

    Args:
        data: Folder with the sets.
        model: Bundled model, run, checkpoint or exported folder. All, a half, a quarter and an eighth of its numbers
            are used.
        out: JSON file to write.
    """
    check_results(out)
    sets_in(data)
    extractor = open_extractor(model)
    rows = measured(extractor, data)
    print(markdown(rows))
    if out:
        facts = {"model": extractor.origin, "identity": extractor.identity, "command": sys.argv}
        device = torch.device(extractor.device)
        found = {"results": rows, **facts, "machine": machine(device), "versions": versions()}
        write_results(out, found)


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
