"""Measure the EER of cropped probes against whole references, by area.

python benchmarks/small_area.py --data FOLDER --out small_area.json

FOLDER holds the sets of `benchmarks/real_sets.py`. Square windows of random size and place are cut out of the ridges of
every print, as a small sensor or a latent mark would show it. Each crop is a probe. It is prepared from its image as
any other print, and compared as it is with every whole print of the set except its own. Probes are grouped by area of
contact (`print_quality.contact_area`). Rates are means over the sets. Both models take five minutes on two cores.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import machine, versions
from real_sets import Prints, read_set, sets_in
from results_file import check_results, write_results

from fingerprint_accel.data.ridge_mask import CanvasError, ridge_mask
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.print_quality import contact_area
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.similarity import similarity

SIDES_MM = (3.0, 16.0)  # smallest and largest side of a window
EDGES = (0, 10, 20, 30, 40, 50, 60, 80, 100, 130, 160, 200)  # edges of the groups, mm^2
FEWEST = 12  # least number of probes in a group of a set


@dataclass(frozen=True)
class Crops:
    """Crops of the prints of a set: canvases (n, S, S) uint8, and the print (n,) that each was cut from."""

    canvases: np.ndarray
    source: np.ndarray


def cropped(extractor: FingerprintExtractor, images: list[np.ndarray], ppi: int, count: int, seed: int) -> Crops:
    """Cut `count` windows out of every image, the same ones for every model.

    Windows in which no print is found are left out.
    """
    draws, canvases, source = np.random.default_rng(seed), [], []
    for number, image in enumerate(images):
        mask, block = ridge_mask(image, ppi)
        places = (np.argwhere(mask) + 0.5) * block  # (blocks, 2) y, x in pixels
        for _ in range(count):
            side = round(float(np.exp(draws.uniform(*np.log(SIDES_MM)))) * ppi / 25.4)
            top, left = (max(0, round(at - side / 2)) for at in places[draws.integers(len(places))])
            try:
                window = np.ascontiguousarray(image[top:, left:][:side, :side])
                canvases.append(extractor.on_canvas(window, ppi, however_small=True))
            except (UserError, CanvasError):  # too little of the print is left
                continue
            source.append(number)
    return Crops(np.stack(canvases), np.array(source))


@torch.inference_mode()
def embedded(extractor: FingerprintExtractor, canvases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embed canvases (n, S, S) uint8 as templates (n, D), and return the area of contact (n,) in mm^2."""
    templates = [extractor(images.to(extractor.device)).cpu() for images in torch.from_numpy(canvases).split(32)]
    return torch.cat(templates).numpy(), np.array([contact_area(canvas, extractor.ppi) for canvas in canvases])


def eer_by_area(
    extractor: FingerprintExtractor, prints: Prints, images: list[np.ndarray], ppi: int, count: int
) -> tuple[dict[int, tuple[int, float]], np.ndarray]:
    """Return the EER of each group of a set.

    Returns:
        Number of probes and EER by the first edge of the group, and the area (N,) in mm^2 of the whole prints.
    """
    whole = np.stack([extractor.on_canvas(image, ppi, however_small=True) for image in images])
    references, areas = embedded(extractor, whole)
    crops = cropped(extractor, images, ppi, count, seed=0)
    probes, area = embedded(extractor, crops.canvases)
    scores = similarity(references, probes, extractor.cells).T  # (probes, references)
    same = prints.fingers[crops.source][:, None] == prints.fingers
    other = np.arange(len(images)) != crops.source[:, None]
    found = {}
    for low, high in pairwise((*EDGES, np.inf)):
        here = ((area >= low) & (area < high))[:, None]
        if here.sum() >= FEWEST:
            metrics = compute_metrics(scores[here & same & other], scores[here & ~same])
            found[int(low)] = (int(here.sum()), metrics.eer)
    return found, areas


def table(found: dict[str, dict[int, tuple[int, float]]]) -> str:
    """Format number of probes and mean EER as a Markdown table, by group and model."""
    lines = ["| mm² on the probe | probes | " + " | ".join(f"EER of `{name}`, %" for name in found) + " |"]
    lines.append("|---|--:|" + "--:|" * len(found))
    groups = next(iter(found.values()))
    for low, high in pairwise((*EDGES, None)):
        if low not in groups:
            continue
        name = f"{low} to {high}" if high else f"{low} and more"
        rates = " | ".join(f"{100 * of_model[low][1]:.1f}" if low in of_model else "-" for of_model in found.values())
        lines.append(f"| {name} | {groups[low][0]:,} | {rates} |")
    return "\n".join(lines)


def main(
    data: Path,
    model: tuple[str, ...] = ("small", "base"),
    sets: tuple[str, ...] = ("fvc2002_db1_b", "fvc2002_db3_b", "fvc2000_db1_b", "upek"),
    count: int = 4,
    out: Path | None = None,
) -> None:
    """Measure the EER of cropped probes against whole references, by area.

    Args:
        data: Folder with the sets.
        model: Bundled models, runs, checkpoints or exported folders.
        sets: Sets to measure, if available.
        count: Windows of each print.
        out: JSON file to write.
    """
    check_results(out)
    there = {name: known for name, known in sets_in(data).items() if name in sets}
    prints = {name: read_set(data / name) for name in there}
    images = {name: prints[name].images() for name in there}
    found: dict[str, dict[int, tuple[int, float]]] = {}
    by_set: dict[str, dict[str, dict[int, tuple[int, float]]]] = defaultdict(dict)
    for place in model:
        extractor = open_extractor(place)
        for name, known in there.items():
            by_set[place][name], areas = eer_by_area(extractor, prints[name], images[name], known.ppi, count)
            least, few, usual = np.quantile(areas, [0, 0.05, 0.5])
            facts = f"whole prints have {usual:.0f} mm², 5 % below {few:.0f}, least {least:.0f}"
            print(f"{place}, {known.title}: {facts}", file=sys.stderr)
        groups: dict[int, tuple[int, float]] = {}
        for low in EDGES:
            rates = [of_set[low] for of_set in by_set[place].values() if low in of_set]
            if rates:
                groups[low] = (sum(number for number, _ in rates), float(np.mean([rate for _, rate in rates])))
        found[place] = groups
    print(table(found))
    if out:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        about = {"command": sys.argv, "machine": machine(device), "versions": versions()}
        write_results(out, {"mean": found, "by_set": by_set, **about})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
