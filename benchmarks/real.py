"""Error rates of a model on real prints that no training may touch, beside two classical matchers.

python benchmarks/real.py --data FOLDER --out real.json

FOLDER holds the free sets of FVC2000 and FVC2002 (`fvc2002_db1_b`, ...: http://bias.csr.unibo.it), those that are there
are measured. Mated: every pair of impressions of a finger; non-mated: every pair of prints of different fingers. The
prints of FVC2002 DB4_B were generated (SFinGe): the set stands apart, and means are over real sets only.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from machine import machine, versions
from PIL import Image
from results_file import check_results, write_results

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.data.images import read_grey
from fingerprint_accel.data.listing import list_files
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.evaluation.bootstrap import bootstrap_eer
from fingerprint_accel.evaluation.calibration import all_pairs
from fingerprint_accel.evaluation.metrics import compute_metrics
from fingerprint_accel.extraction.poses import UPRIGHT, USUAL, Poses
from fingerprint_accel.text import aligned

STEP = 15  # degrees between the turns that are tried on prints that were turned further than usual


@dataclass(frozen=True)
class RealSet:
    """A set and what two matchers reach on it: EER over all cross-finger pairs, percent, measured on these images."""

    title: str
    ppi: int
    nbis: float
    sourceafis: float
    synthetic: bool = False


SETS = {
    "fvc2002_db1_b": RealSet("FVC2002 DB1_B", 500, 4.29, 3.19),
    "fvc2002_db2_b": RealSet("FVC2002 DB2_B", 569, 1.46, 1.60),
    "fvc2002_db3_b": RealSet("FVC2002 DB3_B", 500, 8.88, 11.43),
    "fvc2002_db4_b": RealSet("FVC2002 DB4_B (SFinGe)", 500, 5.36, 6.07, synthetic=True),
    "fvc2000_db1_b": RealSet("FVC2000 DB1_B", 500, 4.49, 3.93),
}


@dataclass(frozen=True)
class Measured:
    """Rates of one set, as shares."""

    eer: float
    eer_interval_95: tuple[float, float]
    tar_at_far_1_percent: float
    prints: int
    seconds: float  # since the set was opened


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """An image turned about its middle; what comes in from outside has the median grey of its border."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    paper = int(np.median(border))
    picture = Image.fromarray(image)
    return np.asarray(picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=paper))


@dataclass(frozen=True)
class Prints:
    """The prints of a set: paths, finger numbers (N,) int64 and impressions (N,) int64."""

    paths: list[Path]
    fingers: np.ndarray
    impressions: np.ndarray


def read_set(folder: Path) -> Prints:
    """The prints of a set, in the order of their paths."""
    table = list_files(folder, "fvc").table.to_pydict()
    fingers = np.unique(table["finger_key"], return_inverse=True)[1]
    return Prints([folder / path for path in table["path"]], fingers, np.asarray(table["impression"]))


def sets_in(data: Path) -> dict[str, RealSet]:
    """The sets that are there.

    Raises:
        UserError: none is.
    """
    there = {name: known for name, known in SETS.items() if (data / name).is_dir()}
    if not there:
        raise UserError(f"{data}: none of {', '.join(SETS)} in it")
    return there


def mean_of_real(values: Mapping[str, float]) -> float:
    """Mean over the sets of real prints; NaN where there is none."""
    real = [value for name, value in values.items() if not SETS[name].synthetic]
    return float(np.mean(real)) if real else math.nan


def measure(extractor: FingerprintExtractor, folder: Path, ppi: int, poses: bool, turn: float) -> dict[str, Measured]:
    """Embeds every print of a set and compares it, as it is and, with `poses`, best over poses.

    With `turn`, each is first turned by up to so many degrees.
    """
    started = time.perf_counter()
    prints = read_set(folder)
    images = [read_grey(path) for path in prints.paths]
    if turn:
        draws = np.random.default_rng(0).uniform(-turn, turn, len(images))
        images = [turned(image, degrees) for image, degrees in zip(images, draws, strict=True)]
    wider = Poses(
        tuple(float(degrees) for degrees in range(-int(turn), int(turn) + 1, STEP) if degrees), USUAL.shift_mm
    )
    usual = extractor.usual_poses
    tried = (usual if usual is not USUAL or turn <= max(USUAL.degrees) else wider) if poses else UPRIGHT
    embeddings = extractor.extract(images, ppi, tried, progress=sys.stderr.isatty())
    ways = {"as it is": embeddings[:, 0], "poses": embeddings} if poses else {"as it is": embeddings}
    found = {}
    for way, compared in ways.items():
        scores = all_pairs(compared, prints.fingers, prints.impressions)
        metrics, interval = compute_metrics(scores.mated, scores.nonmated), bootstrap_eer(scores)
        seconds = time.perf_counter() - started
        found[way] = Measured(metrics.eer, interval, metrics.tar[0.01], len(images), seconds)
    return found


def table(found: dict[str, dict[str, Measured]]) -> str:
    """One row per set, one column per way of comparing; EER in percent. The mean is that of the real sets above it."""
    ways = list(next(iter(found.values())))
    header = ["EER, %", *(f"{way} (95 %)" for way in ways), *(f"TAR at FAR 1 %, {way}" for way in ways)]
    rows = [[*header, "NBIS", "SourceAFIS"]]
    for name, row in sorted(found.items(), key=lambda item: SETS[item[0]].synthetic):
        known = SETS[name]
        rates = [
            f"{100 * m.eer:.2f} ({100 * m.eer_interval_95[0]:.1f}-{100 * m.eer_interval_95[1]:.1f})"
            for m in row.values()
        ]
        tars = [f"{100 * m.tar_at_far_1_percent:.1f}" for m in row.values()]
        rows.append([known.title, *rates, *tars, f"{known.nbis:.2f}", f"{known.sourceafis:.2f}"])
    eers = [mean_of_real({name: row[way].eer for name, row in found.items()}) for way in ways]
    tars = [mean_of_real({name: row[way].tar_at_far_1_percent for name, row in found.items()}) for way in ways]
    classical = [mean_of_real({name: getattr(SETS[name], judge) for name in found}) for judge in ("nbis", "sourceafis")]
    mean = [*(f"{100 * eer:.2f}" for eer in eers), *(f"{100 * tar:.1f}" for tar in tars)]
    made = sum(SETS[name].synthetic for name in found)
    rows.insert(len(rows) - made, ["mean of real sets", *mean, *(f"{value:.2f}" for value in classical)])
    return aligned(rows)


def main(
    data: Path,
    model: str = "small",
    turn: float = 0.0,
    poses: bool = True,
    bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    out: Path | None = None,
) -> None:
    """Error rates of a model on real prints that no training may touch, beside two classical matchers.

    Args:
        data: Folder with the sets.
        model: Bundled model, run, checkpoint or exported folder.
        turn: First turn every print by up to so many degrees, at random.
        poses: Also try turns and shifts at comparison.
        bf16: Run the network in bf16.
        out: JSON file to write.
    """
    check_results(out)
    there = sets_in(data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = FingerprintExtractor.from_pretrained(model).to(device)
    extractor.bf16 = bf16
    found = {name: measure(extractor, data / name, known.ppi, poses, turn) for name, known in there.items()}
    print(table(found))
    if out:
        rows = {name: {way: dataclasses.asdict(m) for way, m in row.items()} for name, row in found.items()}
        facts = {"model": extractor.origin, "turn": turn, "command": sys.argv, "machine": machine(device)}
        write_results(out, {"results": rows, **facts, "versions": versions()})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
