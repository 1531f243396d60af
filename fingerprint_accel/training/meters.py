"""What happened between two records: sums on the device, read once per record, how busy the GPU was, and the file."""

from __future__ import annotations

import json
import resource
import threading
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

INTERVAL = 0.5  # seconds between questions to the GPU's management library


class Meters:
    """Running sums of one window between records.

    Args:
        device: where the sums live.
        skipped_before: updates skipped before the run was resumed.
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
        """One optimizer step: loss parts (() tensors), gradient norm, whether it was skipped (() bool), prints seen."""
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
        """Updates skipped in this run so far, before a resume included."""
        return int(self.bad_in_all) + self.skipped_before

    def pause(self, seconds: float) -> None:
        """Takes validation and saving out of the training time."""
        self._paused += seconds

    def flush(self, waited: float, accelerator: Accelerator) -> dict[str, float]:
        """The record of the window, means over ranks; waits for the device. `waited` is the loader's total."""
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
    """Peak memory of this process so far, MB: of the accelerator where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


class GpuMonitor:
    """How busy and how full this process's GPU is, asked of NVIDIA's management library (NVML) in the background.

    Silent where there is no GPU or no `nvidia-ml-py`. Use as a context manager.

    Args:
        device: that this process trains on.
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
        """Takes one reading."""
        if self._nvml is None:
            return
        try:
            self._utilisation.append(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)
            self._memory = max(self._memory, self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used / 1e6)
        except self._nvml.NVMLError:  # a partitioned GPU does not tell
            self._stop.set()

    def window(self) -> dict[str, float]:
        """Since the last call: `gpu_utilisation`, 0 to 1, the mean; `gpu_memory_mb`, the highest, of all processes."""
        readings, memory = self._utilisation, self._memory
        self._utilisation, self._memory = [], 0.0
        if not readings:
            return {}
        self._sum, self._count = self._sum + sum(readings), self._count + len(readings)
        self._peak = max(self._peak, memory)
        return {"gpu_utilisation": sum(readings) / len(readings), "gpu_memory_mb": memory}

    def whole_run(self) -> dict[str, float]:
        """The same over all windows so far."""
        return {"gpu_utilisation": self._sum / self._count, "gpu_memory_mb": self._peak} if self._count else {}


def _handle(device: torch.device) -> tuple[Any, Any]:
    """The library and its name for the device, found by the device's own identity; (None, None) without either."""
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
    """`metrics.jsonl`: one JSON object per line, appended.

    Args:
        path: the file.
        resumed_at: records of later steps are dropped, because those steps are about to run again.
    """

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the line that was being written when the run was killed
                    continue
                if record["step"] <= resumed_at:
                    kept.append(line + "\n")
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record and hands it to the operating system at once."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
