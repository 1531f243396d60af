"""The evaluation of a model on a dataset, and the report that it writes.

A protocol defines which prints are compared; see `metrics.protocols`. A fold lists the references and probes of an
identification test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.evaluation.groups import breakdown, groupings, known_nfiq2
from fingerprint_accel.evaluation.intervals import Intervals
from fingerprint_accel.evaluation.overlap import training_overlap
from fingerprint_accel.evaluation.pair_lists import read_pairs_file
from fingerprint_accel.evaluation.persons import PersonRates, prints_of_persons
from fingerprint_accel.evaluation.provenance import Provenance
from fingerprint_accel.evaluation.report import Addition, draw_pictures, model_name, report_html
from fingerprint_accel.evaluation.results import Evaluation, Rival, Rows
from fingerprint_accel.evaluation.writing import FOLDER, write_evaluation
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.model_card import compared
from fingerprint_accel.extraction.poses import UPRIGHT, Poses
from fingerprint_accel.metrics.bootstrap import compare_scores
from fingerprint_accel.metrics.identification import Fold, Searches, first_enrolled, half_enrolled, search
from fingerprint_accel.metrics.persons import PersonPrints
from fingerprint_accel.metrics.protocols import PROTOCOLS, Pairs, Scores, score_pairs, score_protocol
from fingerprint_accel.metrics.sampling import sampled_comparisons
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.models.saved_model import BUNDLED
from fingerprint_accel.outputs import check_folder

SAMPLED_PAIRS = 100_000
REPORTS = Path("evaluation")
"""Parent folder of evaluations that are written without the option `--out`."""


@dataclass(frozen=True)
class Extras:
    """Optional settings of an evaluation.

    Attributes:
        pairs: largest number of mated comparisons, and of non-mated comparisons, in the protocol `sampled`. None means
            `SAMPLED_PAIRS`.
        seed: random seed of the protocol `sampled`.
        pairs_file: file with a list of comparisons, which replace the comparisons of the protocol; or a benchmark file
            of flx, another implementation of DeepPrint. See `read_pairs_file`.
        by: how to group the prints for separate error rates, as in `groupings`.
        against: another model to evaluate on the same comparisons.
        minimum_quality: a value from 0 to 1. Prints of lower quality count as failures to acquire.
        minimum_nfiq2: prints with a lower NFIQ 2 score, or without one, count as failures to acquire.
        by_person: also identify persons by several fingers.
        poses: compare prints in the usual poses of the model (rotations and shifts) and take the highest similarity, as
            `compare` does.

    Raises:
        UserError: if `minimum_quality` or `minimum_nfiq2` is out of range.
    """

    pairs: int | None = None
    seed: int = 0
    pairs_file: Path | None = None
    by: str = ""
    against: Path | None = None
    minimum_quality: float = 0.0
    poses: bool = False
    minimum_nfiq2: int = 0
    by_person: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.minimum_quality <= 1, f"--minimum-quality {self.minimum_quality}: must lie between 0 and 1")
        require(0 <= self.minimum_nfiq2 <= 100, f"--minimum-nfiq2 {self.minimum_nfiq2}: must lie between 0 and 100")

    def poses_of(self, extractor: FingerprintExtractor) -> Poses:
        """Return the poses in which a model compares prints with these settings."""
        return extractor.usual_poses if self.poses else UPRIGHT


class _Outcome(NamedTuple):
    """Similarities of the verification test, searches of both identification tests, and rates of persons or None."""

    scores: Scores
    closed: Searches
    open: Searches
    persons: PersonRates | None


@dataclass(frozen=True)
class _Plan:
    """Comparisons and searches that an evaluation makes.

    Attributes:
        protocol: name of the protocol.
        definition: description of the comparisons.
        pairs: comparisons to make; None if `score_protocol` chooses the comparisons of the protocol.
        closed: references and probes of the closed-set identification test.
        open: references and probes of the open-set identification test.
        persons: prints of persons to identify by several fingers, or None.
    """

    protocol: str
    definition: str
    pairs: Pairs | None
    closed: list[Fold]
    open: list[Fold]
    persons: PersonPrints | None

    def carry_out(
        self,
        extractor: FingerprintExtractor,
        shards: Shards,
        poses: Poses,
        batch_size: int,
        extracted: np.ndarray | None,
    ) -> _Outcome:
        """Embed all prints of a dataset, and make the comparisons and searches.

        Args:
            extractor: model that embeds the prints.
            shards: the dataset.
            poses: poses in which each print is embedded.
            batch_size: number of prints per batch.
            extracted: (N,) bool, false for prints that failed to acquire; None if none failed.
        """
        embeddings, cells = extractor.extract(shards, poses=poses, batch_size=batch_size), extractor.cells
        if self.pairs is None:
            prints = (embeddings, shards.fingers, shards.impressions)
            scores = score_protocol(self.protocol, *prints, extracted=extracted, cells=cells)
        else:
            scores = score_pairs(embeddings, self.pairs, shards.fingers, extracted, cells)
        closed = search(embeddings, shards.fingers, self.closed, extracted, cells)
        opened = closed
        if self.open is not self.closed:
            opened = search(embeddings, shards.fingers, self.open, extracted, cells)
        known = self.persons
        persons = None if known is None else PersonRates.measured(embeddings, known, extracted, cells)
        return _Outcome(scores, closed, opened, persons)


def _plan(protocol: str, shards: Shards, extras: Extras) -> _Plan:
    """Choose the comparisons and searches of an evaluation.

    Args:
        protocol: key of `PROTOCOLS`.
        shards: the dataset.
        extras: optional settings.

    Raises:
        UserError: if the protocol is unknown, if `extras.pairs` is given for another protocol than `sampled`, or if the
            list of comparisons cannot be used.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if extras.pairs is not None and (protocol != "sampled" or extras.pairs < 1):
        raise UserError(f"--pairs {extras.pairs}: must be at least 1, and needs --protocol sampled")
    file, prints = extras.pairs_file, (shards.fingers, shards.impressions)
    closed, half = [first_enrolled(*prints)], [half_enrolled(*prints)]
    definition, pairs = PROTOCOLS[protocol], None
    persons = prints_of_persons(shards) if extras.by_person else None
    if file is not None:
        listed = read_pairs_file(file, shards)
        if isinstance(listed, Pairs):
            return _Plan("list", f"the comparisons listed in {file}", listed, closed, half, persons)
        closed = half = listed
        definition += f"; identification as listed in {file}"
    if protocol == "sampled":
        pairs = sampled_comparisons(*prints, extras.pairs or SAMPLED_PAIRS, extras.seed)
        definition += f" (seed {extras.seed})"
    return _Plan(protocol, definition, pairs, closed, half, persons)


