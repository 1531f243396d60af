"""Measure losses, speed, memory and GPU load during training, and write the records of `metrics.jsonl`.

A record describes the training steps since the previous record.
"""

from __future__ import annotations

import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator

from fingerprint_accel.durable import errors_naming, write_file
from fingerprint_accel.errors import UserError
from fingerprint_accel.untrusted import UnreadableError, read_bytes

MOST_METRICS = 2**28  # bytes of metrics.jsonl; 500,000 records
INTERVAL = 0.5  # seconds between queries of the GPU load


class Meters:
    """Sums of losses, gradient norms and times over the training steps since the last record.

    Losses and norms stay on the device until `flush`, so that a step does not wait for the device.

    Args:
        device: Device of the losses.
        skipped_before: Number of updates that were skipped before the run was resumed.

    Attributes:
        longest: Scalar tensor with the largest number of consecutive skipped updates.
        seconds_training: Seconds of training, without validation and saving, up to the last record.
        seconds_of_window: Seconds of training between the last two records.
        samples_training: Number of prints trained on, up to the last record.
        wait_training: Seconds that training waited for data, up to the last record.
    """

    def __init__(self, device: torch.device, skipped_before: int = 0) -> None:
        self.device, self.skipped_before = device, skipped_before
        self.bad_in_a_row = torch.zeros((), device=device)
        self.bad_in_all = torch.zeros((), device=device)
        self.longest = torch.zeros((), device=device)
        self.seconds_training = self.seconds_of_window = 0.0
        self.samples_training = 0
        self.wait_training = 0.0
        self._start(0.0)

    def _start(self, waited: float) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.updates = 0
        self.samples = 0  # of this process: the speed before the run was resumed is not known
        self._paused = 0.0
        self._waited = waited
        self._since = time.perf_counter()

    def add(self, parts: dict[str, torch.Tensor], norm: torch.Tensor, bad: torch.Tensor, samples: int) -> None:
        """Add the measurements of one optimizer step. Losses and norm are ignored if the update was skipped.

        Args:
            parts: Losses by name, each a () tensor.
            norm: () norm of the gradients.
            bad: () bool, True if the update was skipped.
            samples: Number of prints of the step, over all processes.
        """
        for name, value in {**parts, "gradient_norm": norm}.items():
            clean = torch.where(bad, 0.0, value.detach().float())
            self.sums[name] = self.sums[name] + clean if name in self.sums else clean
        self.sums["skipped"] = self.sums.get("skipped", torch.zeros((), device=self.device)) + bad
        self.bad_in_a_row = torch.where(bad, self.bad_in_a_row + 1, 0.0)
        self.bad_in_all = self.bad_in_all + bad
        self.longest = torch.maximum(self.longest, self.bad_in_a_row)
        self.updates += 1
        self.samples += samples

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return the sums since the last record, to store them in a checkpoint. All ranks must call this method.

        With these sums, the record after a resumed run is bit-identical to the record of a run without a stop. Times
        are not stored.

        Returns:
            Number of updates, and the sums of all ranks by name. The dictionary is empty directly after a record, and
            if a sum has overflowed.
        """
        if not self.updates:
            return {}
        sums = accelerator.gather(torch.stack([value.float() for value in self.sums.values()])[None])  # (ranks, sums)
        if not torch.isfinite(sums).all():
            return {}
        return {"updates": self.updates, "sums": dict(zip(self.sums, sums.T.tolist(), strict=True))}

    def restore(self, state: dict[str, Any], accelerator: Accelerator) -> None:
        """Continue with the sums that a checkpoint contains.

        If the number of ranks has changed, each rank starts with the mean over the previous ranks. The record then
        differs by rounding.

        Args:
            state: Result of `state`.
            accelerator: Accelerator of the run.
        """
        self.updates = state.get("updates", 0)
        for name, values in state.get("sums", {}).items():
            own = values[accelerator.process_index] if len(values) == accelerator.num_processes else fmean(values)
            self.sums[name] = torch.tensor(own, dtype=torch.float32, device=self.device)

    def skipped(self) -> int:
        """Return the number of skipped updates in this run, including those before it was resumed."""
        return int(self.bad_in_all) + self.skipped_before

    def pause(self, seconds: float) -> None:
        """Exclude a pause of the given duration, such as validation and saving, from the training time."""
        self._paused += seconds

    def flush(self, waited: float, accelerator: Accelerator) -> dict[str, float]:
        """Return the measurements of the steps since the last call as a record, and reset the sums.

        Losses are means over steps and ranks. All ranks must call this method. The method waits until the device has
        computed the losses.

        Args:
            waited: Seconds that training has waited for the data loader since the start of the run.
            accelerator: Accelerator of the run.
        """
        stacked = torch.stack([value.float() for value in self.sums.values()])
        values = accelerator.reduce(stacked, "mean").tolist()
        seconds = max(1e-9, time.perf_counter() - self._since - self._paused)
        sums = dict(zip(self.sums, values, strict=True))
        skipped = sums.pop("skipped", 0.0)
        record = {name: value / max(1.0, self.updates - skipped) for name, value in sums.items()}
        wait = waited - self._waited
        record |= {
            "skipped": skipped,
            "samples_per_second": self.samples / seconds,
            "data_wait_share": min(1.0, wait / seconds),
            "memory_mb": peak_memory_mb(self.device),
        }
        self.seconds_training += seconds
        self.seconds_of_window = seconds
        self.samples_training += self.samples
        self.wait_training += wait
        self._start(waited)
        return record


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process in MB (10^6 bytes): GPU memory on CUDA, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


class GpuMonitor:
    """Measures the load and memory of the GPU of this process in a background thread, with NVIDIA's library NVML.

    Use it as a context manager. Without a GPU or without the package `nvidia-ml-py`, it reports nothing.

    Args:
        device: Device of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self._nvml, self._handle = _handle(device)
        self._utilisation: list[float] = []
        self._memory = 0.0
        self._sum, self._count, self._peak = 0.0, 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu-monitor", daemon=True)

    def __enter__(self) -> GpuMonitor:
        if self._handle is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.ask()

    def ask(self) -> None:
        """Measure the load and the used memory of the GPU once, for the results of `window` and `whole_run`."""
        if self._nvml is None:
            return
        try:
            self._utilisation.append(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)
            self._memory = max(self._memory, self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used / 1e6)
        except self._nvml.NVMLError:  # NVML cannot report the load of a partitioned GPU (MIG)
            self._stop.set()

    def window(self) -> dict[str, float]:
        """Return `gpu_utilisation` and `gpu_memory_mb` for the time since the last call.

        `gpu_utilisation` is the mean load, 0 to 1. `gpu_memory_mb` is the highest memory that all processes together
        used on the GPU. The dictionary is empty if nothing was measured.
        """
        readings, memory = self._utilisation, self._memory
        self._utilisation, self._memory = [], 0.0
        if not readings:
            return {}
        self._sum, self._count = self._sum + sum(readings), self._count + len(readings)
        self._peak = max(self._peak, memory)
        return {"gpu_utilisation": sum(readings) / len(readings), "gpu_memory_mb": memory}

    def whole_run(self) -> dict[str, float]:
        """Return `gpu_utilisation` and `gpu_memory_mb` for the whole run, up to the last call of `window`."""
        return {"gpu_utilisation": self._sum / self._count, "gpu_memory_mb": self._peak} if self._count else {}


