"""The report page: one HTML file with everything inside."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.evaluation.metrics import DEFINITIONS
from fingerprint_accel.evaluation.protocols import PROTOCOLS, Scores

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}
img.half{width:49%;vertical-align:top}img.whole{max-width:100%}
@media (max-width:40rem){img.half{width:100%}}
.note{background:#fff4d6;border-left:4px solid #E69F00;padding:.5rem .8rem}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:1rem}figure{margin:0}
figcaption{font-size:13px;color:#555}figure img{width:48%;max-width:15rem;border:1px solid #ddd}
dt{font-weight:600}dd{margin:0 0 .5rem}
"""
SHOWN = 4
THUMBNAIL = 240  # pixels
SYNTHETIC = (
    "These prints are synthetic: the numbers compare models and settings; they are not accuracies on real fingers."
)


def is_synthetic(shards: Shards) -> bool:
    """Whether the first prints say that they were made, not taken: a `source` that starts with "synthetic"."""
    return all(source.startswith("synthetic") for source in shards.table["source"].slice(0, 100).to_pylist())


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _thumbnail(shards: Shards, row: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(shards.image(row)).resize((THUMBNAIL, THUMBNAIL)).save(buffer, format="PNG")
    return _embedded(buffer.getvalue())


def _pairs(shards: Shards, pairs: np.ndarray, scores: np.ndarray, order: np.ndarray) -> str:
    figures = []
    for place in order[:SHOWN].tolist():
        rows = pairs[place].tolist()
        names = " / ".join(
            f"{html.escape(shards.key_of_finger[shards.fingers[row]])} {shards.impressions[row]}" for row in rows
        )
        images = "".join(f'<img src="{_thumbnail(shards, row)}" alt="print">' for row in rows)
        figures.append(f"<figure>{images}<figcaption>{names}: {scores[place]:.3f}</figcaption></figure>")
    return '<div class="pairs">' + "".join(figures) + "</div>"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{html.escape(name)}</td><td class=n>{html.escape(value)}</td></tr>" for name, value in rows)
    return "<table>" + "".join(cells) + "</table>"


def report_html(
    title: str,
    facts: list[tuple[str, str]],
    rates: list[tuple[str, str]],
    pictures: dict[str, bytes],
    shards: Shards,
    scores: Scores,
    protocol: str,
) -> str:
    """The page.

    Args:
        title: on top.
        facts: what was evaluated, name and value.
        rates: error rates, name and value.
        pictures: PNG files `det`, `scores`, `samples` and, for a model with its run, `training`.
        shards: dataset, for pictures of the hardest comparisons.
        scores: of the protocol.
        protocol: its name.
    """

    def picture(name: str, width: str, alt: str) -> str:
        return f'<img class="{width}" src="{_embedded(pictures[name])}" alt="{alt}">'

    note = f'<p class="note">{SYNTHETIC}</p>' if is_synthetic(shards) else ""
    curves = picture("det", "half", "DET curve") + picture("scores", "half", "score histogram")
    training = ""
    if "training" in pictures:
        training = f"<h2>Training</h2><p>{picture('training', 'whole', 'loss and validation EER over steps')}</p>"
    definitions = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in DEFINITIONS.items())
    hardest = _pairs(shards, scores.pairs.mated, scores.mated, np.argsort(scores.mated, kind="stable"))
    likest = _pairs(shards, scores.pairs.nonmated, scores.nonmated, np.argsort(-scores.nonmated, kind="stable"))
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>{note}
{_table(rates)}<p>{curves}</p>
{training}
<h2>Samples of the evaluated data</h2><p>One row per finger, one column per impression.</p>
<p>{picture("samples", "whole", "prints of some fingers")}</p>
<h2>Least similar prints of one finger</h2>{hardest}
<h2>Most similar prints of different fingers</h2>{likest}
<h2>What was evaluated</h2>{_table(facts)}
<p>Protocol {html.escape(protocol)}: {html.escape(PROTOCOLS[protocol])}.</p>
<h2>Definitions</h2><dl>{definitions}</dl></body></html>
"""
