"""Report on a run: print a line at the start and a final table, and write records of measurements.

A record contains the measurements of the training steps since the previous record, or of a validation. Records are
written to `metrics.jsonl` and to experiment trackers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from fingerprint_accel.errors import UserError, write_errors
from fingerprint_accel.text import aligned
from fingerprint_accel.training.advice import Adviser, situation
from fingerprint_accel.training.data import PrintLoader
from fingerprint_accel.training.meters import GpuMonitor, Meters, MetricsFile, peak_memory_mb
from fingerprint_accel.training.pace import Pace
from fingerprint_accel.training.run_folder import FolderWatch, resume_advice, start_trackers
from fingerprint_accel.training.saving import Progress
from fingerprint_accel.training.schedule import Schedule, schedule_record
from fingerprint_accel.training.setup import Run


def start_line(run: Run, progress: Progress) -> str:
    """Return one line that describes a run: device, precision, batch size, network, data and number of steps."""
    accelerator, training, config = run.accelerator, run.config.training, run.config
    parameters = sum(parameter.numel() for parameter in run.bare.model.parameters())
    device = str(accelerator.device)
    if accelerator.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(accelerator.device)})"
    scaling = "on" if accelerator.scaler is not None else "off"
    total = run.samples_per_step
    precision = f"precision {accelerator.mixed_precision}, gradient scaling {scaling}"
    held_out = f", {run.validation.classes} to validate" if run.validation else ""
    start = f"from step {progress.step} " if progress.step else ""
    return (
        f"{device} x {accelerator.num_processes}{' with FSDP' if accelerator.is_fsdp2 else ''} | {precision} | "
        f"batch {training.batch_size} x {training.gradient_accumulation_steps} per device, {total} in total | "
        f"DeepPrint {config.model.variant} {config.model.trunk}, {parameters / 1e6:.1f} M parameters | "
        f"{config.data}: {len(run.train)} prints of {run.train.classes} fingers{held_out} | "
        f"{start}to step {run.steps}"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested options to one dictionary with dotted names, for experiment trackers.

    Tuples become strings, because trackers accept only numbers and strings.

    Args:
        values: Options by name; groups of options are dictionaries.
        prefix: Text before each name.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value) if isinstance(value, tuple) else value
    return flat


class Reporter:
    """Writes records to `metrics.jsonl` and the experiment trackers, and prints progress, on rank 0.

    Use it as a context manager.

    Args:
        run: The run.
        progress: Progress of the run. The training loop updates this object.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.file: MetricsFile | None = None
        self.watch: FolderWatch | None = None
        self.last_record: dict[str, Any] = {}
        self.last_validation: dict[str, float] = {}
        self.gpu = GpuMonitor(run.accelerator.device)
        self.pace = Pace(run, progress.step)
        self._adviser = Adviser(situation(run))
        self._started = time.perf_counter()

    def __enter__(self) -> Reporter:
        run = self.run
        with contextlib.ExitStack() as opened, write_errors(self._advice):
            opened.enter_context(_no_tracebacks_of_the_disk())
            if run.accelerator.is_main_process:
                self.watch = opened.enter_context(contextlib.closing(FolderWatch(run.folder)))
                metrics = MetricsFile(run.folder / "metrics.jsonl", self.progress.step)
                self.file = opened.enter_context(contextlib.closing(metrics))
            opened.enter_context(self.gpu)
            start_trackers(run.accelerator, run.config, _flat(dataclasses.asdict(run.config)))
            for tracker in run.accelerator.trackers:
                opened.callback(tracker.finish)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            with write_errors(self._advice):
                self._opened.close()
        except UserError:
            if kind is None:  # the first error is the one to report
                raise

    def _advice(self) -> str:
        return resume_advice(self.run.folder)

    def before_save(self) -> None:
        """Check that the run folder is in place, and flush `metrics.jsonl`, which a resumed run continues, to the disk.

        Raises:
            OSError: If the file cannot be written.
            UserError: If the folder was moved or deleted.
        """
        if self.watch is not None and self.file is not None:
            self.watch.check()
            self.file.sync()

    def _write(self, kind: str, values: dict[str, float]) -> None:
        record = {"step": self.progress.step, "kind": kind, **values}
        with write_errors(self._advice):
            if self.watch is not None and self.file is not None:
                self.watch.check()
                self.file.write(record)
            named = {f"{kind}/{name}": value for name, value in values.items()}
            self.run.accelerator.log(named, step=self.progress.step)

    def after_step(self) -> None:
        """Print the time per step and the remaining time once, after the first steps. Call this after each step."""
        line = self.pace.after_step(self.progress.step)
        if line and self.run.accelerator.is_main_process:
            tqdm.write(line)

    def training_record(self, meters: Meters, now: Schedule, loader: PrintLoader, bar: tqdm) -> None:
        """Write a record of the steps since the last record, and show the main values in the progress bar.

        All ranks must call this method.

        Args:
            meters: Measurements of these steps. Losses are averaged over ranks. All sums are then reset.
            now: Learning rate, augmentation strength and margin of the last step.
            loader: Loader of the training prints, which measures how long training waits for data.
            bar: Progress bar.
        """
        record = meters.flush(loader.waited, self.run.accelerator)
        record |= schedule_record(now, self.run.config) | self.gpu.window()
        record["epoch"] = self.progress.position / self.run.order.length
        self.last_record = record
        self._write("train", record)
        seen = f"loss {record['loss']:.3f}, {record['samples_per_second']:.0f} prints/s"
        if "gpu_utilisation" in record:
            seen += f", GPU {record['gpu_utilisation']:.0%} {record['gpu_memory_mb'] / 1e3:.1f} GB"
        bar.set_postfix_str(seen)
        line = self._adviser.window(record, loader.seconds, meters.seconds_of_window)
        if line and self.run.accelerator.is_main_process:
            tqdm.write(f"step {self.progress.step}: {line}")

    def validation_record(self, metrics: dict[str, float]) -> None:
        """Write a record with the results of a validation, and print the error rates above the progress bar.

        Args:
            metrics: Results by name, see `validate`.
        """
        self.last_validation = metrics
        self._write("validation", metrics)
        if self.run.accelerator.is_main_process:
            rates = {name.upper(): value for name, value in metrics.items() if name.endswith("eer") or "@" in name}
            shown = ", ".join([*(f"{name} {100 * rate:.2f} %" for name, rate in rates.items()), *_alignment(metrics)])
            tqdm.write(f"step {self.progress.step}: validation {shown}")

    def final_table(self, meters: Meters) -> None:
        """Print a table that summarises the run, on rank 0."""
        progress, run = self.progress, self.run
        seconds = max(1e-9, meters.seconds_training)
        rows = [
            ("steps", f"{progress.step}" + (" (stopped early)" if progress.step < run.steps else "")),
            ("prints seen", f"{progress.position} ({progress.position / run.order.length:.1f} epochs)"),
            ("seconds", f"{time.perf_counter() - self._started:.0f}"),
            ("peak memory", f"{peak_memory_mb(run.accelerator.device):.0f} MB"),
            ("updates skipped", f"{meters.skipped()}"),
        ]
        if self.last_record:  # there is none if a finished run was resumed, because no step was trained
            rows += [
                ("prints/s in training", f"{meters.samples_training / seconds:.0f}"),
                ("waiting for data", f"{meters.wait_training / seconds:.1%} of the time"),
                ("loss", f"{self.last_record['loss']:.4f}"),
            ]
            line = self._adviser.whole_run(meters.wait_training / seconds, seconds)
            rows += [("advice", line)] if line else []
        gpu = self.gpu.whole_run()
        if gpu:
            used = (
                f"{gpu['gpu_utilisation']:.0%} busy, at most {gpu['gpu_memory_mb'] / 1e3:.1f} GB used by all processes"
            )
            rows.append(("GPU in training", used))
        if progress.best_eer is not None and run.bare.loss.describes:
            rows.append(("best validation EER", f"{progress.best_eer:.2%} at step {progress.best_step} (chance: 50 %)"))
        rows += [("alignment", line) for line in _alignment(self.last_validation)]
        rows += [(name.upper(), f"{value:.2%}") for name, value in self.last_validation.items() if "@" in name]
        rows.append(("run folder", str(run.folder)))
        run.accelerator.print("\n" + aligned(rows))


@contextlib.contextmanager
def _no_tracebacks_of_the_disk() -> Iterator[None]:
    """Print no traceback if a thread of TensorBoard cannot write. The next call of TensorBoard raises its error."""
    before = threading.excepthook

    def report(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            before(failure)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before


def _alignment(metrics: dict[str, float]) -> list[str]:
    """Return a list with one text about the error of the alignment network, or [] if there is no measurement.

    The alignment network estimates the position and rotation of a finger.

    Args:
        metrics: Results of a validation by name, see `validate`.
    """
    if "alignment_mm" not in metrics:
        return []
    median, most = metrics["alignment_mm"], metrics["alignment_mm_95"]
    return [f"median error {median:.2f} mm (95 %: {most:.2f} mm), {metrics['alignment_degrees']:.1f} degrees"]