def _handle(device: torch.device) -> tuple[Any, Any]:
    """Initialise NVML, and return the module `pynvml` and the NVML handle of a device, which is found by its UUID.

    Returns:
        (module, handle), or (None, None) if the device is no GPU, `pynvml` is not installed, or NVML fails.
    """
    if device.type != "cuda":
        return None, None
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(identity)
    except pynvml.NVMLError:
        return None, None


class MetricsFile:
    """Writes the records of a run to the file `metrics.jsonl`, one JSON object per line.

    Args:
        path: The file.
        resumed_at: Step from which the run resumes, or 0 for a new run. Records of later steps are deleted, because
            these steps run again.

    Raises:
        OSError: If the file cannot be written.
        UserError: If there is such a file, but it cannot be read.
    """

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        write_file(path, b"".join(_records_until(path, resumed_at)) if resumed_at else b"")
        self._path, self._file = path, path.open("ab")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, and pass it to the operating system.

        Raises:
            OSError: If the disk is full or has another error.
        """
        with errors_naming(self._path):
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()

    def sync(self) -> None:
        """Flush the records to the disk, so that a crash of the machine does not lose them."""
        with errors_naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _records_until(path: Path, step: int) -> Iterator[bytes]:
    """Yield the lines of a metrics file up to a step. Damaged lines are left out, such as the last one after a kill."""
    try:
        lines = read_bytes(path, MOST_METRICS).splitlines()
    except FileNotFoundError:
        return
    except UnreadableError as error:
        raise UserError(f"{path}: {error}; move it away") from error
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int and record["step"] <= step:
            yield line + b"\n"
