"""Measurements between two records: sums on the device that are read once per record, GPU load, and metrics.jsonl."""

from __future__ import annotations

import json
import resource
import threading
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

INTERVAL = 0.5  # seconds between queries of the GPU load


class Meters:
    """Running sums of the steps between two records. They stay on the device, so that a step does not wait for it.

    Args:
        device: Device of the sums.
        skipped_before: Number of updates skipped before the run was resumed.
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
        self.samples = 0
        self._paused = 0.0
        self._waited = waited
        self._since = time.perf_counter()

    def add(self, parts: dict[str, torch.Tensor], norm: torch.Tensor, bad: torch.Tensor, samples: int) -> None:
        """Add one optimizer step.

        Args:
            parts: () losses by name.
            norm: () norm of the gradients.
            bad: () bool, True if the update was skipped.
            samples: Number of prints of the step.
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

    def skipped(self) -> int:
        """Return the number of skipped updates in this run, including those before it was resumed."""
        return int(self.bad_in_all) + self.skipped_before

    def pause(self, seconds: float) -> None:
        """Leave seconds of validation and saving out of the training time."""
        self._paused += seconds

    def flush(self, waited: float, accelerator: Accelerator) -> dict[str, float]:
        """Return the record since the last call, as means over ranks. This waits for the device.

        Args:
            waited: Seconds that the loader has waited since the start of the run.
            accelerator: The accelerator.
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
    """Return the peak memory of this process in MB: GPU memory on CUDA, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


class GpuMonitor:
    """Queries load and memory of the GPU of this process in the background, with NVIDIA's library NVML.

    It reports nothing without a GPU or without `nvidia-ml-py`. Use it as a context manager.

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
        """Query load and memory once."""
        if self._nvml is None:
            return
        try:
            self._utilisation.append(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)
            self._memory = max(self._memory, self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used / 1e6)
        except self._nvml.NVMLError:  # NVML has no load for a partitioned GPU
            self._stop.set()

    def window(self) -> dict[str, float]:
        """Return mean `gpu_utilisation` (0 to 1) and highest `gpu_memory_mb` of all processes since the last call."""
        readings, memory = self._utilisation, self._memory
        self._utilisation, self._memory = [], 0.0
        if not readings:
            return {}
        self._sum, self._count = self._sum + sum(readings), self._count + len(readings)
        self._peak = max(self._peak, memory)
        return {"gpu_utilisation": sum(readings) / len(readings), "gpu_memory_mb": memory}

    def whole_run(self) -> dict[str, float]:
        """Return the same over the whole run."""
        return {"gpu_utilisation": self._sum / self._count, "gpu_memory_mb": self._peak} if self._count else {}


def _handle(device: torch.device) -> tuple[Any, Any]:
    """Return NVML and its handle for the device, found by UUID, or (None, None) if one is missing."""
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
    """The file `metrics.jsonl`, with one JSON object per line.

    Args:
        path: The file.
        resumed_at: Step at which the run resumes. Records of later steps are deleted, because these steps run again.
    """

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # an incomplete line of a killed run
                    continue
                if record["step"] <= resumed_at:
                    kept.append(line + "\n")
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and flush the file."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
