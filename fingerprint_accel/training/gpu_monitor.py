"""How busy and how full this process's GPU is, asked of NVIDIA's management library (NVML) where it is installed."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import torch

INTERVAL = 0.5  # seconds between questions


class GpuMonitor:
    """Asks in the background; silent where there is no GPU or no `nvidia-ml-py`. Use as a context manager.

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
