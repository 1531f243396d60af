"""What the user sees of a run: the line at the start, records, trackers, the table at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from fingerprint_accel.config_dict import to_dict
from fingerprint_accel.synthesis.source import SyntheticPrints
from fingerprint_accel.text import aligned
from fingerprint_accel.training.advice import Adviser, Situation
from fingerprint_accel.training.data import PrintLoader
from fingerprint_accel.training.gpu_monitor import GpuMonitor
from fingerprint_accel.training.meters import Meters, MetricsFile, peak_memory_mb
from fingerprint_accel.training.resume import Progress
from fingerprint_accel.training.run import Run
from fingerprint_accel.training.schedule import Schedule, schedule_record


def start_line(run: Run, progress: Progress) -> str:
    """What runs where, on one line."""
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
    """Knobs by dotted name; lists as text, because trackers take numbers and words only."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value) if isinstance(value, tuple) else value
    return flat


def situation(run: Run) -> Situation:
    """What advice has to know of a run."""
    reading, synthetic = run.config.reading, isinstance(run.train, SyntheticPrints)
    return Situation(
        source="synthetic" if synthetic else "shards",
        lz4=not isinstance(run.train, SyntheticPrints) and run.train.shards.info.encoding == "lz4",
        may_read_blocks=reading.order != "block"
        and reading.samples_per_class == 1
        and not reading.balanced
        and reading.siblings == 1,
        may_replay=run.config.training.compile not in ("reduce-overhead", "max-autotune")
        and not run.config.model.gradient_checkpointing
        and not run.accelerator.is_fsdp2,
    )


class Reporter:
    """Writes `metrics.jsonl` and the tracker on rank 0. A context manager."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.file: MetricsFile | None = None
        self.last_record: dict[str, Any] = {}
        self.last_validation: dict[str, float] = {}
        self.gpu = GpuMonitor(run.accelerator.device)
        self._adviser = Adviser(situation(run))
        self._started = time.perf_counter()
        self._first_step = progress.step

    def __enter__(self) -> Reporter:
        if self.run.accelerator.is_main_process:
            self.file = MetricsFile(self.run.folder / "metrics.jsonl", self.progress.step)
        self.gpu.__enter__()
        self.run.accelerator.init_trackers("fingerprint_accel", config=_flat(to_dict(self.run.config)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gpu.__exit__(kind, error, trace)
        if self.file is not None:
            self.file.close()
        for tracker in self.run.accelerator.trackers:
            tracker.finish()

    def _write(self, kind: str, values: dict[str, float]) -> None:
        record = {"step": self.progress.step, "kind": kind, **values}
        if self.file is not None:
            self.file.write(record)
        self.run.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=self.progress.step)

    def training_record(self, meters: Meters, now: Schedule, loader: PrintLoader, bar: tqdm) -> None:
        """Records the window since the last record; losses are means over ranks."""
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
        """Records one validation and prints it above the progress bar."""
        self.last_validation = metrics
        self._write("validation", metrics)
        if self.run.accelerator.is_main_process:
            rates = [f"{name.upper()} {100 * value:.2f} %" for name, value in metrics.items() if _is_rate(name)]
            shown = ", ".join([*rates, *_alignment(metrics)])
            tqdm.write(f"step {self.progress.step}: validation {shown}")

    def final_table(self, meters: Meters) -> None:
        """Prints the summary of the run on rank 0."""
        progress, run = self.progress, self.run
        seconds = max(1e-9, meters.seconds_training)
        rows = [
            ("steps", f"{progress.step}" + (" (stopped early)" if progress.step < run.steps else "")),
            ("prints seen", f"{progress.position} ({progress.position / run.order.length:.1f} epochs)"),
            ("seconds", f"{time.perf_counter() - self._started:.0f}"),
            ("peak memory", f"{peak_memory_mb(run.accelerator.device):.0f} MB"),
            ("updates skipped", f"{meters.skipped()}"),
        ]
        if self.last_record:  # a run that was finished already trains no step
            rows += [
                ("prints/s in training", f"{meters.samples_training / seconds:.0f}"),
                ("data-wait share", f"{meters.wait_training / seconds:.1%}"),
                ("loss", f"{self.last_record['loss']:.4f}"),
            ]
            line = self._adviser.whole_run(meters.wait_training / seconds, seconds)
            rows += [("advice", line)] if line else []
        gpu = self.gpu.whole_run()
        if gpu:
            used = f"{gpu['gpu_utilisation']:.0%} busy, up to {gpu['gpu_memory_mb'] / 1e3:.1f} GB of all processes"
            rows.append(("GPU in training", used))
        if progress.best_eer is not None and run.bare.loss.describes:
            rows.append(("best validation EER", f"{progress.best_eer:.2%} at step {progress.best_step} (chance: 50 %)"))
        rows += [("alignment", line) for line in _alignment(self.last_validation)]
        rows += [(name.upper(), f"{value:.2%}") for name, value in self.last_validation.items() if "@" in name]
        rows.append(("run folder", str(run.folder)))
        run.accelerator.print("\n" + aligned(rows))


def _alignment(metrics: dict[str, float]) -> list[str]:
    """How far the alignment network is off, as a text, if that was measured."""
    if "alignment_mm" not in metrics:
        return []
    median, most = metrics["alignment_mm"], metrics["alignment_mm_95"]
    return [f"off by {median:.2f} mm (95 %: {most:.2f}) and {metrics['alignment_degrees']:.1f} degrees"]


def _is_rate(name: str) -> bool:
    return name.endswith("eer") or "@" in name
