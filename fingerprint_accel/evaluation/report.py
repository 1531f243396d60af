"""The report page: one HTML file with everything inside."""

from __future__ import annotations

import html

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.evaluation.page import STYLE, embedded, extreme_pairs, section, side_by_side, table
from fingerprint_accel.evaluation.results import Evaluation, Rows, at_threshold, finite, percent
from fingerprint_accel.evaluation.tables import difference_table, group_table, group_title, sweep_table, sweep_title
from fingerprint_accel.metrics.identification import FPIRS
from fingerprint_accel.metrics.verification import DEFINITIONS

SYNTHETIC = (
    "These prints are synthetic: the numbers compare models and settings; they are not accuracies on real fingers."
)


def is_synthetic(shards: Shards) -> bool:
    """Whether the first prints say that they were made, not taken: a `source` that starts with "synthetic"."""
    return all(source.startswith("synthetic") for source in shards.table["source"].slice(0, 100).to_pylist())


def _cards(evaluation: Evaluation) -> str:
    """The numbers to remember."""
    metrics, identification = evaluation.metrics, evaluation.identification
    low, high = evaluation.eer_interval
    cards = [
        ("EER", percent(metrics.eer), f"95 %: {percent(low)} to {percent(high)}; {_threshold(metrics.eer_threshold)}")
    ]
    if metrics.fnmr_at_fmr:
        fmr, fnmr = next(
            (fmr, fnmr)
            for fmr, fnmr in reversed(metrics.fnmr_at_fmr.items())
            if fmr >= 1e-3 or len(metrics.fnmr_at_fmr) == 1
        )
        more = f"{_threshold(metrics.thresholds[fmr])}; {metrics.nonmated:,} non-mated comparisons"
        cards.append((f"FNMR at FMR {100 * fmr:g} %", percent(fnmr), more))
    closed = identification.closed
    among = f"{int(closed.is_mated.sum()):,} searches among {closed.enrolled:,}"
    cards.append(("rank-1 identification", percent(closed.identified(1)), among))
    found = next(((fpir, *each) for fpir in FPIRS if (each := identification.open.fnir(fpir)) is not None), None)
    if found is not None:
        fpir, fnir, threshold = found
        more = f"{_threshold(threshold)}; {identification.open.enrolled:,} fingers enrolled"
        cards.append((f"FNIR at FPIR {100 * fpir:g} %", percent(fnir), more))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><span>{name}</span><b>{value}</b><span>{more}</span></div>'
            for name, value, more in cards
        )
        + "</div>"
    )


def _threshold(value: float) -> str:
    shown = finite(value)
    return "no threshold" if shown is None else f"threshold {shown:.3f}"


def _notes(shards: Shards, evaluation: Evaluation) -> str:
    notes = f'<p class="note">{SYNTHETIC}</p>' if is_synthetic(shards) else ""
    overlap = evaluation.overlap
    if overlap is not None and overlap.found:
        notes += f'<p class="warning">{html.escape(overlap.sentence())}</p>'
    return notes


def _verification(evaluation: Evaluation) -> str:
    low, high = evaluation.eer_interval
    rows = [
        ("EER", at_threshold(evaluation.metrics.eer, evaluation.metrics.eer_threshold)),
        ("EER, 95 % interval over fingers", f"{percent(low)} to {percent(high)}"),
        *evaluation.fnmr_rows(),
        evaluation.zero_fmr_row(),
        *evaluation.other_rows(),
    ]
    identification = evaluation.identification.rows()
    if evaluation.overlap is not None:
        identification.append(("in common with training data", evaluation.overlap.sentence()))
    return side_by_side("<h2>Verification</h2>" + table(rows), "<h2>Identification</h2>" + table(identification))


def report_html(title: str, facts: Rows, pictures: dict[str, bytes], shards: Shards, evaluation: Evaluation) -> str:
    """The page.

    Args:
        title: on top.
        facts: what was evaluated, name and value.
        pictures: PNG files as `pictures.draw_pictures` makes them.
        shards: dataset, for pictures of the hardest comparisons.
        evaluation: what was found.
    """

    def picture(name: str, alt: str) -> str:
        return f'<img src="{embedded(pictures[name])}" alt="{alt}">' if name in pictures else ""

    scores, rival, sweep = evaluation.scores, evaluation.rival, evaluation.sweep
    curves = side_by_side(
        picture("det", "DET curve"),
        picture("roc", "ROC curve"),
        picture("scores", "score histogram"),
        picture("cmc", "CMC curve"),
    )
    groups = "".join(
        f"<p>{html.escape(group_title(part))}</p>{table(group_table(part), True)}" for part in evaluation.breakdowns
    )
    definitions = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in DEFINITIONS.items())
    sections = [
        section("Curves", curves),
        f"<section>{_verification(evaluation)}</section>",
        section(f"Against {rival.name}", table(difference_table(rival), True)) if rival else "",
        section(
            "Turned and shifted probes",
            side_by_side(
                f"<p>{sweep_title(sweep)} of {sweep.prints:,} prints. Lines: largest turn; columns: largest shift.</p>"
                + table(sweep_table(sweep), True),
                picture("sweep", "EER over turn"),
            ),
        )
        if sweep
        else "",
        section("Groups", groups),
        section("Training", picture("training", "loss and validation EER over steps")),
        section(
            "Samples of the evaluated data",
            "<p>One row per finger, one column per impression.</p>",
            picture("samples", "prints of some fingers"),
        ),
        section("Least similar prints of one finger", extreme_pairs(shards, scores.pairs.mated, scores.mated, False)),
        section(
            "Most similar prints of different fingers",
            extreme_pairs(shards, scores.pairs.nonmated, scores.nonmated, True),
        ),
        section(
            "What was evaluated",
            table(facts),
            f"<p>Protocol {html.escape(evaluation.protocol)}: {html.escape(evaluation.definition)}.</p>",
        ),
        section("Definitions", f"<dl>{definitions}</dl>"),
    ]
    size = f"{evaluation.prints:,} prints of {shards.info.fingers:,} fingers"
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{html.escape(title)}</title>
<style>{STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>
<p class="sub">{size}, protocol {html.escape(evaluation.protocol)}</p>
{_notes(shards, evaluation)}{_cards(evaluation)}
{"".join(sections)}</main></body></html>
"""