def evaluate(
    extractor: FingerprintExtractor, shards: Shards, protocol: str, batch_size: int = 64, extras: Extras | None = None
) -> Evaluation:
    """Embed the prints of a dataset, and run verification and identification tests.

    Args:
        extractor: model to evaluate.
        shards: the dataset.
        protocol: key of `PROTOCOLS`. If `extras.pairs_file` is set, the comparisons listed in this file are used
            instead.
        batch_size: number of prints per batch.
        extras: optional settings.

    Raises:
        UserError: if the dataset does not fit a model, or has too few fingers for the protocol.
    """
    extras = extras or Extras()
    plan = _plan(protocol, shards, extras)
    names = groupings(shards, extras.by)
    other = None if extras.against is None else open_extractor(extras.against)
    poses = extras.poses_of(extractor)
    extracted = _extracted(extractor, shards, batch_size, extras)
    scores, closed, opened, persons = plan.carry_out(extractor, shards, poses, batch_size, extracted)
    rival = None
    if extras.against is not None and other is not None:
        theirs, their_closed, _, _ = replace(plan, persons=None).carry_out(
            other, shards, extras.poses_of(other), batch_size, extracted
        )
        rival = Rival(model_name(extras.against), theirs, their_closed, compare_scores(scores, theirs))
    failed = np.zeros(len(shards), bool) if extracted is None else ~extracted
    return Evaluation(
        protocol=plan.protocol,
        definition=plan.definition,
        scores=scores,
        metrics=compute_metrics(scores.mated, scores.nonmated),
        closed=closed,
        open=opened,
        intervals=Intervals.measured(scores, closed, opened, failed),
        failed=int(failed.sum()),
        prints=len(shards),
        breakdowns=[breakdown(scores, groups, by) for by, groups in names.items()],
        overlap=training_overlap(extractor.origin, shards) if extractor.origin else None,
        rival=rival,
        poses=len(poses),
        persons=persons,
    )


