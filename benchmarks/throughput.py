"""Measure how fast this machine trains, and what limits it. Run this first on a new machine (see `--help`).

accelerate launch --quiet benchmarks/throughput.py --out speed.json
"""

from __future__ import annotations

import dataclasses
import gc
import shlex
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from benchmark_data import default_dataset
from ceilings import measure_ceilings, peak_name, training_flops
from comparison import compare
from machine import device_name, machine, versions
from results_file import write_results
from stages import MEASURES, READ_BATCH, not_here, try_one_step
from throughput_options import Options, read_options
from throughput_plot import plot_comparison, plot_stages
from throughput_table import ceiling_lines, comparison_table, rate, stage_table

from fingerprint_accel.config import Config
from fingerprint_accel.data.loader import Subset
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.training.memory import is_out_of_memory
from fingerprint_accel.training.setup import Run, make_accelerator, set_up

READING = ("read", "raw", "decode")
CEILING_SECONDS = 1.0


def explain(error: Exception, compiled: bool) -> str | None:
    """Return the text of a row for an error, or None if neither size nor compiler is its cause."""
    text = str(error)
    if is_out_of_memory(error) or isinstance(error, MemoryError) or "can't allocate memory" in text:
        return "out of memory"
    if compiled and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"cannot compile: {text.strip().splitlines()[0][:100]}"
    return None


