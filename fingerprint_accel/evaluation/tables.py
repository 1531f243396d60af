"""What one evaluation found, as tables for the terminal and the page."""

from __future__ import annotations

from fingerprint_accel.evaluation.groups import Breakdown
from fingerprint_accel.evaluation.pose_sweep import PoseSweep
from fingerprint_accel.evaluation.results import Evaluation, Rival, percent
from fingerprint_accel.text import aligned

GROUP_HEADER = ("group", "prints", "mated", "non-mated", "EER", "FNMR", "FMR")
Table = list[tuple[str, ...]]


def results_text(evaluation: Evaluation, groups: bool = False) -> str:
    """Everything for the terminal; error rates of groups only where they are asked for."""
    parts = [aligned(evaluation.rates())]
    if evaluation.rival is not None:
        parts.append(aligned(difference_table(evaluation.rival), words=1))
    if evaluation.sweep is not None:
        title = f"{sweep_title(evaluation.sweep)}, probes turned and shifted by up to"
        parts.append(title + "\n" + aligned(sweep_table(evaluation.sweep), words=1))
    for part in evaluation.breakdowns if groups else []:
        parts.append(f"{group_title(part)}\n" + aligned(group_table(part), words=1))
    return "\n\n".join(parts)


def difference_table(rival: Rival) -> Table:
    """Rates of both models, difference in percentage points with its interval, and what the interval says."""
    rows = [
        (
            row.name,
            percent(row.ours),
            percent(row.theirs),
            f"{100 * row.difference:+.2f} (95 %: {100 * row.interval[0]:+.2f} to {100 * row.interval[1]:+.2f})",
            row.verdict(),
        )
        for row in rival.differences
    ]
    return [("", "this model", rival.name, "difference, points", ""), *rows]


def sweep_title(sweep: PoseSweep) -> str:
    """What the cells of `sweep_table` hold."""
    return "EER" if sweep.fmr is None else f"EER (FNMR at FMR {100 * sweep.fmr:g} %)"


def sweep_table(sweep: PoseSweep) -> Table:
    """A line for each angle, a column for each shift: EER and, where there are enough comparisons, FNMR."""
    shifts = sorted({cell.shift for cell in sweep.cells})
    rows: Table = [("", *(f"{shift:g} mm" for shift in shifts))]
    for angle in sorted({cell.angle for cell in sweep.cells}):
        cells = [sweep.at(angle, shift) for shift in shifts]
        texts = [percent(cell.eer) + ("" if cell.fnmr is None else f" ({percent(cell.fnmr)})") for cell in cells]
        rows.append((f"{angle:g} degrees", *texts))
    return rows


def group_title(part: Breakdown) -> str:
    """What `group_table` holds."""
    rate = f"{100 * part.threshold_fmr:g} %"
    return (
        f"by {part.by}; FNMR and FMR at the threshold that gives all together an FMR of {rate} ({part.threshold:.3f})"
    )


def group_table(part: Breakdown) -> Table:
    """A line for each group."""

    def shown(rate: float | None, digits: int = 2) -> str:
        return "-" if rate is None else f"{rate:.{digits}%}"

    rows: Table = [GROUP_HEADER]
    for group in part.groups:
        counts = (f"{group.prints:,}", f"{group.mated:,}", f"{group.nonmated:,}")
        rows.append((group.name, *counts, shown(group.eer), shown(group.fnmr), shown(group.fmr, 3)))
    return rows
