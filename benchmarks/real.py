"""Error rates of models on real prints that no training may touch, beside two classical matchers.

python benchmarks/real.py --data FOLDER --out real.json

FOLDER holds the sets of `benchmarks/real_sets.py`; those that are there are measured. Mated: every pair of impressions
of a finger; non-mated: every pair of prints of different fingers. NBIS runs here where `nbis-py` is installed (about
ten minutes on two cores for all sets); the figures of SourceAFIS, which needs Java, are quoted.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from machine import machine, versions
from real_rates import AS_IT_IS, COMPARE, Measured, measured, report
from real_sets import Prints, read_set, sets_in
from results_file import check_results, write_results

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.extraction.calibration import Calibration
from fingerprint_accel.extraction.extractor import open_extractor
from fingerprint_accel.extraction.poses import UPRIGHT, USUAL, Poses
from fingerprint_accel.metrics.protocols import Scores, score_protocol

STEP = 15  # degrees between the turns that are tried on prints that were turned further than usual


def measure(extractor: FingerprintExtractor, folder: Path, ppi: int, compare: bool, turn: float) -> dict[str, Measured]:
    """Embeds every print of a set and compares all pairs.

    Args:
        extractor: the model.
        folder: of the set.
        ppi: of its images.
        compare: also as the command `compare` does.
        turn: first turn each print by up to so many degrees.

    Returns:
        Rates by way of comparing.
    """
    started = time.perf_counter()
    prints = read_set(folder)
    images = prints.images(turn)
    poses = tried_poses(extractor, turn) if compare else UPRIGHT
    templates = extractor.extract(images, ppi, poses, progress=sys.stderr.isatty())
    ways = {AS_IT_IS: templates[:, 0], COMPARE: templates} if compare else {AS_IT_IS: templates}
    stated = stated_thresholds(extractor)
    found = {}
    for way, chosen in ways.items():
        scores = compared(chosen, prints, extractor.cells)
        seconds = time.perf_counter() - started
        found[way] = measured(scores, seconds, stated if way == AS_IT_IS else None)
    return found


def compared(templates: np.ndarray, prints: Prints, cells: int) -> Scores:
    """Similarity of every pair of a set: the one place where this benchmark compares what a model says."""
    return score_protocol("all-pairs", templates, prints.fingers, prints.impressions, cells=cells)


def tried_poses(extractor: FingerprintExtractor, turn: float) -> Poses:
    """What `compare` tries; more turns where prints were turned further than a model without alignment expects."""
    usual = extractor.usual_poses
    if usual is not USUAL or turn <= max(USUAL.degrees):
        return usual
    turns = range(-int(turn), int(turn) + 1, STEP)
    return Poses(tuple(float(degrees) for degrees in turns if degrees), USUAL.shift_mm)


def stated_thresholds(extractor: FingerprintExtractor) -> dict[str, float]:
    """Thresholds that the model's calibration states for prints as they are, by FMR; empty without one."""
    calibration = Calibration.from_notes(extractor.notes)
    way = None if calibration is None else calibration.way(1)
    return {} if way is None else way.thresholds


def measure_nbis(folder: Path, ppi: int, turn: float) -> dict[str, Measured]:
    """NIST's matcher on a set."""
    from real_nbis import nbis_scores  # starts processes that import it, and is not always installed

    started = time.perf_counter()
    prints = read_set(folder)
    scores = nbis_scores(prints.images(turn), ppi, prints)
    return {AS_IT_IS: measured(scores, time.perf_counter() - started)}


def main(
    data: Path,
    model: tuple[str, ...] = ("small", "base"),
    turn: float = 0.0,
    compare: bool = True,
    nbis: bool = True,
    bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    out: Path | None = None,
) -> None:
    """Error rates of models on real prints that no training may touch, beside two classical matchers.

    Args:
        data: Folder with the sets.
        model: Bundled models, runs, checkpoints or exported folders.
        turn: First turn every print by up to so many degrees, at random.
        compare: Also compare as the command `compare` does.
        nbis: Run NIST's matcher too, where `nbis-py` is installed; its known figures are quoted otherwise.
        bf16: Run the network in bf16.
        out: JSON file to write.
    """
    check_results(out)
    there = sets_in(data)
    judges: dict[str, Callable[[Path, int], dict[str, Measured]]] = {}
    origins = {}
    for name in model:
        extractor = open_extractor(name)
        extractor.bf16 = bf16
        origins[name] = {"origin": extractor.origin, "identity": extractor.identity}
        judges[name] = lambda folder, ppi, extractor=extractor: measure(extractor, folder, ppi, compare, turn)
    if nbis and importlib.util.find_spec("nbis") is not None:
        judges["NBIS"] = lambda folder, ppi: measure_nbis(folder, ppi, turn)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {"models": origins, "turn": turn, "command": sys.argv, "machine": machine(device), "versions": versions()}
    found: dict[str, dict[str, dict[str, Measured]]] = {}
    for judge, measure_set in judges.items():
        found[judge] = {}
        for name, known in there.items():
            found[judge][name] = measure_set(data / name, known.ppi)
            eers = ", ".join(f"{way} {100 * m.eer:.2f} %" for way, m in found[judge][name].items())
            print(f"{judge}, {known.title}: EER {eers}", file=sys.stderr)
        if out:  # after every judge: the whole takes long, and NBIS comes last
            write_results(out, {"results": as_dicts(found), **facts})
    print(report(found))


def as_dicts(found: dict[str, dict[str, dict[str, Measured]]]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """For JSON."""
    return {
        judge: {name: {way: dataclasses.asdict(m) for way, m in ways.items()} for name, ways in sets.items()}
        for judge, sets in found.items()
    }


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
