"""Train the same run in several precisions or compile modes, and compare the losses.

python benchmarks/loss_curves.py --precisions no bf16 fp16 --out precisions.json
python benchmarks/loss_curves.py --compile no default reduce-overhead --out compile.json

All runs see the same prints in the same order, with the same augmentation. The first run is the reference of the
others. The exit code is 1 if a run fails, if its loss is not finite, or if the mean loss of its last steps differs from
that of the reference by more than --tolerance.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
import tyro
from accelerate import Accelerator
from benchmark_data import default_dataset
from machine import machine, versions
from results_file import check_results, write_results

from fingerprint_accel.config import Config, LossConfig, ModelConfig, PreprocessConfig, ReadingConfig, TrainingConfig
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.text import aligned
from fingerprint_accel.training.loop import train
from fingerprint_accel.training.setup import set_up

Precision = Literal["no", "bf16", "fp16"]
Compile = Literal["no", "default", "reduce-overhead", "max-autotune"]
LAST = 0.1  # share of the steps whose mean loss is compared


@dataclass(frozen=True)
class Size:
    """Size of the runs.

    Attributes:
        steps: optimizer steps of a run.
        batch_size: prints in a step.
        width: channels of the first layer of the network.
        side: side of the network input, pixels.
    """

    steps: int = 200
    batch_size: int = 64
    width: int = 32
    side: int = 160


def config_of(data: str, out: Path, size: Size, **training: Any) -> Config:
    """Return the configuration of a run of the compact network with CosFace, which writes each loss."""
    return Config(
        data=data,
        out=str(out),
        reading=ReadingConfig(validation_fraction=0.0),
        preprocess=PreprocessConfig(crop=256, size=size.side),
        model=ModelConfig(variant="Tex", trunk="compact", width=size.width, dropout=0.0),
        loss=LossConfig(head="cosface", scale=32.0, margin=0.1),
        training=TrainingConfig(
            steps=size.steps, batch_size=size.batch_size, log_every=1, validate_every=0, save_every=0, tracker="none",
            **training,
        ),
    )  # fmt: skip


def losses_in(folder: str | Path) -> tuple[list[float], int]:
    """Return the loss of each step of a run, NaN where the update was skipped, and the number of skipped updates."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    losses = [math.nan if record["skipped"] else record["loss"] for record in records]
    return losses, round(sum(record["skipped"] for record in records))


def measured(config: Config) -> dict[str, Any]:
    """Return the losses of a run, or its error."""
    started = time.perf_counter()
    try:
        train(set_up(config))
        losses, skipped = losses_in(config.out)
    except (RuntimeError, ValueError) as error:
        return {"failed": (str(error).strip().splitlines() or [type(error).__name__])[0][:300]}
    finally:
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    end = [loss for loss in losses[-max(1, round(LAST * len(losses))) :] if not math.isnan(loss)]
    last = fmean(end) if end else None  # JSON has no NaN
    known = [None if math.isnan(loss) else loss for loss in losses]
    return {"last": last, "skipped": skipped, "seconds": time.perf_counter() - started, "losses": known}


def compared(rows: list[dict[str, Any]], tolerance: float) -> None:
    """Add to each row how far its losses are from those of the first row, and whether that is within the tolerance.

    `difference` is that of the means of the last steps. `first_difference` is the largest difference in the first tenth
    of the steps. Both are relative to the losses of the first row.
    """
    reference = rows[0]
    for row in rows:
        row["agrees"] = False
        if row.get("last") is None or reference.get("last") is None:
            continue
        row["difference"] = row["last"] / reference["last"] - 1
        pairs = list(zip(row["losses"], reference["losses"], strict=True))[: max(1, round(LAST * len(row["losses"])))]
        both = [abs(ours / theirs - 1) for ours, theirs in pairs if ours and theirs]
        row["first_difference"] = max(both, default=None)
        row["agrees"] = abs(row["difference"]) <= tolerance


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows of runs as text."""
    cells = [("precision", "compile", "first loss", "last losses", "from reference", "skipped", "seconds", "")]
    for row in rows:
        name = (row["precision"], row["compile"])
        if "failed" in row:
            cells.append((*name, *"-----", row["failed"]))
            continue
        first = next((loss for loss in row["losses"] if loss is not None), math.nan)
        apart = f"{row['difference']:+.2%}" if "difference" in row else "-"
        last = "-" if row["last"] is None else f"{row['last']:.4f}"
        verdict = "agrees" if row["agrees"] else "DIFFERS"
        cells.append((*name, f"{first:.4f}", last, apart, str(row["skipped"]), f"{row['seconds']:.0f}", verdict))
    return aligned(cells, words=2)


def main(
    data: str = "",
    precisions: tuple[Precision, ...] = ("no",),
    compile: tuple[Compile, ...] = ("no",),
    size: tyro.conf.OmitArgPrefixes[Size] = Size(),
    tolerance: float = 0.05,
    out: Path | None = None,
) -> None:
    """Train the same run in several precisions and compile modes, and compare the losses with those of the first.

    Args:
        data: Dataset folder; default: made and kept in ~/.cache.
        precisions: Values of --training.precision.
        compile: Values of --training.compile.
        size: Size of the runs.
        tolerance: Largest relative difference of the mean loss of the last tenth of the steps.
        out: JSON file to write.
    """
    check_results(out)
    data = data or default_dataset(Accelerator())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (precision, mode) in enumerate(product(precisions, compile)):
            config = config_of(data, Path(folder) / str(number), size, precision=precision, compile=mode)
            print(f"precision {precision}, compile {mode} ...", flush=True)
            rows.append({"precision": precision, "compile": mode, **measured(config)})
            compared(rows, tolerance)
            if out is not None:
                device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
                setting = {"machine": machine(device), "versions": versions(), "command": sys.argv}
                write_results(out, {"results": rows, "tolerance": tolerance, **setting})
    print(table(rows))
    if not all(row["agrees"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
