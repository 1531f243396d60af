"""The table of `realism.py`: measures as rows, datasets as columns."""

from __future__ import annotations

from typing import Any

ROWS = {
    "fingers": ("fingers", "{:.0f}"),
    "prints": ("prints measured", "{:.0f}"),
    "period_mean_mm": ("ridge period, mean over prints, mm", "{:.3f}"),
    "period_p5_mm": ("  5th percentile", "{:.3f}"),
    "period_p50_mm": ("  median", "{:.3f}"),
    "period_p95_mm": ("  95th percentile", "{:.3f}"),
    "period_sd_mm_median": ("  sd within a print", "{:.3f}"),
    "clear_blocks_mean": ("share of blocks with clear ridges", "{:.2f}"),
    "area_cm2_median": ("contact area, median, cm2", "{:.2f}"),
    "grey_mean_mean": ("grey level in contact, mean", "{:.0f}"),
    "grey_sd_mean": ("  sd", "{:.0f}"),
    "nfiq2_median": ("NFIQ 2, median", "{:.0f}"),
    "found_per_print": ("mindtct minutiae per print", "{:.1f}"),
    "confident_per_print": ("  reliable ones", "{:.1f}"),
    "found_per_cm2": ("mindtct minutiae per cm2", "{:.1f}"),
    "confident_per_cm2": ("  reliable ones", "{:.1f}"),
    "endings_share": ("share of ridge endings", "{:.2f}"),
    "confident_endings_share": ("  among reliable ones", "{:.2f}"),
    "truth_per_print": ("own minutiae per print", "{:.1f}"),
    "truth_per_cm2": ("own minutiae per cm2", "{:.1f}"),
    "precision": ("reliable ones that are own minutiae", "{:.2f}"),
    "recall": ("own minutiae found", "{:.2f}"),
    "apart_px": ("  distance, median, canvas pixels", "{:.2f}"),
    "turned_degrees": ("  angle between, median, degrees", "{:.1f}"),
    "eer": ("Bozorth3 EER, %", "{:.2%}"),
    "eer_low": ("  95 % interval over fingers, from", "{:.2%}"),
    "eer_high": ("  to", "{:.2%}"),
    "fmr100": ("Bozorth3 FMR100, %", "{:.2%}"),
    "mated_mean": ("mated score, mean", "{:.1f}"),
    "nonmated_mean": ("non-mated score, mean", "{:.1f}"),
    "mated": ("mated comparisons", "{:.0f}"),
    "nonmated": ("non-mated comparisons", "{:.0f}"),
}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Format the results as aligned text, with a dash for missing numbers."""
    first = max(len(title) for title, _ in ROWS.values())
    widths = {name: max(8, len(name)) for name in results}
    lines = ["  ".join([" " * first, *(f"{name:>{widths[name]}}" for name in results)])]
    for key, (title, form) in ROWS.items():
        values = [columns.get(key) for columns in results.values()]
        cells = ["-" if value is None else form.format(value).removesuffix("%") for value in values]
        padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths.values(), strict=True)]
        lines.append("  ".join([f"{title:<{first}}", *padded]))
    return "\n".join(lines)
