"""Train with less GPU memory than a micro-batch needs, and check that training fits its micro-batches into it.

python benchmarks/shortage.py --out shortage.json

Four runs have the same prints in each step:

- `whole` has all memory. Its peak is measured.
- `fitted` may use only --share of this peak, and --training.auto-micro-batch-size reduces its micro-batches.
- `small` has all memory, and the micro-batches that `fitted` ended with. Both must have the same losses.
- `unfitted` has as little memory as `fitted`, but may not reduce its micro-batches. It must end with the command to
  resume.

The limit is that of the allocator of torch (`torch.cuda.set_per_process_memory_fraction`). A CPU has no such limit, so
that larger micro-batches raise the error of a full GPU instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro
from accelerate import Accelerator
from benchmark_data import default_dataset
from loss_curves import Size, config_of, losses_in
from machine import machine, versions
from results_file import check_results, write_results

from fingerprint_accel.config import Config, TrainingConfig
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.training.loop import train
from fingerprint_accel.training.setup import set_up

TOLERANCE = 0.02  # relative; with less memory, cuDNN may choose other algorithms, whose sums differ in TF32


def clean_up() -> None:
    """Free the memory of an earlier run, and reset the peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> float:
    """Return the most memory that the allocator has taken from the GPU, in MB; 0 on a CPU."""
    return torch.cuda.max_memory_reserved() / 1e6 if torch.cuda.is_available() else 0.0


@contextlib.contextmanager
def limited(megabytes: float, prints: int) -> Iterator[None]:
    """Context manager that limits the memory of this process on a GPU, or the prints in a micro-batch on a CPU."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / 1e6
        torch.cuda.set_per_process_memory_fraction(megabytes / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    forward = DeepPrint.forward

    def refused(self: DeepPrint, image: torch.Tensor) -> Any:
        if self.training and len(image) > prints:
            raise torch.OutOfMemoryError("injected")
        return forward(self, image)

    with mock.patch.object(DeepPrint, "forward", refused):
        yield


def changed(config: Config, out: Path, **training: Any) -> Config:
    """Return a configuration with another run folder and other options of training."""
    return dataclasses.replace(config, out=str(out), training=dataclasses.replace(config.training, **training))


def sizes(training: TrainingConfig) -> dict[str, int]:
    """Return the micro-batch size and the number of micro-batches in a step."""
    names = ("batch_size", "gradient_accumulation_steps")
    return {name: getattr(training, name) for name in names}


def measure(config: Config, share: float) -> dict[str, Any]:
    """Run the four runs, and return what was found.

    Returns:
        `whole_peak_mb`, `limit_mb`, `fitted_peak_mb`, the final micro-batches (`fitted`), the largest relative
        difference of the losses of `fitted` and `small` (`difference`), and the message of `unfitted` (`message`).
    """
    folder = Path(config.out)
    clean_up()
    train(set_up(changed(config, folder / "whole", auto_micro_batch_size="no")))
    found: dict[str, Any] = {"whole_peak_mb": peak_mb(), "limit_mb": share * peak_mb()}
    clean_up()
    with limited(found["limit_mb"], int(share * config.training.batch_size)):
        fitted = changed(config, folder / "fitted", auto_micro_batch_size="yes")
        run = set_up(fitted)
        train(run)
        found |= {"fitted": sizes(run.config.training), "fitted_peak_mb": peak_mb()}
        del run
        clean_up()
        try:
            train(set_up(changed(config, folder / "unfitted", auto_micro_batch_size="no")))
            found["message"] = ""
        except UserError as error:
            found["message"] = str(error)
    clean_up()
    train(set_up(changed(config, folder / "small", auto_micro_batch_size="no", **found["fitted"])))
    both = zip(losses_in(folder / "fitted")[0], losses_in(folder / "small")[0], strict=True)
    found["difference"] = max(abs(fitted / small - 1) for fitted, small in both)
    return found


def wrong_in(found: dict[str, Any], batch_size: int) -> list[str]:
    """Return what is not as it should be in the results of `measure`, as sentences without a full stop."""
    fitted, wrong = found["fitted"], []
    if fitted["batch_size"] >= batch_size:
        wrong.append("training did not reduce its micro-batches")
    if fitted["batch_size"] * fitted["gradient_accumulation_steps"] != batch_size:
        wrong.append("a step has another number of prints")
    if found["fitted_peak_mb"] > found["limit_mb"]:
        wrong.append("training used more memory than it may")
    if not found["difference"] <= TOLERANCE:
        wrong.append("the losses differ from those of a run with the same micro-batches")
    if "--resume auto --training.batch-size" not in found["message"]:
        wrong.append("the message of a run out of memory does not name the command to resume")
    return wrong


def main(
    data: str = "",
    size: tyro.conf.OmitArgPrefixes[Size] = Size(steps=5, batch_size=512),  # noqa: B008
    share: float = 0.6,
    out: Path | None = None,
) -> None:
    """Train with less GPU memory than a micro-batch needs.

    Args:
        data: Dataset folder; default: made and kept in ~/.cache.
        size: Size of the runs.
        share: Memory that training may use, as a share of what it uses without a limit.
        out: JSON file to write.
    """
    check_results(out)
    data = data or default_dataset(Accelerator())
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config_of(data, Path(folder), size, precision="no"), share)
    wrong = wrong_in(found, size.batch_size)
    fitted = found["fitted"]
    print(f"without a limit: batch {size.batch_size} x 1, {found['whole_peak_mb']:,.0f} MB")
    print(
        f"with {found['limit_mb']:,.0f} MB: batch {fitted['batch_size']} x {fitted['gradient_accumulation_steps']}, "
        f"{found['fitted_peak_mb']:,.0f} MB; losses within {found['difference']:.2%} of a run with these micro-batches"
    )
    print(f"with {found['limit_mb']:,.0f} MB and --training.auto-micro-batch-size no: {found['message']}")
    print("\n".join(f"WRONG: {sentence}" for sentence in wrong) or "as it should be")
    if out is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        setting = {"machine": machine(device), "versions": versions(), "command": sys.argv}
        write_results(out, {"results": found, "wrong": wrong, **setting})
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
