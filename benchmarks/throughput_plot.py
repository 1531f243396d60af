"""The bar charts of `throughput.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from results_file import written_by
from throughput_table import percent, rate, share_of_ceiling

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fingerprint_accel.outputs import mark

COLOURS = {
    "read": "#4c78a8", "raw": "#4c78a8", "decode": "#4c78a8", "prepare": "#72b7b2", "step": "#f58518",
    "train": "#e45756", "reference": "#9d9d9d", "ours": "#e45756",
}  # fmt: skip
WIDE = 50  # from this ratio of longest to shortest bar, the axis is logarithmic


def plot_stages(results: list[dict[str, Any]], title: str, path: Path) -> None:
    """Plot prints per second of every stage and combination."""
    figure, axes = plt.subplots(figsize=(10, 1.3 + 0.42 * len(results)), layout="constrained")
    bars = []
    for row in results:
        precision = {"no": "float32"}.get(row.get("precision", ""), row.get("precision"))
        about = [row["stage"], row.get("variant"), f"batch {row['batch_size']}", precision]
        label = ", ".join(str(part) for part in about if part is not None)
        label += ", compiled" if row.get("compile", "no") != "no" else ""
        share, wait = share_of_ceiling(row), row.get("data_wait_share")
        notes = [row.get("error"), share and f"{percent(share)} of ceiling", wait and f"data wait {percent(wait)}"]
        note = "  ".join(str(note) for note in notes if note)
        bars.append((label, row.get("samples_per_second"), COLOURS[row["stage"]], note))
    _draw(axes, bars)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120, metadata={"Software": mark(written_by())})
    plt.close(figure)


def plot_comparison(found: dict[str, Any], title: str, path: Path) -> None:
    """Plot preparation per core, training end to end, and projected hours, of the reference and of ours."""
    figure, (first, second, third) = plt.subplots(3, 1, figsize=(10, 8), layout="constrained", height_ratios=[3, 2, 6])
    names = {"reference": "reference", "ours": "ours", "ours_with_filter_bank": "ours, with filter bank"}
    core = found["preprocess_per_core"]
    _draw(first, [(names[name], core[name]["samples_per_second"], _colour(name), "") for name in names])
    first.set_title(f"{title}\n\npreprocessing, one core", fontsize=10)
    sides = found["training"]
    bars = [
        (name, sides[name]["samples_per_second"], _colour(name), f"data wait {percent(sides[name]['data_wait_share'])}")
        for name in ("reference", "ours")
    ]
    _draw(second, bars)
    second.set_title(f"training, end to end: {rate(found['ratio']['training'])} times", fontsize=10)
    _hours(third, found["projected"]["hours_per_epoch"])
    figure.savefig(path, dpi=120, metadata={"Software": mark(written_by())})
    plt.close(figure)


def _colour(name: str) -> str:
    """Return the colour of a side."""
    return COLOURS[name.partition("_")[0]]


def _draw(axes: Axes, bars: list[tuple[str, float | None, str, str]], unit: str = "prints/s") -> None:
    """Draw horizontal bars of (label, value or None, colour, note), the first on top, with the value beside each."""
    values = [value for _, value, _, _ in bars if value]
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    wide = high / low > WIDE
    start = low / 3 if wide else 0.0
    for place, (_, value, colour, note) in enumerate(bars):
        if value:
            axes.barh(place, value - start, left=start, color=colour, height=0.7)
        text = "  ".join(filter(None, [rate(value) if value else "", note]))
        axes.annotate(text, (value or start, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xscale("log" if wide else "linear")
    axes.set_xlim(start, high * (high / start) ** 0.5 if wide else high * 1.5)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)  # the first on top
    axes.set_xlabel(unit + (", logarithmic" if wide else ""), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _hours(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw the projected hours of epochs."""
    places = range(len(rows))
    for name, shift in (("reference", -0.2), ("our", 0.2)):
        values = [row[f"{name}_hours"] for row in rows]
        colour = COLOURS["ours" if name == "our" else name]
        axes.barh(
            [place + shift for place in places],
            values,
            height=0.38,
            color=colour,
            label={"our": "ours"}.get(name, name),
        )
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:,.1f}" if value >= 1 else f"{value:.2g}", (value, place + shift), (4, 0),
                textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 2, high * 2)
    labels = [f"{row['prints']:,} prints, {row['devices']} device{'s' * (row['devices'] > 1)}" for row in rows]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.set_title("hours per epoch, projected from this one device by linear scaling", fontsize=10)
    axes.set_xlabel("hours, logarithmic", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
