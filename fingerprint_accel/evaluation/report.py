"""The report page of an evaluation: one HTML file with embedded images."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fingerprint_accel.data.inspection import contact_sheet
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.evaluation.history import find_run, training_png
from fingerprint_accel.evaluation.plots import cmc_png, curve_pngs, fnir_png, histogram_png
from fingerprint_accel.evaluation.rates import HEADER, percent, threshold_text
from fingerprint_accel.evaluation.results import Evaluation, Rows
from fingerprint_accel.metrics.identification import FPIRS
from fingerprint_accel.metrics.verification import DEFINITIONS
from fingerprint_accel.text import aligned

STYLE = """
:root{--ink:#1d2733;--soft:#5b6875;--line:#dde3ea;--blue:#0072B2}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:var(--ink);
background:#f4f6f8;margin:0;overflow-wrap:anywhere}
main{max-width:66rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.6rem;margin:.2rem 0 .1rem}h2{font-size:1.1rem;margin:0 0 .6rem}.sub{color:var(--soft);margin:0 0 1rem}
section{background:#fff;border:1px solid var(--line);border-radius:8px;padding:1rem 1.2rem;margin:1rem 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(11rem,100%),1fr));gap:.8rem;margin:1rem 0}
.card{background:#fff;border:1px solid var(--line);border-radius:8px;padding:.7rem 1rem}
.card b{display:block;font-size:1.7rem;line-height:1.2;color:var(--blue);font-weight:650}
.card span{display:block;color:var(--soft);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:1rem}
.grid>div{min-width:0}img{max-width:100%;height:auto;display:block}.grid>div>img{width:100%}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;max-width:46rem}table.wide{max-width:none}
td,th{padding:.28rem .8rem .28rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}th{color:var(--soft);font-weight:600;font-size:13px}
td:first-child{width:14rem}
td:first-child,.rates td,.rates th{white-space:nowrap}.scroll+.scroll{margin-top:1rem}
td.n,th.n{text-align:right;padding-right:0;padding-left:.8rem;font-variant-numeric:tabular-nums}
.note{background:#fff6dd;border-left:4px solid #E69F00;padding:.5rem .8rem;border-radius:4px}
.warning{background:#fdeae3;border-left:4px solid #D55E00;padding:.5rem .8rem;border-radius:4px}
figure{margin:0;min-width:0}figure div{display:flex;gap:.4rem}
figure img{width:calc(50% - .2rem);border:1px solid var(--line);border-radius:4px}
figcaption{font-size:13px;color:var(--soft);margin-top:.2rem}
dt{font-weight:600}dd{margin:0 0 .5rem;color:var(--soft)}p{margin:.4rem 0}
@media(max-width:40rem){main{padding:1rem .5rem}section{padding:.8rem}table{font-size:13px}
td,th{padding-right:.4rem}td.n,th.n{padding-left:.4rem}td:first-child{width:35%;white-space:normal}
.rates td,.rates th{white-space:normal;overflow-wrap:normal}.rates td:first-child{width:auto}}
"""
SHOWN = 4
THUMBNAIL = 240  # pixels
SAMPLED_FINGERS, SAMPLED_IMPRESSIONS = 4, 4
SAMPLES_WIDTH = 1280  # pixels, at most; the page is about 1000 wide


def model_name(model: Path) -> str:
    """Return a short name of a model: the name of its folder, or of the run folder that contains it.

    For example, `RUN/model` is called "RUN", and `RUN/checkpoints/step-00000100` is called "RUN-step-00000100".
    """
    place = Path(os.path.abspath(model))  # noqa: PTH100  (without `..`, but links keep their names)
    if place.parent.name == "checkpoints":
        return f"{place.parents[1].name}-{place.name}"
    return place.parent.name if place.name == "model" else place.name


def draw_pictures(model: Path, shards: Shards, evaluation: Evaluation) -> dict[str, bytes]:
    """Draw the pictures of the report as PNG files.

    Args:
        model: path of the evaluated model.
        shards: the dataset, from which sample prints are shown.
        evaluation: results to show.

    Returns:
        Files by name: `det`, `roc`, `scores`, `cmc` and `samples`; `persons_det` and `persons_cmc` if persons were
            identified; and `training` if the model belongs to a run with training records.
    """
    name, rival = model_name(model), evaluation.rival
    scores, closed = {name: evaluation.scores}, {name: evaluation.closed}
    if rival is not None:
        other = rival.name if rival.name != name else f"{name} (other model)"
        scores[other], closed[other] = rival.scores, rival.closed
    sheet = contact_sheet(shards, SAMPLED_FINGERS, columns=SAMPLED_IMPRESSIONS).convert("L")
    sheet.thumbnail((SAMPLES_WIDTH, 4 * SAMPLES_WIDTH))
    pictures = {
        **curve_pngs(scores, evaluation.metrics),
        "scores": histogram_png(evaluation.scores, evaluation.metrics),
        "cmc": cmc_png(closed),
        "samples": _png(sheet),
    }
    if evaluation.persons is not None:
        named = {f"{each.fingers} finger{'s' * (each.fingers > 1)}": each for each in evaluation.persons.searches}
        pictures["persons_cmc"] = cmc_png({label: each.closed for label, each in named.items()})
        if evaluation.persons.has_curves():
            pictures["persons_det"] = fnir_png({label: each.open for label, each in named.items()})
    run = find_run(model)
    training = training_png(run / "metrics.jsonl") if run and (run / "metrics.jsonl").is_file() else None
    return {**pictures, "training": training} if training else pictures


def _png(image: Image.Image) -> bytes:
    """Encode an image as the contents of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def embedded(png: bytes) -> str:
    """Return a data URL that contains a PNG file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def table(rows: Sequence[tuple[str, ...]], header: bool = False) -> str:
    """Format rows of cells as an HTML table.

    Args:
        rows: cells of each row.
        header: whether the first row is the header. All columns but the first then contain numbers and are aligned
            right.
    """
    align = " class=n" if header else ""
    lines = []
    for number, (first, *others) in enumerate(rows):
        tag = "th" if header and number == 0 else "td"
        cells = "".join(f"<{tag}{align}>{html.escape(text)}</{tag}>" for text in others)
        lines.append(f"<tr><{tag}>{html.escape(first)}</{tag}>{cells}</tr>")
    kind = f' class="rates{" wide" if len(rows[0]) > len(HEADER) else ""}"' if header else ""
    return f'<div class="scroll"><table{kind}>' + "".join(lines) + "</table></div>"


def section(title: str, *parts: str) -> str:
    """Return a section of the page with a heading, or an empty string if the section has no content.

    Args:
        title: heading.
        parts: HTML of the content.
    """
    content = "".join(parts)
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def side_by_side(*parts: str) -> str:
    """Arrange parts of the page side by side if the page is wide enough, else below each other."""
    return '<div class="grid">' + "".join(f"<div>{part}</div>" for part in parts if part) + "</div>"


def extreme_pairs(shards: Shards, pairs: np.ndarray, scores: np.ndarray, highest: bool) -> str:
    """Return HTML that shows the pairs of prints with the highest or the lowest similarities.

    Comparisons with a print that failed to acquire are left out.

    Args:
        shards: dataset of the prints.
        pairs: (n, 2) rows of the compared prints.
        scores: (n,) similarities.
        highest: show the highest similarities, else the lowest.
    """
    signed = np.where(np.isfinite(scores), -scores if highest else scores, np.inf)
    few = min(SHOWN, int(np.isfinite(signed).sum()))
    order = np.argpartition(signed, few - 1)[:few]
    figures = []
    for place in order[np.argsort(signed[order], kind="stable")].tolist():
        rows = pairs[place].tolist()
        names = [f"{shards.key_of_finger[shards.fingers[row]]}/{shards.impressions[row]}" for row in rows]
        small = [Image.fromarray(shards.image(row)).resize((THUMBNAIL, THUMBNAIL)) for row in rows]
        images = "".join(f'<img src="{embedded(_png(image))}" alt="print">' for image in small)
        caption = f"{' and '.join(map(html.escape, names))}: similarity {scores[place]:.3f}"
        figures.append(f"<figure><div>{images}</div><figcaption>{caption}</figcaption></figure>")
    return '<div class="grid">' + "".join(figures) + "</div>"


@dataclass(frozen=True)
class Addition:
    """A section for the top of the report, which the caller of `evaluate_command` supplies.

    Attributes:
        title: Heading of the section.
        rows: Cells of each row of a table. The first row is the header.
        lines: Sentences below the table.
        pictures: PNG files by name.
    """

    title: str
    rows: list[tuple[str, ...]]
    lines: list[str]
    pictures: dict[str, bytes]

    def text(self) -> str:
        """Return the table and the sentences as text for the terminal."""
        return "\n".join([aligned(self.rows, words=1), *self.lines])

    def section(self) -> str:
        """Return the section as HTML."""
        paragraphs = [f"<p>{html.escape(line)}</p>" for line in self.lines]
        images = [f'<img src="{embedded(png)}" alt="{name}">' for name, png in self.pictures.items()]
        return section(self.title, table(self.rows, True), *paragraphs, *images)


SYNTHETIC = (
    "These prints are synthetic. The error rates compare models and settings; they do not predict error rates on real "
    "fingers."
)


def is_synthetic(shards: Shards) -> bool:
    """Return whether the `source` of each of the first 100 prints of a dataset starts with "synthetic"."""
    return all(source.startswith("synthetic") for source in shards.table["source"].slice(0, 100).to_pylist())


def _cards(evaluation: Evaluation) -> str:
    """Return HTML boxes that show the most important rates, each with its 95 % interval and its threshold."""
    metrics, closed, intervals = evaluation.metrics, evaluation.closed, evaluation.intervals
    cards = [("EER", metrics.eer, intervals.eer, f"threshold {threshold_text(metrics.eer_threshold)}")]
    if metrics.fnmr_at_fmr:
        fmr = min(rate for rate in metrics.fnmr_at_fmr if rate >= 1e-3)
        more = f"threshold {threshold_text(metrics.thresholds[fmr])}; {metrics.nonmated:,} non-mated comparisons"
        cards.append(
            (f"FNMR at FMR {100 * fmr:g} %", metrics.fnmr_at_fmr[fmr], intervals.fnmr_at_fmr[fmr], more),
        )
    among = f"{int(closed.is_mated.sum()):,} searches among {closed.enrolled:,} references"
    cards.append(("rank-1 identification", closed.identified(1), intervals.identified[1], among))
    for fpir in FPIRS:
        found = evaluation.open.fnir(fpir)
        if found is not None:
            more = f"threshold {threshold_text(found[1])}; {evaluation.open.enrolled:,} references"
            cards.append((f"FNIR at FPIR {100 * fpir:g} %", found[0], intervals.fnir[fpir], more))
            break
    failed = f"{evaluation.failed:,} of {evaluation.prints:,} prints"
    cards.append(("failure to acquire (FTA)", evaluation.failed / evaluation.prints, intervals.failed, failed))
    boxes = (
        f'<div class="card"><span>{name}</span><b>{percent(rate)}</b>'
        f"<span>95 %: {100 * low:.2f} to {100 * high:.2f}<br>{more}</span></div>"
        for name, rate, (low, high), more in cards
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def _notes(shards: Shards, evaluation: Evaluation) -> str:
    """Return HTML notices for synthetic prints, and for prints or fingers that the model was trained on."""
    notes = f'<p class="note">{SYNTHETIC}</p>' if is_synthetic(shards) else ""
    overlap = evaluation.overlap
    if overlap is not None and overlap.found:
        notes += f'<p class="warning">{html.escape(overlap.sentence())}</p>'
    return notes


def report_html(
    title: str,
    facts: Rows,
    pictures: dict[str, bytes],
    shards: Shards,
    evaluation: Evaluation,
    addition: Addition | None = None,
) -> str:
    """Return the report page as HTML.

    Args:
        title: title of the page.
        facts: (name, text) rows that describe the model, the dataset, the settings and the origin of the report.
        pictures: PNG files, as returned by `draw_pictures`.
        shards: the dataset, for pictures of the most difficult comparisons.
        evaluation: results to show.
        addition: section to place above all other sections, or None.
    """

    def picture(name: str, alt: str) -> str:
        return f'<img src="{embedded(pictures[name])}" alt="{alt}">' if name in pictures else ""

    scores, rival = evaluation.scores, evaluation.rival
    curves = side_by_side(
        picture("det", "DET curve"),
        picture("roc", "ROC curve"),
        picture("scores", "score histogram"),
        picture("cmc", "CMC curve"),
    )
    groups = "".join(
        f"<p>{html.escape(part.title())}.</p>{table(part.table(), True)}" for part in evaluation.breakdowns
    )
    definitions = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in DEFINITIONS.items())
    sections = [
        addition.section() if addition is not None else "",
        section("Curves", curves),
        section("Verification", table(evaluation.verification_rates(), True), table(evaluation.verification_facts())),
        section(
            "Identification", table(evaluation.identification_rates(), True), table(evaluation.identification_facts())
        ),
        section(
            "Identification of persons",
            side_by_side(
                picture("persons_det", "FNIR over FPIR of persons"), picture("persons_cmc", "CMC curve of persons")
            ),
            table(evaluation.persons.table(), True),
            f"<p>{html.escape(evaluation.persons.facts())}.</p>",
        )
        if evaluation.persons is not None
        else "",
        section(f"Comparison with {rival.name}", table(rival.table(), True)) if rival else "",
        section("Groups", groups),
        section("Training", picture("training", "loss and validation EER over steps")),
        section(
            "Samples of the evaluated data",
            "<p>Each row shows the impressions of one finger.</p>",
            picture("samples", "prints of some fingers"),
        ),
        section(
            "Mated comparisons with the lowest similarity",
            extreme_pairs(shards, scores.pairs.mated, scores.mated, False),
        ),
        section(
            "Non-mated comparisons with the highest similarity",
            extreme_pairs(shards, scores.pairs.nonmated, scores.nonmated, True),
        ),
        section(
            "How this report was made",
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
