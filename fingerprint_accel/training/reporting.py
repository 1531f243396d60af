"""Report on a run: print a line at the start, advice on speed and a final table, and write records of measurements.

A record contains the measurements of the training steps since the previous record, or of a validation. Records are
written to `metrics.jsonl` and to experiment trackers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tqdm import tqdm

from fingerprint_accel.synthesis.source import SyntheticPrints
from fingerprint_accel.text import aligned
from fingerprint_accel.training.data import PrintLoader
from fingerprint_accel.training.meters import GpuMonitor, Meters, MetricsFile, peak_memory_mb
from fingerprint_accel.training.pace import Pace
from fingerprint_accel.training.resume import Progress
from fingerprint_accel.training.schedule import Schedule, schedule_record
from fingerprint_accel.training.setup import Run

WAITS_TOO_LONG = 0.05  # advice is given if training waits for data for more than this share of the time
IDLE_GPU = 0.9  # advice is given if the GPU utilisation is lower than this
BUSY_READER = 0.5  # the reading thread is the bottleneck if it is busy for more than this share of the time


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


@dataclass(frozen=True)
class Situation:
    """Properties of a run that `advice` depends on.

    With these properties, the advice names no option that is already set or that does not work in this run.

    Attributes:
        source: "shards" for a dataset folder, "synthetic" for prints that are rendered during training.
        lz4: Whether the prints are stored with lz4 compression.
        may_read_blocks: Whether `--reading.order block` works in this run and is not set.
        may_replay: Whether `--training.compile reduce-overhead` works in this run and is not set.
    """

    source: Literal["shards", "synthetic"] = "shards"
    lz4: bool = False
    may_read_blocks: bool = True
    may_replay: bool = True


def situation(run: Run) -> Situation:
    """Return the properties of a run that `advice` depends on."""
    config, reading = run.config, run.config.reading
    gathers = reading.samples_per_class > 1 or reading.balanced or reading.siblings > 1
    replays = config.training.compile in ("reduce-overhead", "max-autotune")
    return Situation(
        source="synthetic" if isinstance(run.train, SyntheticPrints) else "shards",
        lz4=not isinstance(run.train, SyntheticPrints) and run.train.shards.info.encoding == "lz4",
        may_read_blocks=reading.order != "block" and not gathers,
        may_replay=not (replays or config.model.gradient_checkpointing or run.accelerator.is_fsdp2),
    )


def advice(record: Mapping[str, float], stages: Mapping[str, float], seconds: float, known: Situation) -> str:
    """Return one line of advice on how to make training faster, or "" if no bottleneck is found.

    Args:
        record: Measurements of a period of training: `data_wait_share`, the share of the time spent waiting for data,
            and `gpu_utilisation` if known. Both are from 0 to 1.
        stages: Seconds that the reading thread spent on each stage (such as "decode") during the period, by name of the
            stage; see `TrainingLoader.seconds`.
        seconds: Duration of the period.
        known: Properties of the run that the advice depends on.
    """
    wait = record["data_wait_share"]
    if wait > WAITS_TOO_LONG:
        return f"training waits for data {wait:.0%} of the time: {_slow_stage(stages, seconds, known)}"
    if record.get("gpu_utilisation", 1.0) < IDLE_GPU:
        replay = ", or CUDA graphs: --training.compile reduce-overhead" if known.may_replay else ""
        return (
            f"the GPU is busy {record['gpu_utilisation']:.0%} of the time and does not wait for data, so kernel-launch "
            f"overhead dominates: give it more work per launch (a larger --training.batch-size{replay})"
        )
    return ""


def _slow_stage(stages: Mapping[str, float], seconds: float, known: Situation) -> str:
    if known.source == "synthetic":
        return (
            "prints are rendered during training; write them to a dataset (`fingerprint-accel synth`) and train on it, "
            "or render on a GPU"
        )
    working = sum(stages.values())
    if working < BUSY_READER * seconds:
        return (
            f"the reading thread is busy only {working / max(1e-9, seconds):.0%} of the time, so it lacks a core; give "
            "each process of the run two cores"
        )
    slowest = max(stages, key=lambda name: stages[name])
    if slowest == "decode":
        return (
            "decoding lz4 is the slow stage; `merge SRC --out OUT --encoding raw` needs more disk space and is faster"
        )
    if slowest == "order":
        return "computing the order of prints is the slow stage; use a larger --training.batch-size"
    remedies = ["copy the dataset to a local disk"]
    remedies += ["read neighbouring prints (--reading.order block)"] if known.may_read_blocks else []
    remedies += [] if known.lz4 else ["compress the prints (`merge SRC --out OUT --encoding lz4`)"]
    return f"reading from disk is the slow stage; {', or '.join(remedies)}"


class Adviser:
    """Gives advice on how to make training faster, but not after each record.

    Args:
        known: Properties of the run that the advice depends on.
        every: Number of records without advice after each record with advice.
    """

    def __init__(self, known: Situation, every: int = 10) -> None:
        self.known, self.every = known, every
        self._stages: dict[str, float] = {}
        self._silent = 0
        self._warm = False

    def window(self, record: Mapping[str, float], stages: Mapping[str, float], seconds: float) -> str:
        """Return advice on the training steps since the last call, or "".

        GPU utilisation is ignored in the first call, because kernels are compiled and chosen in the first steps.

        Args:
            record: Record of these steps.
            stages: Seconds that the reading thread has spent on each stage since the start of the run, by name.
            seconds: Duration of these steps.
        """
        here = {name: value - self._stages.get(name, 0.0) for name, value in stages.items()}
        self._stages = dict(stages)
        warm, self._warm = self._warm, True
        if self._silent > 0:
            self._silent -= 1
            return ""
        seen = record if warm else {"data_wait_share": record["data_wait_share"]}
        line = advice(seen, here, seconds, self.known)
        if line:
            self._silent = self.every
        return line

    def whole_run(self, wait: float, seconds: float) -> str:
        """Return one line on how to make the whole run faster, or "" if nothing slowed it down.

        Args:
            wait: Share of the time that training waited for data, 0 to 1.
            seconds: Duration of training.
        """
        return advice({"data_wait_share": wait}, self._stages, seconds, self.known)


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
        self.last_record: dict[str, Any] = {}
        self.last_validation: dict[str, float] = {}
        self.gpu = GpuMonitor(run.accelerator.device)
        self.pace = Pace(run, progress.step)
        self._adviser = Adviser(situation(run))
        self._started = time.perf_counter()

    def __enter__(self) -> Reporter:
        if self.run.accelerator.is_main_process:
            self.file = MetricsFile(self.run.folder / "metrics.jsonl", self.progress.step)
        self.gpu.__enter__()
        self.run.accelerator.init_trackers("fingerprint_accel", config=_flat(dataclasses.asdict(self.run.config)))
        return self

    def __exit__(self, *error: object) -> None:
        self.gpu.__exit__(*error)
        if self.file is not None:
            self.file.close()
        for tracker in self.run.accelerator.trackers:
            tracker.finish()

    def _write(self, kind: str, values: dict[str, float]) -> None:
        record = {"step": self.progress.step, "kind": kind, **values}
        if self.file is not None:
            self.file.write(record)
        self.run.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=self.progress.step)

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
