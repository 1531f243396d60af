"""One evaluation: embeddings, comparisons, error rates, files to read."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fingerprint_accel import __version__
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.durable import write_file
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.evaluation.against import compare_scores
from fingerprint_accel.evaluation.flx_benchmarks import identification_rows, is_identification
from fingerprint_accel.evaluation.groups import breakdown, groupings
from fingerprint_accel.evaluation.overlap import training_overlap
from fingerprint_accel.evaluation.pair_lists import read_pairs
from fingerprint_accel.evaluation.plots import draw_pictures, model_name
from fingerprint_accel.evaluation.report import report_html
from fingerprint_accel.evaluation.results import Evaluation, Identification, Rival, Rows, results_text
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.poses import UPRIGHT, Poses
from fingerprint_accel.metrics.bootstrap import bootstrap_eer
from fingerprint_accel.metrics.identification import closed_set, listed_searches, open_set
from fingerprint_accel.metrics.protocols import (
    PROTOCOLS,
    Pairs,
    Scores,
    sampled_comparisons,
    score_pairs,
    score_protocol,
)
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.outputs import FolderKind, check_folder, json_with

SAMPLED_PAIRS = 100_000
FOLDER = FolderKind(
    "a folder of an evaluation",
    json_with("metrics.json", "protocol", "eer", "definitions"),
    r"metrics\.json|report\.html|(det|roc|cmc|scores|samples|training|sweep)\.png",
    whole=False,
)


@dataclass(frozen=True)
class Extras:
    """What an evaluation does beyond the usual.

    Attributes:
        pairs: mated, and non-mated, comparisons of the protocol `sampled`; None: `SAMPLED_PAIRS`.
        seed: of that sample.
        pairs_file: list of comparisons in place of a protocol, or a benchmark of flx, also for identification.
        by: regular expression that names a print's group from its source; empty: the folders of the source.
        against: another model, for the same comparisons.
        minimum_quality: prints below count as failures to extract.
        poses: compare best over the usual poses of the model, as `compare` does, in place of prints as they are.

    Raises:
        UserError: a quality out of range.
    """

    pairs: int | None = None
    seed: int = 0
    pairs_file: Path | None = None
    by: str = ""
    against: Path | None = None
    minimum_quality: float = 0.0
    poses: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.minimum_quality <= 1, f"--minimum-quality {self.minimum_quality}: must lie between 0 and 1")

    def poses_of(self, extractor: FingerprintExtractor) -> Poses:
        """What is tried at comparison with a model."""
        return extractor.usual_poses if self.poses else UPRIGHT


@dataclass(frozen=True)
class _Plan:
    """Which comparisons and searches are made; `pairs` and `folds` where a list or sample says so."""

    protocol: str
    definition: str
    pairs: Pairs | None = None
    folds: list[tuple[np.ndarray, np.ndarray]] | None = None

    def scores(self, embeddings: np.ndarray, shards: Shards, extracted: np.ndarray | None, cells: int) -> Scores:
        if self.pairs is not None:
            return score_pairs(embeddings, self.pairs, shards.fingers, extracted, cells=cells)
        prints = (embeddings, shards.fingers, shards.impressions)
        return score_protocol(self.protocol, *prints, extracted=extracted, cells=cells)

    def searches(
        self, embeddings: np.ndarray, shards: Shards, extracted: np.ndarray | None, cells: int
    ) -> Identification:
        if self.folds is not None:
            found = listed_searches(embeddings, shards.fingers, self.folds, extracted, cells)
            return Identification(found, found)
        prints = (embeddings, shards.fingers, shards.impressions, extracted)
        return Identification(closed_set(*prints, cells=cells), open_set(*prints, cells=cells))


def _plan(protocol: str, shards: Shards, extras: Extras) -> _Plan:
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol named {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if extras.pairs is not None and (protocol != "sampled" or extras.pairs < 1):
        raise UserError(f"--pairs {extras.pairs}: must be at least 1, and goes with --protocol sampled")
    file, pairs, folds = extras.pairs_file, None, None
    definition = PROTOCOLS[protocol]
    if file is not None and file.suffix.lower() == ".json" and is_identification(file):
        folds = identification_rows(file, shards)
        definition += f"; identification as {file} says"
    elif file is not None:
        return _Plan("list", f"the comparisons that {file} lists", read_pairs(file, shards))
    if protocol == "sampled":
        pairs = sampled_comparisons(shards.fingers, shards.impressions, extras.pairs or SAMPLED_PAIRS, extras.seed)
        definition += f" (seed {extras.seed})"
    return _Plan(protocol, definition, pairs, folds)


def evaluate(
    extractor: FingerprintExtractor,
    shards: Shards,
    protocol: str,
    batch_size: int = 64,
    extras: Extras | None = None,
    extracted: np.ndarray | None = None,
) -> Evaluation:
    """Embeds a dataset, compares its prints and searches them.

    Args:
        extractor: the model.
        shards: the dataset.
        protocol: a key of `PROTOCOLS`; a list of comparisons in `extras` wins.
        batch_size: prints at a time.
        extras: what else to do.
        extracted: (N,) bool, False for prints that count as failures to extract, besides those of low quality.

    Raises:
        UserError: the dataset does not fit a model, or has too few fingers for the protocol.
    """
    extras = extras or Extras()
    plan = _plan(protocol, shards, extras)
    names = groupings(shards, extras.by)
    other = None if extras.against is None else open_extractor(extras.against)
    poses = extras.poses_of(extractor)
    embeddings = extractor.extract(shards, poses=poses, batch_size=batch_size)
    if extras.minimum_quality > 0:
        good = extractor.quality(shards, batch_size=batch_size) >= extras.minimum_quality
        extracted = good if extracted is None else extracted & good
    scores = plan.scores(embeddings, shards, extracted, extractor.cells)
    rival = None
    if other is not None:
        theirs = other.extract(shards, poses=extras.poses_of(other), batch_size=batch_size)
        their_scores = plan.scores(theirs, shards, extracted, other.cells)
        rival = Rival(
            model_name(extras.against or Path()),
            their_scores,
            plan.searches(theirs, shards, extracted, other.cells).closed,
            compare_scores(scores, their_scores),
        )
    return Evaluation(
        protocol=plan.protocol,
        definition=plan.definition,
        scores=scores,
        metrics=compute_metrics(scores.mated, scores.nonmated),
        eer_interval=bootstrap_eer(scores),
        identification=plan.searches(embeddings, shards, extracted, extractor.cells),
        failed=0 if extracted is None else int((~extracted).sum()),
        prints=len(shards),
        breakdowns=[breakdown(scores, groups, by) for by, groups in names.items()],
        overlap=training_overlap(extractor.origin, shards) if extractor.origin else None,
        rival=rival,
        poses=len(poses),
    )


def _facts(extractor: FingerprintExtractor, shards: Shards, extras: Extras) -> Rows:
    tried = len(extras.poses_of(extractor))
    config, preparation = extractor.model.config, extractor.preprocess_config
    window = f"{preparation.crop} of {extractor.canvas} pixels, seen at {preparation.size}"
    rows = [
        ("model", extractor.origin),
        ("network", f"DeepPrint {config.variant}, {config.trunk}, {config.embedding_dim} numbers"),
        ("preparation", f"{window}{', ridges enhanced' if preparation.enhance or extractor.enhanced else ''}"),
        ("dataset", str(shards.folder)),
        ("prints", f"{len(shards):,}"),
        ("fingers", f"{shards.info.fingers:,}"),
        ("ppi", f"{shards.info.ppi}"),
        ("compared", f"best of {tried} poses" if tried > 1 else "as they are"),
    ]
    if extractor.cells:
        rows.append(("similarity", f"over the cells that both prints show, of {extractor.cells}"))
    if extras.against is not None:
        rows.append(("compared with", str(extras.against)))
    versions = f"fingerprint_accel {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return [*rows, ("versions", versions)]


def evaluate_command(
    model: Path, dataset: Path, protocol: str, out: Path, batch_size: int, extras: Extras | None = None
) -> None:
    """Evaluates and writes `metrics.json`, `report.html` and its pictures into `out`; prints a table.

    Raises:
        UserError: a model, dataset or list that cannot be used.
    """
    check_folder(out, FOLDER, inputs=[dataset])
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be at least 1")
    extras = extras or Extras()
    extractor = open_extractor(model)
    shards = open_dataset(dataset)
    evaluation = evaluate(extractor, shards, protocol, batch_size, extras)
    pictures = draw_pictures(model, shards, evaluation)
    facts = _facts(extractor, shards, extras)
    values = {**evaluation.values(), "facts": dict(facts)}
    write_file(out / "metrics.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
    (out / "training.png").unlink(missing_ok=True)  # of an earlier evaluation, where this one has none
    for name, png in pictures.items():
        write_file(out / f"{name}.png", png)
    title = f"{model_name(model)} on {dataset.resolve().name}"
    write_file(out / "report.html", report_html(title, facts, pictures, shards, evaluation))
    print(f"\n{results_text(evaluation, groups=bool(extras.by))}\n\nreport: {out / 'report.html'}")
