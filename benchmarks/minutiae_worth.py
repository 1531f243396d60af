"""Measure the value of minutiae for TexMinu: exact ones, those of NIST's mindtct, and none.

OMP_NUM_THREADS=1 python benchmarks/minutiae_worth.py --work FOLDER --out minutiae_worth.json

Synthetic prints are written as image files of 500 ppi and imported three times: with exact minutiae, with the minutiae
of `import --find-minutiae mindtct`, and without minutiae. `--kinds` can add all minutiae of mindtct, with the
unreliable ones that the import leaves out. A small network is trained on each dataset, with the same seed, steps and
pictures. Held-out fingers show how well the network draws exact minutia maps, and how well it recognises. Files in
FOLDER are not made again, so that a stopped run continues. The benchmark needs `nbis-py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from machine import machine, versions
from minutia_matching import MAX_ANGLE, MAX_DISTANCE_MM
from minutiae_readout import rates
from PIL import Image
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.nbis import Nbis
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.data.templates import write_template
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.extraction.minutiae_readout import minutiae_on_canvases
from fingerprint_accel.metrics.bootstrap import bootstrap_eer, compare_scores
from fingerprint_accel.metrics.protocols import Scores, score_protocol
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.preprocess.minutia_map import minutia_maps
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "train_10k.py"
Kind = Literal["exact", "mindtct", "all", "none"]
PPI, CANVAS = 500, 560  # of the image files, pixels
AT_ONCE = 10  # fingers rendered together
HELD_OUT = 100_000  # number of the first held-out finger
NETWORK = {
    "model.trunk": "compact",
    "model.width": 16,
    "model.embedding-dim": 256,
    "model.dropout": 0,
    "preprocess.crop": 256,
    "preprocess.size": 160,
    "preprocess.augment.rotation-degrees": 10,
    "preprocess.augment.translation": 6,
    "preprocess.augment.elastic": 1.5,
    "preprocess.augment.contrast": 0.2,
    "preprocess.augment.ridge-thickness": 0.2,
    "preprocess.augment.occlusion": 0.05,
    "reading.validation-fraction": 0,
    "reading.samples-per-class": 2,
    "loss.contrastive-weight": 1,
    "loss.center-weight": 0,
    "loss.margin-start": 0.6,
    "training.batch-size": 16,
    "training.learning-rate": 0.003,
    "training.warmup-steps": 30,
    "training.validate-every": 0,
    "training.save-every": 0,
    "training.tracker": "none",
}


def write_images(folder: Path, first: int, fingers: int, impressions: int, quality: str) -> None:
    """Write `images/FINGER_IMPRESSION.png` and `exact/FINGER_IMPRESSION.iso`. The folder appears when complete."""
    if folder.is_dir():
        return
    half_done = folder.with_name(folder.name + ".part")
    for name in ("images", "exact"):
        (half_done / name).mkdir(parents=True, exist_ok=True)
    style = Style(quality=quality, ppi=PPI, canvas=CANVAS)
    for numbers in tqdm(torch.arange(first, first + fingers).split(AT_ONCE), desc=f"making {folder.name}"):
        which = torch.arange(len(numbers)).repeat_interleave(impressions)
        counted = torch.arange(impressions).repeat(len(numbers))
        prints = render(make_masters(0, numbers), which, impression_keys(0, numbers[which], counted), style)
        for row, (finger, impression) in enumerate(zip(numbers[which].tolist(), counted.tolist(), strict=True)):
            stem = f"{finger}_{impression + 1}"
            Image.fromarray(prints.image[row].numpy()).save(half_done / "images" / f"{stem}.png", compress_level=1)
            minutiae = prints.minutiae[row, : prints.count[row]].numpy()
            write_template(half_done / "exact" / f"{stem}.iso", minutiae, CANVAS, CANVAS, PPI)
    half_done.rename(folder)


def write_all(folder: Path) -> None:
    """Write `all/FINGER_IMPRESSION.iso`: all minutiae that mindtct finds, with unreliable ones."""
    if (folder / "all").is_dir():
        return
    half_done, detector = folder / "all.part", Nbis()
    half_done.mkdir(exist_ok=True)
    for path in tqdm(sorted((folder / "images").iterdir()), desc=f"mindtct on {folder.name}"):
        found = detector.minutiae(np.asarray(Image.open(path)))
        write_template(half_done / f"{path.stem}.iso", found, CANVAS, CANVAS, PPI)
    half_done.rename(folder / "all")


def imported(images: Path, kind: str, workers: int = 0) -> Shards:
    """Import the images with minutiae of a kind, and return the dataset."""
    out = images / f"dataset-{kind}"
    if not out.is_dir():
        if kind == "all":
            write_all(images)
        import_dataset(
            images / "images",
            out,
            "fvc",
            PPI,
            minutiae=images / kind if kind in ("exact", "all") else None,
            find_minutiae="mindtct" if kind == "mindtct" else "",
            workers=workers,
        )
    return open_dataset(out)


def lists(shards: Shards, rows: np.ndarray) -> list[np.ndarray]:
    """Return the minutiae of prints, (n, 4) each, in canvas pixels."""
    table, counts = shards.minutiae(rows)
    return [points[:count] for points, count in zip(table, counts, strict=True)]


def train(shards: Shards, run: Path, seed: int, steps: int, weight: float) -> None:
    """Train in a child process, unless the run exists."""
    if (run / "model").is_dir():
        return
    knobs = {**NETWORK, "training.steps": steps, "training.seed": seed, "loss.minutia-map-weight": weight}
    words = [word for name, value in knobs.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(RECIPE), "--data", str(shards.folder), "--out", str(run), *words]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def maps_of(minutiae: list[np.ndarray], canvas: int, crop: int) -> torch.Tensor:
    """Draw the minutia maps (B, 6, M, M) of upright prints on the network's input."""
    start = (canvas - crop) / 2
    counts = torch.tensor([len(each) for each in minutiae])
    padded = torch.zeros(len(minutiae), max(1, int(counts.max())), 4)
    for row, each in enumerate(minutiae):
        padded[row, : len(each)] = torch.from_numpy(each - np.array([start, start, 0, 0], np.float32))
    return minutia_maps(padded, counts, crop)


