"""Compare a model before and after fine-tuning, and NIST's matcher, on prints of fingers outside the training data.

NIST's matcher NBIS finds minutiae with mindtct and compares them with Bozorth3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.history import Columns, draw_eer, find_run, read_history
from fingerprint_accel.evaluation.nbis_scores import nbis_scores
from fingerprint_accel.evaluation.plots import BLUE, GREEN, ORANGE, as_png, det_points, show_percent, style_axes
from fingerprint_accel.evaluation.rates import percent
from fingerprint_accel.evaluation.report import Addition
from fingerprint_accel.evaluation.results import Evaluation
from fingerprint_accel.extraction.comparison import compare_canvases
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.pair_picture import pair_png
from fingerprint_accel.extraction.poses import UPRIGHT
from fingerprint_accel.metrics.bootstrap import bootstrap_eer
from fingerprint_accel.metrics.curve import resolvable, sorted_curve
from fingerprint_accel.metrics.protocols import Pairs, Scores
from fingerprint_accel.metrics.sampling import sampled_comparisons
from fingerprint_accel.metrics.verification import SENSIBLE, compute_metrics

TITLE = "Before and after training"
BEFORE, AFTER, NBIS = "before training", "after training", "NBIS (mindtct, bozorth3)"
COLORS = {BEFORE: ORANGE, AFTER: BLUE, NBIS: GREEN}
NBIS_FINGERS, NBIS_COMPARISONS = 50, 1000  # sample: fingers, and comparisons of each kind (mated and non-mated)
NBIS_SECONDS = 30.0  # NBIS is left out if comparing its sample would take longer
SHOWN_FMRS = (1e-2, 1e-3)
PAIR_FMR = 1e-3  # FMR of the thresholds before and after training, for `recovered_pair`
SIZE = (11.2, 4.8)  # inches


def before_after(
    model: Path, extractor: FingerprintExtractor, shards: Shards, evaluation: Evaluation, progress: bool = True
) -> Addition:
    """Create a report section that compares the model before training, the model after training, and NBIS.

    To pass this function to `evaluate_command` as the argument `add`, bind `model` with `functools.partial`.

    Args:
        model: Path of the trained model: its run folder, or a model folder in the run folder. The validation EERs are
            read from the run folder.
        extractor: The trained model.
        shards: Test prints.
        evaluation: Results of the trained model on the test prints. The attribute `rival` contains the results of the
            model before training. If `rival` is None, the section has no results before training.
        progress: Show a progress bar.

    Returns:
        Section with a table of error rates and a plot. If there are results before training, the section may also
        contain a picture of two prints of one finger that only the trained model accepts as a match.
    """
    methods = {AFTER: evaluation.scores}
    if evaluation.rival is not None:
        methods = {BEFORE: evaluation.rival.scores, **methods}
    lines = []
    fingers = np.unique(shards.fingers)[:NBIS_FINGERS]
    try:
        methods[NBIS] = nbis_scores(shards, pairs_of(shards, fingers, NBIS_COMPARISONS), NBIS_SECONDS, progress)
        lines.append(f"NBIS compares a sample: pairs of {len(fingers)} of the {shards.info.fingers} fingers.")
    except UserError as error:
        lines.append(f"NBIS is left out: {error}.")
    run = find_run(model)
    recorded = run is not None and (run / "metrics.jsonl").is_file()
    validation = read_history(run / "metrics.jsonl")[1] if run is not None and recorded else None
    pictures = {"before_after": before_after_png(methods, validation)}
    if evaluation.rival is not None:
        found = recovered_pair(evaluation.rival.scores, evaluation.scores)
        lines.append(found.sentence())
        if found.place is not None:
            pictures["recovered_pair"] = _pair_png(found, extractor, shards, evaluation.scores.pairs.mated[found.place])
    return Addition(TITLE, rate_table(methods), lines, pictures)


def pairs_of(shards: Shards, fingers: np.ndarray, count: int) -> Pairs:
    """Return a sample of up to `count` mated and `count` non-mated comparisons of prints of the given fingers."""
    rows = np.flatnonzero(np.isin(shards.fingers, fingers))
    pairs = sampled_comparisons(shards.fingers[rows], shards.impressions[rows], count)
    return Pairs(rows[pairs.mated], rows[pairs.nonmated], pairs.nonmated_possible)


def rate_table(methods: dict[str, Scores]) -> list[tuple[str, ...]]:
    """Return a table of error rates: a header, and a row for each method with its EER and its FNMR at two FMRs.

    A row also contains the 95 % interval of the EER and the numbers of comparisons. An FNMR is replaced by a dash if
    there are too few non-mated comparisons for at least ten false matches at this FMR.

    Args:
        methods: Dictionary from the name of each method to its scores.
    """
    rates = tuple(f"FNMR at FMR {100 * fmr:g} %" for fmr in SHOWN_FMRS)
    rows: list[tuple[str, ...]] = [("", "EER", "95 % interval", *rates, "mated + non-mated comparisons")]
    for name, scores in methods.items():
        metrics = compute_metrics(scores.mated, scores.nonmated)
        low, high = map(percent, bootstrap_eer(scores))
        fnmr = (
            percent(metrics.fnmr_at_fmr[fmr]) if resolvable(fmr / SENSIBLE, metrics.nonmated) else "-"
            for fmr in SHOWN_FMRS
        )
        counts = f"{metrics.mated:,} + {metrics.nonmated:,}"
        rows.append((name, percent(metrics.eer), f"{low} to {high}", *fnmr, counts))
    return rows


def before_after_png(methods: dict[str, Scores], validation: Columns | None) -> bytes:
    """Plot the DET curves of all methods, and the validation EER over training steps, side by side in a PNG file.

    Args:
        methods: Dictionary from the name of each method to its scores.
        validation: Columns `step` and `eer` of the validation records, from `read_history`. None leaves out the second
            plot.
    """
    validated = validation is not None and bool(np.isfinite(validation["eer"]).any())
    figure = Figure(figsize=SIZE if validated else (SIZE[0] / 2, SIZE[1]), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 2 if validated else 1, squeeze=False)[0]
    _draw_det(panels[0], methods)
    if validated and validation is not None:
        draw_eer(panels[1], validation)
        panels[1].set(xlabel="optimizer step", xlim=(-0.02 * validation["step"].max(), 1.02 * validation["step"].max()))
        panels[1].xaxis.set_major_locator(MaxNLocator(7, integer=True))
        style_axes(panels[1])
    return as_png(figure)


def _draw_det(axes: Axes, methods: dict[str, Scores]) -> None:
    """Draw the DET curve of each method, and mark the EER on each curve by a dot."""
    lowest_fmr, lowest_fnmr = 1.0, 1.0
    for name, scores in methods.items():
        fmr, fnmr = det_points(scores)
        eer = sorted_curve(scores.mated, scores.nonmated).eer()[0]
        axes.step(fmr, fnmr, where="post", linewidth=1.8, color=COLORS[name], label=f"{name}: EER {percent(eer)}")
        if eer > 0:
            axes.plot(eer, eer, "o", color=COLORS[name], zorder=3)
        lowest_fmr, lowest_fnmr = min(lowest_fmr, fmr.min()), min(lowest_fnmr, fnmr[fmr < 1].min(initial=1.0))
    diagonal = [max(lowest_fmr, lowest_fnmr), 1]
    axes.plot(diagonal, diagonal, color="0.7", linestyle="--", linewidth=1, zorder=0, label="FNMR = FMR")
    axes.set(xscale="log", yscale="log", xlim=(lowest_fmr, 1), ylim=(min(0.8 * lowest_fnmr, 0.1), 1))
    axes.set(xlabel="false match rate", ylabel="false non-match rate", title="Unseen fingers: DET curves")
    for axis in (axes.xaxis, axes.yaxis):
        show_percent(axis)
    style_axes(axes)
    axes.legend(frameon=False, loc="lower left")


@dataclass(frozen=True)
class Recovered:
    """Mated comparisons that are rejected before training and accepted after training, or the reverse.

    Attributes:
        place: Index of the comparison, among the mated comparisons, that training changed most clearly from rejected to
            accepted; None if training changed no comparison in this way.
        similarities: Similarities of the comparison `place` before and after training; undefined if `place` is None.
        thresholds: Thresholds of the model before training and of the model after training.
        fmr: FMR of both models at their thresholds.
        gained: Number of mated comparisons that only the trained model accepts.
        lost: Number of mated comparisons that only the model before training accepts.
    """

    place: int | None
    similarities: tuple[float, float]
    thresholds: tuple[float, float]
    fmr: float
    gained: int
    lost: int

    def sentence(self) -> str:
        """Describe the numbers of gained and lost comparisons in one or two sentences."""
        at = f"At FMR {100 * self.fmr:g} %,"
        if self.place is None:
            return f"{at} no mated pair that was rejected before training is accepted after it."
        return (
            f"{at} {self.gained:,} mated pairs that were rejected before training are accepted after it. "
            f"The reverse holds for {self.lost:,}."
        )


def recovered_pair(before: Scores, after: Scores) -> Recovered:
    """Find the mated comparison that training changed most clearly from rejected to accepted, and count such changes.

    Each model has its own threshold, at the same FMR. The margin of a model is the absolute difference between
    similarity and threshold. Among the comparisons that changed from rejected to accepted, the function chooses the one
    for which the smaller margin of the two models is largest.

    Args:
        before: Scores of the model before training.
        after: Scores of the same comparisons, from the model after training.
    """
    fmr = PAIR_FMR if resolvable(PAIR_FMR, len(after.nonmated)) else 0.1
    low, high = (sorted_curve(scores.mated, scores.nonmated).threshold_at_fmr(fmr) for scores in (before, after))
    was, is_now = before.mated >= low, after.mated >= high
    gained = ~was & is_now
    margin = np.where(gained, np.minimum(low - before.mated, after.mated - high), -np.inf)
    best = int(margin.argmax())
    similarities = float(before.mated[best]), float(after.mated[best])
    place = best if gained[best] else None
    return Recovered(place, similarities, (low, high), fmr, int(gained.sum()), int((was & ~is_now).sum()))


def _pair_png(found: Recovered, extractor: FingerprintExtractor, shards: Shards, rows: np.ndarray) -> bytes:
    """Draw the two prints of the comparison that `recovered_pair` found, as a PNG file.

    The picture also shows the similarities and thresholds before and after training.

    Args:
        found: Result of `recovered_pair`; `place` must not be None.
        extractor: The trained model.
        shards: Dataset of the prints.
        rows: (2,) rows of the two prints in the dataset.
    """
    compared = compare_canvases(extractor, np.stack([shards.image(row) for row in rows.tolist()]), UPRIGHT)
    low, high = found.thresholds
    compared = dataclasses.replace(
        compared,
        verdicts=[(BEFORE, f"no match (threshold {low:.3f})"), (AFTER, f"match (threshold {high:.3f})")],
        basis=f"thresholds at FMR {100 * found.fmr:g} % of the non-mated comparisons of the test prints",
    )
    was, is_now = found.similarities
    reference, probe = (f"{shards.key_of_finger[shards.fingers[row]]}/{shards.impressions[row]}" for row in rows)
    heading = f"similarity {was:.3f} {BEFORE}, {is_now:.3f} {AFTER}"
    return pair_png(compared, (reference, probe), extractor, heading)
