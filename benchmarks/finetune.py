"""Fine-tune on half of the fingers of real sets, and test on the other half.

python benchmarks/finetune.py --data FOLDER --out finetune.json

FOLDER holds the sets of `benchmarks/real_sets.py`. One run trains on the first half of the fingers of every set. The
other fingers are compared within their set, before and after. This is a demonstration: released models never see these
fingers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import machine, versions
from real_sets import SETS, mean_of_real
from results_file import check_results, write_results
from shard_writer import ShardWriter

from fingerprint_accel import FingerprintExtractor
from fingerprint_accel.data.listing import list_files
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.templates import NO_MINUTIAE
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "finetune.py"
Prints = dict[str, tuple[list[np.ndarray], np.ndarray, np.ndarray]]  # canvases, fingers, impressions, by set


def read_sets(extractor: FingerprintExtractor, data: Path) -> Prints:
    """Read every print of the available sets, on the model's canvas."""
    found: Prints = {}
    for name, known in SETS.items():
        if (data / name).is_dir():
            table = list_files(data / name, "fvc").table.to_pydict()
            canvases = [extractor.on_canvas(data / name / path, known.ppi) for path in table["path"]]
            fingers = np.unique(table["finger_key"], return_inverse=True)[1]
            found[name] = canvases, fingers, np.asarray(table["impression"])
    if not found:
        raise UserError(f"{data}: holds none of {', '.join(SETS)}")
    return found


def is_for_training(fingers: np.ndarray) -> np.ndarray:
    """Return which prints (N,) bool belong to the first half of a set's fingers."""
    return fingers < (fingers.max() + 1) // 2


def write_training_half(prints: Prints, out: Path, extractor: FingerprintExtractor) -> int:
    """Write a dataset folder and return its number of fingers."""
    with ShardWriter(out, extractor.ppi, extractor.canvas) as writer:
        for name, (canvases, fingers, impressions) in prints.items():
            for row in np.flatnonzero(is_for_training(fingers)):
                key = f"{name}/{fingers[row]}"
                writer.add(Record(canvases[row], key, int(impressions[row]), name, NO_MINUTIAE))
    return open_dataset(out).info.fingers


@torch.inference_mode()
def test_rates(extractor: FingerprintExtractor, prints: Prints) -> dict[str, float]:
    """Return the EER of the other fingers of each set, best over poses."""
    rates = {}
    for name, (canvases, fingers, impressions) in prints.items():
        rows = np.flatnonzero(~is_for_training(fingers))
        images = torch.from_numpy(np.stack([canvases[row] for row in rows]))
        embeddings = torch.cat([extractor(part, extractor.usual_poses) for part in images.split(20)]).numpy()
        scores = score_protocol("all-pairs", embeddings, fingers[rows], impressions[rows], cells=extractor.cells)
        rates[name] = compute_metrics(scores.mated, scores.nonmated).eer
    return rates


def main(data: Path, out: Path | None = None) -> None:
    """Fine-tune the bundled model on half of the fingers of real sets, and test it on the others.

    Args:
        data: Folder with the sets.
        out: JSON file to write.
    """
    check_results(out)
    before = FingerprintExtractor.from_pretrained("small")
    prints = read_sets(before, data)
    with tempfile.TemporaryDirectory() as folder:
        half, run = Path(folder) / "half", Path(folder) / "run"
        fingers = write_training_half(prints, half, before)
        words = ["--data", str(half), "--out", str(run), "--reading.validation-fraction", "0"]
        subprocess.run([sys.executable, str(RECIPE), *words], check=True)
        after = FingerprintExtractor.from_pretrained(run)
        rates = {"before": test_rates(before, prints), "after": test_rates(after, prints)}
    print(f"\ntrained on {fingers} fingers; EER of the others\n{'set':<22}  before   after")
    for name in prints:
        print(f"{SETS[name].title:<22}  {rates['before'][name]:>6.2%}  {rates['after'][name]:>6.2%}")
    means = {when: mean_of_real(found) for when, found in rates.items()}
    print(f"{'mean of real sets':<22}  {means['before']:>6.2%}  {means['after']:>6.2%}")
    if out:
        facts = {"mean": means, "fingers": fingers, "command": sys.argv, "machine": machine(torch.device("cpu"))}
        write_results(out, {"results": rates, **facts, "versions": versions()})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
