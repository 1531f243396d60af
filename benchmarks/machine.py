"""Describe the machine of a benchmark."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "accelerate", "datasets", "pyarrow", "timm", "numpy")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model, processors = _processors()
    return f"{model} x {processors}"


def machine(device: torch.device) -> dict[str, str | int | float | None]:
    """Return processor, memory, GPU, driver, system and date."""
    cuda = device.type == "cuda"
    model, processors = _processors()
    return {
        "device": device_name(device),
        "cpu": model,
        "cpu_cores": processors,
        "cpu_cores_usable": usable_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "gpu_memory_gb": round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1) if cuda else None,
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "system": platform.platform(),
        "date": date.today().isoformat(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that affect speed."""
    found = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found, "torch": torch.__version__}  # includes the kind of build


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processors() -> tuple[str, int]:
    """Return name and number of processors."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine(), len(names) or os.cpu_count() or 1


def _version(package: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Return the version of the NVIDIA driver, or None."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