def attempt(config: Config, work: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return the result of `work`, or the text of its error."""
    try:
        return work(), None
    except (RuntimeError, MemoryError) as error:
        reason = explain(error, config.training.compile != "no")
        if reason is None:
            raise
        return None, reason


def agree(run: Run, reason: str | None) -> str | None:
    """Make a reason on any process a reason on all processes."""
    bad = torch.tensor([float(reason is not None)], device=run.accelerator.device)
    return reason or ("out of memory" if float(run.accelerator.gather(bad).max()) else None)


def due(options: Options, config: Config, done: set[tuple]) -> list[str]:
    """Return the stages of this combination that no earlier one has measured.

    Reading is the same for all combinations. Preparation depends on batch size, compilation and minutia maps.
    """
    keys: dict[str, tuple] = {}
    maps = "Minu" in config.model.variant
    for stage in options.stages:
        if stage in READING:
            keys[stage] = (stage,)
        elif stage == "prepare":
            keys[stage] = (stage, config.training.batch_size, config.training.compile != "no", maps)
        else:
            keys[stage] = (stage, config)
    found = [stage for stage in options.stages if keys[stage] not in done]
    done.update(keys.values())
    return found


def measure(config: Config, stages: list[str], options: Options) -> list[dict[str, Any]]:
    """Return the rows of a combination."""
    about: dict[str, Any] = {"variant": config.model.variant, "trunk": config.model.trunk}
    about |= {"input": config.preprocess.size, "batch_size": config.training.batch_size}
    about |= {"precision": config.training.precision, "compile": config.training.compile}
    run, reason = attempt(config, lambda: set_up(config))
    if reason is not None:
        return [{"stage": stage, **about, "error": reason} for stage in stages]
    about["precision"] = run.accelerator.mixed_precision
    if run.accelerator.num_processes > 1 and not set(stages) <= set(READING):
        reason = agree(run, attempt(config, lambda: try_one_step(run))[1])
    rows: list[dict[str, Any]] = []
    for stage in stages:
        why = not_here(stage, run)
        if why is not None:
            if options.named:
                run.accelerator.print(f"{stage} left out: {why}")
            continue
        row: dict[str, Any] = {"stage": stage, **(about if stage not in READING else {"batch_size": READ_BATCH})}
        if stage == "prepare":
            del row["precision"]
        if stage not in READING and reason is not None:
            rows.append({**row, "error": reason})
            continue
        run.accelerator.print(f"{describe(row)} ...", flush=True)
        found, error = attempt(config, partial(MEASURES[stage], run, options.seconds))
        run.accelerator.print(f"  {error or rate(found['samples_per_second']) + ' prints/s'}", flush=True)
        rows.append({**row, "error": error} if error else {**row, **found, **demand(stage, run)})
    return rows


def describe(row: dict[str, Any]) -> str:
    """Return a short name of a row's combination."""
    words = [str(row[name]) for name in ("stage", "variant", "batch_size", "precision") if name in row]
    return " ".join([*words, "compiled"] if row.get("compile", "no") != "no" else words)


def demand(stage: str, run: Run) -> dict[str, Any]:
    """Return what a print requires of the machine, and the ceiling that limits it."""
    if stage in READING and isinstance(run.train, Subset):
        return {"bytes_per_print": 2 * run.train.info.canvas**2, "ceiling": "host_copy_gb_per_second"}  # read, write
    if stage not in ("step", "train"):
        return {}
    flops = training_flops(run.config, run.train.classes)
    name = peak_name(run.accelerator.device, run.accelerator.mixed_precision)
    return {"flops_per_print": flops, "ceiling": f"matmul_{name}_tflops"}


def add_shares(rows: list[dict[str, Any]], ceilings: dict[str, float]) -> None:
    """Add the rates as shares of the machine's ceilings: `copy_share` in reading, `mfu` in training."""
    for row in rows:
        if "error" in row or "ceiling" not in row:
            continue
        ceiling, rate = ceilings[row["ceiling"]], row["samples_per_second"]
        if "bytes_per_print" in row:
            row["copy_share"] = rate * row["bytes_per_print"] / 1e9 / ceiling
        else:
            row["mfu"] = rate * row["flops_per_print"] / 1e12 / ceiling


def clean_up() -> None:
    """Free the memory of a combination."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def setting(run_config: Config, device: torch.device, processes: int) -> dict[str, Any]:
    """Return machine, versions and settings."""
    return {
        **machine(device),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "command": shlex.join(sys.argv),
        "config": dataclasses.asdict(run_config),
    }


def run_stages(options: Options, accelerator: Accelerator) -> dict[str, Any]:
    """Measure the ceilings, every combination, and the ceilings again. The better ceilings count."""
    accelerator.print(f"{device_name(accelerator.device)}, processes: {accelerator.num_processes}; ceilings ...")
    ceiling_seconds = min(CEILING_SECONDS, options.seconds)
    ceilings = measure_ceilings(accelerator, ceiling_seconds)
    results: list[dict[str, Any]] = []
    done: set[tuple] = set()
    about = setting(options.configs[0], accelerator.device, accelerator.num_processes)
    for config in options.configs:
        stages = due(options, config, done)
        if stages:
            results += measure(config, stages, options)
            clean_up()
            keep({"results": results, "ceilings": ceilings, "setting": about}, options, accelerator)
    if not results:
        raise UserError(f"--stages {','.join(options.stages)}: nothing to measure on these prints; name another stage")
    again = measure_ceilings(accelerator, ceiling_seconds)
    ceilings = {name: max(value, again[name]) for name, value in ceilings.items()}
    add_shares(results, ceilings)
    return {"results": results, "ceilings": ceilings, "setting": about}


def keep(found: dict[str, Any], options: Options, accelerator: Accelerator) -> None:
    """Write the JSON file, complete or with the present results."""
    if options.out is not None and accelerator.is_main_process:
        write_results(options.out, found)


def run_comparison(options: Options) -> dict[str, Any]:
    """Measure the reference beside ours."""
    config = options.configs[0]
    run = set_up(config)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(run, options.workers, options.seconds, Path(folder))
    return {"comparison": found, "setting": setting(config, run.accelerator.device, run.accelerator.num_processes)}


def report(found: dict[str, Any], options: Options) -> None:
    """Print tables and write the plot."""
    title = found["setting"]["device"]
    if options.compare:
        print("\n" + comparison_table(found["comparison"]))
    else:
        print(f"\n{stage_table(found['results'])}\n\n{ceiling_lines(found['ceilings'])}")
    if options.out is not None:
        print(f"\nwritten to {options.out}")
    if options.plot is not None:
        if options.compare:
            plot_comparison(found["comparison"], title, options.plot)
        else:
            plot_stages(found["results"], title, options.plot)
        print(f"plot in {options.plot}")


def main() -> None:
    """Measure, print and write."""
    options = read_options(sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        accelerator = make_accelerator(options.configs[0])  # first, because it joins the other processes
        data = options.configs[0].data or default_dataset(accelerator)
        configs = [dataclasses.replace(config, data=data, out=scratch) for config in options.configs]
        options = dataclasses.replace(options, configs=configs)
        found = run_comparison(options) if options.compare else run_stages(options, accelerator)
    keep(found, options, accelerator)
    if accelerator.is_main_process:
        report(found, options)
    accelerator.wait_for_everyone()
    accelerator.state.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors():
        main()
