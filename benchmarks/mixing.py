"""Measure how well batches mix fingers: mated pairs in a batch for every order of reading, against chance.

python benchmarks/mixing.py --out mixing.json

The benchmark needs no images. A batch that is drawn uniformly without replacement holds C(batch, 2) * P mated pairs on
average, with P the probability that two different prints of the dataset show the same finger. More pairs mean that an
order keeps prints of a finger together. The gradient of such a batch represents the dataset less well.

Orders: `sequential` (row by row), `block` (blocks of runs of neighbouring rows from all over the data, shuffled inside
each block), `permutation` (of all rows), `pairs` (two impressions of each finger, on purpose). Rows: `shuffled` over
fingers, as in our shards, and `sorted` by finger, the worst case. Example with fewer prints:

python benchmarks/mixing.py --prints 20000 --fingers 2500 --block-size 2048
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from results_file import check_results, write_results

from fingerprint_accel.data.order import SampleOrder, permutation
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.text import aligned

MODES = ("sequential", "block", "permutation", "pairs")
ROWS = ("shuffled", "sorted")


def expected_pairs(prints_per_finger: np.ndarray, batch: int) -> float:
    """Return the expected mated pairs of a uniform batch without replacement, for prints_per_finger (F,) int."""
    counts = prints_per_finger.astype(np.float64)
    total = counts.sum()
    return math.comb(batch, 2) * float((counts * (counts - 1)).sum() / (total * (total - 1)))


def mated_pairs(fingers: np.ndarray) -> np.ndarray:
    """Return the number (N,) int64 of mated pairs in each of N batches, from the finger (N, batch) of each print."""
    count, batch = fingers.shape
    ordered = np.sort(fingers, axis=1)
    new = np.ones((count, batch), bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    runs = np.cumsum(new.ravel()) - 1  # index of each run of equal fingers, over all batches
    lengths = np.bincount(runs)
    batch_of_run = np.flatnonzero(new.ravel()) // batch
    return np.bincount(batch_of_run, lengths * (lengths - 1) // 2, minlength=count).astype(np.int64)


def mixing(labels: np.ndarray, mode: str, batch: int, block_size: int, seed: int) -> dict[str, Any]:
    """Return the mated pairs per batch over the full batches of an epoch: mean, standard error, and maximum.

    Args:
        labels: (N,) int64 finger of each row.
        mode: One of `MODES`.
        batch: Prints in a batch, over all processes.
        block_size: Rows of a block, for `block`.
        seed: Seed of the order.
    """
    batches = len(labels) // batch
    samples = np.arange(batches * batch)
    if mode != "sequential":
        blocks, per_finger = block_size if mode == "block" else 0, 2 if mode == "pairs" else 1
        order = SampleOrder(len(labels), seed, blocks, labels, per_finger)
        samples, _ = order.take(0, batches * batch)
    pairs = mated_pairs(labels[samples].reshape(batches, batch))
    error = float(pairs.std(ddof=1) / math.sqrt(batches)) if batches > 1 else None
    return {"mean": float(pairs.mean()), "standard_error": error, "most": int(pairs.max()), "batches": batches}


def main(
    prints: int = 200_000,
    fingers: int = 25_000,
    batch: int = 256,
    block_size: int = 16_384,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Count pairs, print a table and write JSON.

    Args:
        prints: Rows of the dataset.
        fingers: Fingers, spread evenly over the rows.
        batch: Prints in a batch, over all processes.
        block_size: Rows of a block, for `block`.
        seed: Seed of the orders and of the shuffled rows.
        out: JSON file to write.
    """
    check_results(out)
    for name, value in (("prints", prints), ("fingers", fingers), ("block-size", block_size)):
        if value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if not 2 <= batch <= prints:
        raise UserError(f"--batch {batch}: must lie between 2 and --prints {prints}")
    if fingers > prints:
        raise UserError(f"--fingers {fingers}: more than --prints {prints}")
    by_finger = np.arange(prints, dtype=np.int64) * fingers // prints
    datasets = {"shuffled": by_finger[permutation(prints, seed, epoch=0, level=2)], "sorted": by_finger}
    expected = expected_pairs(np.bincount(by_finger), batch)
    rows: list[dict[str, Any]] = [
        {"rows": name, "order": mode, "expected": expected, **mixing(datasets[name], mode, batch, block_size, seed)}
        for name in ROWS
        for mode in MODES
    ]
    table = [["rows", "order", "mated pairs per batch", "standard error", "most", "by chance"]]
    for row in rows:
        error = "-" if row["standard_error"] is None else f"{row['standard_error']:.3f}"
        table.append([row["rows"], row["order"], f"{row['mean']:.3f}", error, str(row["most"]), f"{expected:.3f}"])
    print(aligned(table, 2))
    if out is not None:
        setting = {"prints": prints, "fingers": fingers, "batch": batch, "block_size": block_size, "seed": seed}
        write_results(out, {"results": rows, "setting": {**setting, "command": " ".join(sys.argv)}})
        print(f"written to {out}")


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
