"""The verb `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional


def evaluate(
    model: Positional[Path],
    dataset: Positional[Path],
    protocol: Literal["fvc", "all-pairs", "sampled"] = "all-pairs",
    out: Path = Path("evaluation"),
    pairs: int | None = None,
    seed: int = 0,
    pairs_file: Path | None = None,
    against: Path | None = None,
    minimum_quality: float = 0.0,
    poses: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    by: str = "",
    batch_size: int = 64,
) -> None:
    """Measures the error rates of a model on a dataset; writes metrics.json, plots and report.html.

    Verification (EER, FNMR at FMR), identification in a closed and an open set, and whether the model was trained on
    these prints. The page also breaks error rates down by what the `source` of the prints tells.

    fingerprint-accel evaluate runs/quickstart datasets/db1 --protocol fvc --out evaluation/db1

    fingerprint-accel evaluate runs/b datasets/db1 --against runs/a

    fingerprint-accel evaluate small datasets/db1 --pairs-file comparisons.csv

    fingerprint-accel evaluate small datasets/db1 --by '^[^/]+'

    Args:
        model: Run folder (its best checkpoint), checkpoint folder, exported model folder, or bundled model.
        dataset: Dataset folder.
        protocol: fvc: every pair of a finger, first against first of other fingers. all-pairs: every pair. sampled:
            some of all pairs, every finger equally often, for large sets.
        out: Folder to write.
        pairs: Of `sampled`: mated comparisons, and as many non-mated ones; default 100,000.
        seed: Of `sampled`.
        pairs_file: Comparisons to make in place of a protocol: a csv with the columns reference,probe[,mated] that
            names prints FINGER/IMPRESSION or by their source, or a benchmark of flx (.json).
        against: Another model, for the same comparisons: is the difference more than chance?
        minimum_quality: Prints below, 0 to 1, count as failures to extract: they never match.
        poses: Compare as `compare` does: every print turned and shifted in 45 ways, the best agreement counts. Takes 45
            times as long to embed, and 0.2 MB of memory per print.
        by: Regular expression whose first group, searched in the source of a print, names its group; the error rates
            of groups are printed. Default: folders of the source, on the page only.
        batch_size: Prints at a time.
    """
    from fingerprint_accel.evaluation.run import Extras, evaluate_command

    extras = Extras(pairs, seed, pairs_file, by, against, minimum_quality, poses)
    evaluate_command(model, dataset, protocol, out, batch_size, extras)
