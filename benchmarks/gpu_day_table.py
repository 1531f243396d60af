"""Summarise the results of `gpu_day.py`, a line for each command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fingerprint_accel.text import aligned


def _tests(found: dict[str, Any]) -> str:
    names = ", ".join(name.rpartition("/")[2] for name in found["failed"][:3])
    more = f": {names}" + (", ..." if len(found["failed"]) > 3 else "") if found["failed"] else ""
    return f"{found['passed']} passed, {found['skipped']} skipped, {len(found['failed'])} failed{more}"


def _losses(found: dict[str, Any]) -> str:
    said = []
    for row in found["results"]:
        name = row["precision"] if row["compile"] == "no" else row["compile"]
        apart = row.get("failed") or (f"{row['difference']:+.2%}" if "difference" in row else "no loss")
        said.append(f"{name} {apart}" + (f" ({row['skipped']} skipped)" if row.get("skipped") else ""))
    return "last losses: " + ", ".join(said)


def _shortage(found: dict[str, Any]) -> str:
    fitted = found["results"]["fitted"]
    sizes = f"batch {fitted['batch_size']} x {fitted['gradient_accumulation_steps']}"
    memory = f"{found['results']['fitted_peak_mb']:,.0f} of {found['results']['limit_mb']:,.0f} MB"
    return "; ".join([sizes, memory, *found["wrong"]])


def _throughput(found: dict[str, Any]) -> str:
    said = []
    for row in found["results"]:
        size = f"{row['stage']} {row['batch_size']}"
        speed = row.get("error") or f"{row['samples_per_second']:,.0f} prints/s, {row['peak_memory_mb'] / 1e3:.1f} GB"
        said.append(f"{size}: {speed}")
    return "; ".join(said)


def _heads(found: dict[str, Any]) -> str:
    said = []
    for row in found["results"]:
        speed = row.get("failed") or f"{1000 * row['seconds']:.1f} ms, {row['peak_memory_mb'] / 1e3:.1f} GB"
        said.append(f"{row['name']}: {speed}")
    return "; ".join(said)


def _profile(found: dict[str, Any]) -> str:
    result = found["results"]
    kinds = ", ".join(f"{kind} {row['share']:.0%}" for kind, row in list(result["kinds"].items())[:4])
    return f"{result['ms_per_step']:.0f} ms a step: {kinds}"


def _extraction(found: dict[str, Any]) -> str:
    rows = [row for row in found["results"] if row["precision"] == "bf16"]
    return "; ".join(f"{row['network']} from {row['from']} {row['samples_per_second']:,.0f} prints/s" for row in rows)


def _search(found: dict[str, Any]) -> str:
    said = []
    for name, row in found["galleries"].items():
        speed = f"{row['comparisons_per_second'] / 1e6:,.0f} million comparisons/s"
        said.append(f"{name}: {speed}, one probe {1000 * row['seconds_one_probe']:.0f} ms")
    return "; ".join(said)


LINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "-m pytest": _tests,
    "loss_curves.py": _losses,
    "shortage.py": _shortage,
    "throughput.py": _throughput,
    "heads.py": _heads,
    "step_profile.py": _profile,
    "extraction.py": _extraction,
    "search.py": _search,
}


def line_of(row: dict[str, Any]) -> str:
    """Return the main results of a command, or the last line that it printed."""
    if "results" not in row:
        return next((line.strip() for line in reversed(row["said"]) if line.strip()), "")[:120]
    return next(line for script, line in LINES.items() if script in row["command"])(row["results"])


def table(done: dict[str, Any]) -> str:
    """Format the results of items as text."""
    cells = [("item", "command", "status", "seconds", "result")]
    for name, item in done.items():
        for label, row in item["commands"].items():
            cells.append((name, label, row["status"], f"{row['seconds']:.0f}", line_of(row)))
    return aligned(cells)
