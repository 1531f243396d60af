"""Measure whether the quality score predicts errors: FNMR at a fixed threshold without the worst prints.

python benchmarks/print_quality.py --data FOLDER --dataset datasets/mixed --out print_quality.json

FOLDER holds the sets of benchmarks/real_sets.py. A dataset folder can be added, or used alone. The threshold of each
set is that of FMR 1 % over all its prints. It is kept when the worst prints of the set are left out (error versus
reject; Grother and Tabassi 2007, "Performance of Biometric Quality Measures"). Rates are those of the mated comparisons
of all sets.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import machine, versions
from real_sets import read_set, sets_in
from results_file import check_results, write_results

from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.print_quality import print_quality, ridge_area
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import sorted_curve
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters

FMR = 0.01
REJECTED = (0.0, 0.1, 0.2, 0.3)
CALIBRATION_FINGERS = 32
ROUNDS = 5


@dataclass(frozen=True)
class Mated:
    """Mated comparisons of a set, and the qualities of its prints.

    Attributes:
        pairs: (n, 2) int64.
        rejected: (n,) bool, similarity below the threshold.
        qualities: (N,) quality of each print, by measure.
    """

    pairs: np.ndarray
    rejected: np.ndarray
    qualities: dict[str, np.ndarray]

    def kept(self, measure: str, share: float) -> np.ndarray:
        """Return which comparisons (n,) bool are of two prints that are not among the worst."""
        quality = self.qualities[measure]
        good = quality >= np.quantile(quality, share)
        return good[self.pairs].all(axis=1)


def calibrated(extractor: FingerprintExtractor) -> float:
    """Return the usual norm of a model. It is measured on synthetic prints if the model does not keep it."""
    if "usual_norm" not in extractor.notes:
        numbers = torch.arange(CALIBRATION_FINGERS)
        style = Style(ppi=extractor.ppi, canvas=extractor.canvas)
        prints = render(make_masters(0, numbers), numbers, impression_keys(0, numbers, 0 * numbers), style)
        extractor.notes["usual_norm"] = extractor.usual_norm(prints.image.split(8))
    return extractor.notes["usual_norm"]


@torch.inference_mode()
def measured(
    extractor: FingerprintExtractor,
    prints: Shards | list[Path],
    fingers: np.ndarray,
    impressions: np.ndarray,
    ppi: int = 0,
) -> Mated:
    """Compare all prints of a set, and score each print by every measure."""
    embeddings, found = [], []
    usual = calibrated(extractor)
    for images in extractor.batches(prints, ppi, progress=sys.stderr.isatty()):
        output = extractor.network(images)
        assert output.norm is not None, "the network is not in training mode"
        area = ridge_area(images, extractor.ppi, extractor.preprocess_config.crop)
        embeddings.append(extractor.centred(output.embedding).cpu())
        measures = [print_quality(area, output.norm, usual), area, output.norm]
        found.append(torch.stack(measures).cpu())
    both, area, norm = torch.cat(found, dim=1).numpy()
    scores = score_protocol("all-pairs", torch.cat(embeddings).numpy(), fingers, impressions, cells=extractor.cells)
    threshold = sorted_curve(scores.mated, scores.nonmated).fnmr_at_fmr(FMR)[1]
    by_chance = np.random.default_rng(0).random(len(both))
    qualities = {"ridge area and norm": both, "ridge area alone": area, "norm alone": norm, "by chance": by_chance}
    return Mated(scores.pairs.mated, scores.mated <= threshold, qualities)


def rates(sets: list[Mated]) -> dict[str, list[float]]:
    """Return the FNMR over all sets, for every measure and share of `REJECTED`."""
    found = {}
    for measure in sets[0].qualities:
        rows = []
        for share in REJECTED:
            errors = np.concatenate([mated.rejected[mated.kept(measure, share)] for mated in sets])
            rows.append(float(errors.mean()))
        found[measure] = rows
    return found


def share_of_time(extractor: FingerprintExtractor, images: torch.Tensor) -> float:
    """Return the time of the quality score as a share of preparation and network."""
    times, window = [], extractor.preprocess_config.crop
    clock = (
        time.process_time if images.device.type == "cpu" else time.perf_counter
    )  # other programs may use the same cores
    for function in (lambda: ridge_area(images, extractor.ppi, window), lambda: extractor(images)):
        found = []
        for _ in range(ROUNDS):
            started = clock()
            function().cpu()
            found.append(clock() - started)
        times.append(min(found))
    return times[0] / times[1]


def markdown(found: dict[str, list[float]]) -> str:
    """Format FNMR in percent as a Markdown table."""
    lines = ["| FNMR, prints left out | " + " | ".join(f"{share:.0%}" for share in REJECTED) + " |"]
    lines.append("|---|" + "--:|" * len(REJECTED))
    lines += [f"| {name} | " + " | ".join(f"{100 * rate:.1f}" for rate in row) + " |" for name, row in found.items()]
    return "\n".join(lines)


def main(data: Path | None = None, dataset: Path | None = None, model: str = "small", out: Path | None = None) -> None:
    """Measure whether the quality score predicts errors.

    Args:
        data: Folder with real sets.
        dataset: Dataset folder, for example of `synth --quality mixed`.
        model: Bundled model, run, checkpoint or exported folder.
        out: JSON file to write.
    """
    check_results(out)
    if data is None and dataset is None:
        raise UserError("nothing to measure: give --data, --dataset, or both")
    there = sets_in(data) if data else {}
    extractor = open_extractor(model)
    usual, found = calibrated(extractor), {}
    if data:
        sets = {name: read_set(data / name) for name in there}
        mated = [
            measured(extractor, prints.paths, prints.fingers, prints.impressions, there[name].ppi)
            for name, prints in sets.items()
        ]
        found["FVC sets"] = rates(mated)
    if dataset:
        shards = open_dataset(dataset)
        found[str(dataset)] = rates([measured(extractor, shards, shards.fingers, shards.impressions)])
    some = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (16, extractor.canvas, extractor.canvas), np.uint8)
    )
    share = share_of_time(extractor, some.to(extractor.device))
    for name, table in found.items():
        print(f"{name}\n\n{markdown(table)}\n")
    print(f"usual norm {usual:.2f}; the score takes {share:.1%} of the time of preparation and network")
    if out:
        facts = {"model": extractor.origin, "identity": extractor.identity, "command": sys.argv, "time": share}
        results = {"rejected": REJECTED, "fnmr": found, "usual_norm": usual}
        everything = {"results": results, **facts, "machine": machine(extractor.device), "versions": versions()}
        write_results(out, everything)


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
