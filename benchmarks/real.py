"""Measure error rates of models on held-out real prints, beside two classical matchers.

python benchmarks/real.py --data FOLDER --out real.json

FOLDER holds the sets of `benchmarks/real_sets.py`. Available sets are measured. Mated comparisons are all pairs of
impressions of a finger. Non-mated comparisons are all pairs of prints of different fingers. NBIS runs if `nbis-py` is
installed (about ten minutes on two cores for all sets). The figures of SourceAFIS, which needs Java, are quoted.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
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

STEP = 15  # degrees between tried turns of prints that were turned further than usual


def measure(extractor: FingerprintExtractor, folder: Path, ppi: int, compare: bool, turn: float) -> dict[str, Measured]:
    """Embed every print of a set, and compare all pairs.

    Args:
        extractor: The model.
        folder: Folder of the set.
        ppi: Resolution of its images.
        compare: Also compare as the command `compare` does.
        turn: First turn each print by up to this angle, degrees.

    Returns:
        Rates by way of comparison.
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
    """Return the similarity of every pair of a set. All comparisons of templates in this benchmark are made here."""
    return score_protocol("all-pairs", templates, prints.fingers, prints.impressions, cells=cells)


def tried_poses(extractor: FingerprintExtractor, turn: float) -> Poses:
    """Return the poses that `compare` tries.

    More turns are added if the prints are turned further than a model without alignment expects.
    """
    usual = extractor.usual_poses
    if usual is not USUAL or turn <= max(USUAL.degrees):
        return usual
    turns = range(-int(turn), int(turn) + 1, STEP)
    return Poses(tuple(float(degrees) for degrees in turns if degrees), USUAL.shift_mm)


def stated_thresholds(extractor: FingerprintExtractor) -> dict[str, float]:
    """Return the thresholds of the model's calibration for prints as they are, by FMR. Empty without calibration."""
    calibration = Calibration.from_notes(extractor.notes)
    way = None if calibration is None else calibration.way(1)
    return {} if way is None else way.thresholds


def measure_nbis(folder: Path, ppi: int, turn: float) -> dict[str, Measured]:
    """Measure NIST's matcher on a set."""
    from real_nbis import nbis_scores  # needs nbis-py, and its processes import the module

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
    """Measure error rates of models on held-out real prints, beside two classical matchers.

    Args:
        data: Folder with the sets.
        model: Bundled models, runs, checkpoints or exported folders.
        turn: First turn every print by a random angle up to this one, degrees.
        compare: Also compare as the command `compare` does.
        nbis: Also run NIST's matcher, if `nbis-py` is installed. Otherwise its known figures are quoted.
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
        judges[name] = partial(measure, extractor, compare=compare, turn=turn)
    if nbis and importlib.util.find_spec("nbis") is not None:
        judges["NBIS"] = partial(measure_nbis, turn=turn)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {"models": origins, "turn": turn, "command": sys.argv, "machine": machine(device), "versions": versions()}
    found: dict[str, dict[str, dict[str, Measured]]] = {}
    for judge, measure_set in judges.items():
        found[judge] = {}
        for name, known in there.items():
            found[judge][name] = measure_set(data / name, known.ppi)
            eers = ", ".join(f"{way} {100 * m.eer:.2f} %" for way, m in found[judge][name].items())
            print(f"{judge}, {known.title}: EER {eers}", file=sys.stderr)
        if out:  # after every matcher, because the whole takes long and NBIS comes last
            write_results(out, {"results": as_dicts(found), **facts})
    print(report(found))


def as_dicts(found: dict[str, dict[str, dict[str, Measured]]]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Convert the rates to dictionaries for JSON."""
    return {
        judge: {name: {way: dataclasses.asdict(m) for way, m in ways.items()} for name, ways in sets.items()}
        for judge, sets in found.items()
    }


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