def _extracted(extractor: FingerprintExtractor, shards: Shards, batch_size: int, extras: Extras) -> np.ndarray | None:
    """Determine which prints have the quality that the settings require.

    Args:
        extractor: model that measures the quality.
        shards: the dataset.
        batch_size: number of prints per batch.
        extras: settings with the minimum quality and the minimum NFIQ 2 score.

    Returns:
        (N,) bool, false for prints of lower quality; None if no quality is required.
    """
    extracted = None
    if extras.minimum_nfiq2 > 0:
        extracted = known_nfiq2(shards, f"--minimum-nfiq2 {extras.minimum_nfiq2}") >= extras.minimum_nfiq2
    if extras.minimum_quality > 0:
        good = extractor.quality(shards, batch_size=batch_size) >= extras.minimum_quality
        extracted = good if extracted is None else extracted & good
    return extracted


def _facts(extractor: FingerprintExtractor, shards: Shards, extras: Extras) -> Rows:
    """Return the model, the dataset and the settings of an evaluation as (name, text) rows."""
    config, preparation = extractor.model.config, extractor.preprocess_config
    window = f"{preparation.crop} of {extractor.canvas} pixels, resized to {preparation.size}"
    place = Path(extractor.origin)
    rows = [
        ("model", f"bundled model {place.name}" if place.parent == BUNDLED else extractor.origin),
        ("network", f"DeepPrint {config.variant}, {config.trunk}, {config.embedding_dim} dimensions"),
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
        rows.append(("similarity", f"over the cells that both prints show, of {extractor.cells} cells"))
    if extras.against is not None:
        rows.append(("other model", str(extras.against)))
    return rows


def default_out(model: Path, dataset: Path) -> Path:
    """Return the folder of an evaluation without the option `--out`: `evaluation/MODEL-on-DATASET`."""
    return REPORTS / f"{model_name(model)}-on-{dataset.resolve().name}"


def evaluate_command(
    model: Path,
    dataset: Path,
    protocol: str,
    out: Path | None,
    batch_size: int,
    extras: Extras | None = None,
    overwrite: bool = False,
    add: Callable[[FingerprintExtractor, Shards, Evaluation], Addition] | None = None,
) -> None:
    """Evaluate a model on a dataset, write `metrics.json`, `report.html` and pictures, and print the results.

    Args:
        model: run folder, checkpoint folder, exported model folder or bundled model.
        dataset: dataset folder.
        protocol: key of `PROTOCOLS`.
        out: folder to write; None means `default_out`.
        batch_size: number of prints per batch.
        extras: optional settings.
        overwrite: replace an existing evaluation in `out`.
        add: function that returns a section for the top of the report. The text of this section is then printed instead
            of the usual results.

    Raises:
        UserError: if `out` exists and `overwrite` is not set, or if a model, dataset or list of comparisons cannot be
            used.
    """
    out = default_out(model, dataset) if out is None else out
    check_folder(out, FOLDER, overwrite, inputs=[dataset])
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be at least 1")
    extras = extras or Extras()
    extractor = open_extractor(model)
    shards = open_dataset(dataset)
    evaluation = evaluate(extractor, shards, protocol, batch_size, extras)
    addition = add(extractor, shards, evaluation) if add is not None else None
    pictures = draw_pictures(model, shards, evaluation)
    facts = _facts(extractor, shards, extras)
    origin = Provenance.of_this_process()
    title = f"{model_name(model)} on {dataset.resolve().name}"
    page = report_html(title, [*facts, *origin.rows()], pictures, shards, evaluation, addition)
    pictures |= addition.pictures if addition is not None else {}
    files = {**{f"{name}.png": png for name, png in pictures.items()}, "report.html": page.encode()}
    values = {**origin.values(), **evaluation.values(), "facts": dict(facts)}
    write_evaluation(out, files, values, overwrite)
    text = addition.text() if addition is not None else evaluation.text(groups=bool(extras.by))
    print(f"\n{text}\n\nreport: {out / 'report.html'}")
