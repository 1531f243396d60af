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
td.n{text-align:right;font-variant-numeric:tabular-nums}img.plot{max-width:48%;vertical-align:top}
.pairs{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}figcaption{font-size:13px;color:#555}
figure img{width:9rem;border:1px solid #ddd}dt{font-weight:600}dd{margin:0 0 .5rem}
"""
SHOWN = 4


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _thumbnail(shards: Shards, row: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(shards.image(row)).resize((160, 160)).save(buffer, format="PNG")
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


def report_html(
    title: str,
    facts: list[tuple[str, str]],
    rates: list[tuple[str, str]],
    plots: list[bytes],
    shards: Shards,
    scores: Scores,
    protocol: str,
) -> str:
    """The page.

    Args:
        title: on top.
        facts: what was evaluated, name and value.
        rates: error rates, name and value.
        plots: PNG files.
        shards: dataset, for pictures of the hardest comparisons.
        scores: of the protocol.
        protocol: its name.
    """

    def table(rows: list[tuple[str, str]]) -> str:
        cells = (f"<tr><td>{html.escape(name)}</td><td class=n>{html.escape(value)}</td></tr>" for name, value in rows)
        return "<table>" + "".join(cells) + "</table>"

    images = "".join(f'<img class="plot" src="{_embedded(plot)}" alt="plot">' for plot in plots)
    definitions = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in DEFINITIONS.items())
    hardest = _pairs(shards, scores.pairs.mated, scores.mated, np.argsort(scores.mated, kind="stable"))
    likest = _pairs(shards, scores.pairs.nonmated, scores.nonmated, np.argsort(-scores.nonmated, kind="stable"))
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>
{table(rates)}<p>{images}</p>
<h2>Least similar prints of one finger</h2>{hardest}
<h2>Most similar prints of different fingers</h2>{likest}
<h2>What was evaluated</h2>{table(facts)}
<p>Protocol {html.escape(protocol)}: {html.escape(PROTOCOLS[protocol])}.</p>
<h2>Definitions</h2><dl>{definitions}</dl></body></html>
"""
