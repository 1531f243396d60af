"""One evaluation: embeddings, comparisons, error rates, files to read."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fingerprint_accel import __version__
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.durable import write_file, write_json
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.evaluation.groups import breakdown, groupings, known_nfiq2
from fingerprint_accel.evaluation.overlap import training_overlap
from fingerprint_accel.evaluation.pair_lists import read_pairs_file
from fingerprint_accel.evaluation.report import Addition, draw_pictures, model_name, report_html
from fingerprint_accel.evaluation.results import Evaluation, Rival, Rows
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.model_card import compared
from fingerprint_accel.extraction.poses import UPRIGHT, Poses
from fingerprint_accel.metrics.bootstrap import bootstrap_eer, compare_scores
from fingerprint_accel.metrics.identification import Fold, Searches, first_enrolled, half_enrolled, search
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
    r"metrics\.json|report\.html|(det|roc|cmc|scores|samples|training|sweep|before_after|recovered_pair)\.png",
    whole=False,
)


@dataclass(frozen=True)
class Extras:
    """What an evaluation does beyond the usual.

    Attributes:
        pairs: mated, and non-mated, comparisons of the protocol `sampled`; None: `SAMPLED_PAIRS`.
        seed: of that sample.
        pairs_file: list of comparisons in place of a protocol, or a benchmark of flx, also for identification.
        by: how prints are grouped, as of `groupings`.
        against: another model, for the same comparisons.
        minimum_quality: prints below count as failures to extract.
        minimum_nfiq2: prints with a lower NFIQ 2 score, or none, likewise.
        poses: compare best over the usual poses of the model, as `compare` does, in place of prints as they are.

    Raises:
        UserError: a quality or score out of range.
    """

    pairs: int | None = None
    seed: int = 0
    pairs_file: Path | None = None
    by: str = ""
    against: Path | None = None
    minimum_quality: float = 0.0
    poses: bool = False
    minimum_nfiq2: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.minimum_quality <= 1, f"--minimum-quality {self.minimum_quality}: must lie between 0 and 1")
        require(0 <= self.minimum_nfiq2 <= 100, f"--minimum-nfiq2 {self.minimum_nfiq2}: must lie between 0 and 100")

    def poses_of(self, extractor: FingerprintExtractor) -> Poses:
        """What is tried at comparison with a model."""
        return extractor.usual_poses if self.poses else UPRIGHT


@dataclass(frozen=True)
class _Plan:
    """Which comparisons and searches are made; `pairs` where a list or sample says so."""

    protocol: str
    definition: str
    pairs: Pairs | None
    closed: list[Fold]
    open: list[Fold]

    def carry_out(
        self,
        extractor: FingerprintExtractor,
        shards: Shards,
        poses: Poses,
        batch_size: int,
        extracted: np.ndarray | None,
    ) -> tuple[Scores, Searches, Searches]:
        """Embeds all prints; scores, and searches of the closed and the open set."""
        embeddings, cells = extractor.extract(shards, poses=poses, batch_size=batch_size), extractor.cells
        if self.pairs is None:
            prints = (embeddings, shards.fingers, shards.impressions)
            scores = score_protocol(self.protocol, *prints, extracted=extracted, cells=cells)
        else:
            scores = score_pairs(embeddings, self.pairs, shards.fingers, extracted, cells)
        closed = search(embeddings, shards.fingers, self.closed, extracted, cells)
        if self.open is self.closed:
            return scores, closed, closed
        return scores, closed, search(embeddings, shards.fingers, self.open, extracted, cells)


def _plan(protocol: str, shards: Shards, extras: Extras) -> _Plan:
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol named {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if extras.pairs is not None and (protocol != "sampled" or extras.pairs < 1):
        raise UserError(f"--pairs {extras.pairs}: must be at least 1, and goes with --protocol sampled")
    file, prints = extras.pairs_file, (shards.fingers, shards.impressions)
    closed, half = [first_enrolled(*prints)], [half_enrolled(*prints)]
    definition, pairs = PROTOCOLS[protocol], None
    if file is not None:
        listed = read_pairs_file(file, shards)
        if isinstance(listed, Pairs):
            return _Plan("list", f"the comparisons that {file} lists", listed, closed, half)
        closed = half = listed
        definition += f"; identification as {file} says"
    if protocol == "sampled":
        pairs = sampled_comparisons(*prints, extras.pairs or SAMPLED_PAIRS, extras.seed)
        definition += f" (seed {extras.seed})"
    return _Plan(protocol, definition, pairs, closed, half)


def evaluate(
    extractor: FingerprintExtractor, shards: Shards, protocol: str, batch_size: int = 64, extras: Extras | None = None
) -> Evaluation:
    """Embeds a dataset, compares its prints and searches them.

    Args:
        extractor: the model.
        shards: the dataset.
        protocol: a key of `PROTOCOLS`; a list of comparisons in `extras` wins.
        batch_size: prints at a time.
        extras: what else to do.

    Raises:
        UserError: the dataset does not fit a model, or has too few fingers for the protocol.
    """
    extras = extras or Extras()
    plan = _plan(protocol, shards, extras)
    names = groupings(shards, extras.by)
    other = None if extras.against is None else open_extractor(extras.against)
    poses = extras.poses_of(extractor)
    extracted = _extracted(extractor, shards, batch_size, extras)
    scores, closed, opened = plan.carry_out(extractor, shards, poses, batch_size, extracted)
    rival = None
    if extras.against is not None and other is not None:
        theirs, their_closed, _ = plan.carry_out(other, shards, extras.poses_of(other), batch_size, extracted)
        rival = Rival(model_name(extras.against), theirs, their_closed, compare_scores(scores, theirs))
    return Evaluation(
        protocol=plan.protocol,
        definition=plan.definition,
        scores=scores,
        metrics=compute_metrics(scores.mated, scores.nonmated),
        eer_interval=bootstrap_eer(scores),
        closed=closed,
        open=opened,
        failed=0 if extracted is None else int((~extracted).sum()),
        prints=len(shards),
        breakdowns=[breakdown(scores, groups, by) for by, groups in names.items()],
        overlap=training_overlap(extractor.origin, shards) if extractor.origin else None,
        rival=rival,
        poses=len(poses),
    )


def _extracted(extractor: FingerprintExtractor, shards: Shards, batch_size: int, extras: Extras) -> np.ndarray | None:
    """(N,) bool, prints good enough; None where no least quality is asked for."""
    extracted = None
    if extras.minimum_nfiq2 > 0:
        extracted = known_nfiq2(shards, f"--minimum-nfiq2 {extras.minimum_nfiq2}") >= extras.minimum_nfiq2
    if extras.minimum_quality > 0:
        good = extractor.quality(shards, batch_size=batch_size) >= extras.minimum_quality
        extracted = good if extracted is None else extracted & good
    return extracted


def _facts(extractor: FingerprintExtractor, shards: Shards, extras: Extras) -> Rows:
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
        ("compared", compared(len(extras.poses_of(extractor)))),
    ]
    if extras.minimum_quality > 0:
        rows.append(("quality", f"at least {extras.minimum_quality:g}"))
    if extras.minimum_nfiq2 > 0:
        without = int((shards.nfiq2() < 0).sum())
        rows.append(("NFIQ 2", f"at least {extras.minimum_nfiq2}; {without:,} prints have no score and count as below"))
    if extractor.cells:
        rows.append(("similarity", f"over the cells that both prints show, of {extractor.cells}"))
    if extras.against is not None:
        rows.append(("compared with", str(extras.against)))
    versions = f"fingerprint_accel {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return [*rows, ("versions", versions)]


def evaluate_command(
    model: Path,
    dataset: Path,
    protocol: str,
    out: Path,
    batch_size: int,
    extras: Extras | None = None,
    add: Callable[[FingerprintExtractor, Shards, Evaluation], Addition] | None = None,
) -> None:
    """Evaluates and writes `metrics.json`, `report.html` and its pictures into `out`; prints a table.

    `add` returns a section for the top of the report. Its table is printed in place of the usual one.

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
    addition = add(extractor, shards, evaluation) if add is not None else None
    pictures = draw_pictures(model, shards, evaluation)
    facts = _facts(extractor, shards, extras)
    values = {**evaluation.values(), "facts": dict(facts)}
    write_json(out / "metrics.json", values)
    for name in ("training", "before_after", "recovered_pair"):
        (out / f"{name}.png").unlink(missing_ok=True)  # of an earlier evaluation, where this one has none
    for name, png in [*pictures.items(), *(addition.pictures.items() if addition is not None else ())]:
        write_file(out / f"{name}.png", png)
    title = f"{model_name(model)} on {dataset.resolve().name}"
    write_file(out / "report.html", report_html(title, facts, pictures, shards, evaluation, addition))
    text = addition.text() if addition is not None else evaluation.text(groups=bool(extras.by))
    print(f"\n{text}\n\nreport: {out / 'report.html'}")