def map_error(drawn: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the sum of the minutia-map loss over prints."""
    return float((drawn - exact).square().mean(dim=(1, 2, 3)).sum())


@torch.inference_mode()
def measure(model: Path, unseen: Shards, found: Shards, draws: bool) -> tuple[dict[str, Any], Scores]:
    """Measure a run on held-out fingers.

    Args:
        model: The run.
        unseen: Held-out prints with exact minutiae.
        found: The same prints with the minutiae of mindtct.
        draws: Whether the network has learned to draw maps.

    Returns:
        The loss against the exact maps and the rates of the minutiae that are read from the maps, and the scores of all
        comparisons.
    """
    extractor = FingerprintExtractor.from_pretrained(model)
    scores = score_protocol("all-pairs", extractor.extract(unseen), unseen.fingers, unseen.impressions)
    low, high = bootstrap_eer(scores)
    values: dict[str, Any] = {
        "eer": compute_metrics(scores.mated, scores.nonmated).eer,
        "eer_interval_95": [low, high],
    }
    if not draws:
        return values, scores
    crop, canvas, per_mm = extractor.preprocess_config.crop, unseen.info.canvas, unseen.info.ppi / 25.4
    errors, read, exact = np.zeros(3), [], []
    for rows in np.array_split(np.arange(len(unseen)), -(-len(unseen) // 16)):
        images = torch.from_numpy(np.stack([unseen.image(row) for row in rows]))
        true = lists(unseen, rows)
        maps = maps_of(true, canvas, crop)
        drawn = extractor.model.draw_minutiae(extractor.preprocessor.images(images))
        shown = torch.nn.functional.interpolate(drawn, maps.shape[-2:], mode="bilinear", align_corners=False)
        theirs = maps_of(lists(found, rows), canvas, crop)
        errors += [map_error(shown, maps), map_error(theirs, maps), map_error(0 * maps, maps)]
        read += minutiae_on_canvases(extractor, images, threshold=0.05)
        exact += [each[(np.abs(each[:, :2] - canvas / 2) < crop / 2).all(axis=1)] for each in true]
    names = ("map_loss", "map_loss_of_mindtct", "map_loss_of_empty_maps")
    values |= dict(zip(names, (errors / len(unseen)).tolist(), strict=True))
    best = max(
        (
            {"threshold": threshold, **_rates(read, exact, threshold, per_mm)}
            for threshold in (0.05, 0.1, 0.2, 0.3, 0.4)
        ),
        key=lambda row: row["f1"],
    )
    return {**values, "read_from_maps": best}, scores


def _rates(found: list[np.ndarray], exact: list[np.ndarray], least: float, per_mm: float) -> dict[str, float]:
    """Return precision, recall and further rates of minutiae with at least this score."""
    sure = [each[each[:, 3] >= least] for each in found]
    row = rates(sure, exact, MAX_DISTANCE_MM * per_mm, MAX_ANGLE)
    row["apart_mm"] = row.pop("apart") / per_mm
    return row


def agreement(exact: Shards, found: Shards) -> dict[str, dict[str, float]]:
    """Compare the minutiae of mindtct with the exact ones, by least reliability."""
    rows = np.arange(len(exact))
    true, theirs = lists(exact, rows), lists(found, rows)
    return {f"{least:g}": _rates(theirs, true, least, exact.info.ppi / 25.4) for least in (0.0, 0.3, 0.5)}


def difference(kind: str, ours: Scores, other: str, theirs: Scores, seed: int) -> dict[str, Any]:
    """Return the difference of the EER of two trainings, with an interval over the same draws of fingers for both."""
    eer = compare_scores(ours, theirs)[0]
    row = {"seed": seed, "eer_of": kind, "minus": other, "difference": eer.ours - eer.theirs}
    print(row := {**row, "interval_95": list(eer.interval)}, flush=True)
    return row


def table(runs: list[dict[str, Any]]) -> str:
    """Format a line for each training."""
    lines = ["| minutiae | seed | map loss | F1 of minutiae read | EER | 95 % |", "|---|--:|--:|--:|--:|--:|"]
    for run in runs:
        drawn = f"{1e3 * run['map_loss']:.3f}" if "map_loss" in run else "-"
        f1 = f"{run['read_from_maps']['f1']:.1%}" if "read_from_maps" in run else "-"
        low, high = run["eer_interval_95"]
        rate = f"{run['eer']:.1%} | {low:.1%} to {high:.1%}"
        lines.append(f"| {run['minutiae']} | {run['seed']} | {drawn} | {f1} | {rate} |")
    return "\n".join(lines)


def main(
    work: Path,
    fingers: int = 250,
    impressions: int = 6,
    unseen_fingers: int = 80,
    unseen_impressions: int = 4,
    quality: str = "clean",
    steps: int = 400,
    kinds: tuple[Kind, ...] = ("exact", "mindtct", "none"),
    seeds: tuple[int, ...] = (0, 1),
    map_weight: float = 10_000.0,
    out: Path | None = None,
) -> None:
    """Train with exact minutiae, with the minutiae of mindtct, and without, and compare.

    Args:
        work: Folder for prints, datasets and runs. Existing files are used.
        fingers: Fingers to train on.
        impressions: Impressions of each finger to train on.
        unseen_fingers: Held-out fingers.
        unseen_impressions: Impressions of each held-out finger.
        quality: Quality of the prints, as in `synth`.
        steps: Steps of each training.
        kinds: Kinds of minutiae to train with. `all`: those of mindtct, with unreliable ones.
        seeds: Seeds of the trainings. Each kind is trained with each seed.
        map_weight: Weight of the minutia-map loss.
        out: JSON file to write.
    """
    check_results(out)
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    write_images(work / "train", 0, fingers, impressions, quality)
    write_images(work / "unseen", HELD_OUT, unseen_fingers, unseen_impressions, quality)
    training = {kind: imported(work / "train", kind) for kind in kinds}
    unseen, found = (imported(work / "unseen", kind) for kind in ("exact", "mindtct"))
    agreed = agreement(unseen, imported(work / "unseen", "all"))
    print({least: {name: round(value, 3) for name, value in row.items()} for least, row in agreed.items()})
    runs: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    setting = {"fingers": fingers, "impressions": impressions, "quality": quality, "steps": steps}
    setting |= {"unseen_fingers": unseen_fingers, "unseen_impressions": unseen_impressions}
    facts = {"command": sys.argv, "machine": machine(torch.device("cpu")), "versions": versions()}
    results = {"mindtct_against_exact": agreed, "runs": runs, "differences": differences}
    knobs = {**NETWORK, "loss.minutia-map-weight": map_weight}
    for seed in seeds:
        scores: dict[str, Scores] = {}
        for kind in kinds:
            run = work / "runs" / f"{kind}-{seed}"
            train(training[kind], run, seed, steps, 0 if kind == "none" else map_weight)
            values, ours = measure(run, unseen, found, draws=kind != "none")
            runs.append({"minutiae": kind, "seed": seed, **values})
            differences += [difference(kind, ours, *other, seed) for other in scores.items()]
            scores[kind] = ours
            print(f"\n{table(runs)}", flush=True)
            if out is not None:  # after each training, so that a stopped run leaves results
                write_results(out, {"results": results, "setting": {**setting, "knobs": knobs}, **facts})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
