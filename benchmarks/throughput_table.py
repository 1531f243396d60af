"""The tables of `throughput.py`."""

from __future__ import annotations

from typing import Any

from fingerprint_accel.text import aligned


def rate(value: float) -> str:
    """Format prints per second with the digits that were measured."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def percent(value: float | None) -> str:
    """Format a share, or a dash for None."""
    return "-" if value is None else f"{value:.1%}"


def share_of_ceiling(row: dict[str, Any]) -> float | None:
    """Return the share of the ceiling: of matrix products in training, of copy bandwidth in reading."""
    return row.get("mfu", row.get("copy_share"))


def stage_table(results: list[dict[str, Any]]) -> str:
    """Format a row for each stage and combination, and below them the parts of preparation."""
    head = [
        *("stage", "variant", "batch", "precision", "compile"),
        *("prints/s", "slowest", "fastest", "data wait", "GPU busy", "of ceiling", "peak MB"),
    ]
    rows = [head]
    for row in results:
        about = [str(row.get(name, "-")) for name in ("stage", "variant", "batch_size", "precision", "compile")]
        if "error" in row:
            rows.append([*about, row["error"], *[""] * 6])
            continue
        rates = [rate(row[name]) for name in ("samples_per_second", "slowest_round", "fastest_round")]
        shares = [
            percent(row.get("data_wait_share")),
            percent(row.get("gpu_utilisation")),
            percent(share_of_ceiling(row)),
        ]
        rows.append([*about, *rates, *shares, f"{row['peak_memory_mb']:,.0f}"])
    return "\n\n".join([aligned(rows, 2), *(parts_table(row) for row in results if "parts" in row)])


def parts_table(row: dict[str, Any]) -> str:
    """Format the parts of preparing a batch."""
    name = f"prepare {row['variant']}, batch {row['batch_size']}"
    rows = [[name, "ms per batch", "share"]]
    rows += [
        [f"  {part}", f"{cell['ms_per_batch']:.2f}", percent(cell["share"])] for part, cell in row["parts"].items()
    ]
    return aligned(rows, 1)


def ceiling_lines(ceilings: dict[str, float]) -> str:
    """Format the ceilings of the machine."""
    rows = [["ceilings, measured here", ""]]
    for name, value in ceilings.items():
        words = name.split("_")
        what = f"products of {words[1]} matrices" if words[0] == "matmul" else f"copies on the {words[0]}"
        rows.append([f"  {what}", f"{value:,.2f} TFLOP/s" if words[0] == "matmul" else f"{value:,.1f} GB/s"])
    return aligned(rows, 1)


def comparison_table(found: dict[str, Any]) -> str:
    """Format reference and ours, and the projection for large data."""
    preparation, training, ratio = found["preprocess_per_core"], found["training"], found["ratio"]
    plain, ours = training["reference"], training["ours"]
    core = {name: preparation[name]["samples_per_second"] for name in preparation}
    settings = [f"batch {side['batch_size']}, {side['precision']}" for side in (plain, ours)]
    rounds = [f"{rate(side['slowest_round'])} to {rate(side['fastest_round'])}" for side in (plain, ours)]
    with_bank = _times(ratio["preprocess_per_core_with_filter_bank"])
    rows = [
        ["", "reference", "ours", "ratio"],
        [
            "preprocess, prints/s per core",
            *(rate(core[name]) for name in ("reference", "ours")),
            _times(ratio["preprocess_per_core"]),
        ],
        ["  ours with a filter bank too", "", rate(core["ours_with_filter_bank"]), with_bank],
        [
            "training end to end, prints/s",
            *(rate(side["samples_per_second"]) for side in (plain, ours)),
            _times(ratio["training"]),
        ],
        ["  slowest and fastest round", *rounds, ""],
        ["  data wait", *(percent(side["data_wait_share"]) for side in (plain, ours)), ""],
        ["  setting", *settings, ""],
        ["  worker processes", str(plain["workers"]), "none", ""],
    ]
    return "\n\n".join([aligned(rows, 1), _per_print(preparation), _projection(found["projected"])])


def _times(value: float) -> str:
    """Format a ratio."""
    return f"{rate(value)} x"


def _per_print(preparation: dict[str, Any]) -> str:
    """Format the parts of preparing a print."""
    rows = [["preprocessing on one core", "ms per print", "share"]]
    for side, title in (("reference", "reference"), ("ours", "ours"), ("ours_with_filter_bank", "ours, filter bank")):
        parts = preparation[side]["ms_per_print"]
        whole = sum(parts.values())
        rows.append([title, f"{whole:.2f}", ""])
        rows += [[f"  {part}", f"{spent:.2f}", percent(spent / whole)] for part, spent in parts.items()]
    return aligned(rows, 1)


def _projection(found: dict[str, Any]) -> str:
    """Format the projected hours per epoch."""
    rows = [["projected hours per epoch", "devices", "reference", "ours"]]
    for row in found["hours_per_epoch"]:
        hours = [f"{row[name]:,.2f}" for name in ("reference_hours", "our_hours")]
        rows.append([f"  {row['prints']:,} prints", str(row["devices"]), *hours])
    return aligned(rows, 1) + f"\n({found['assumption']})"
