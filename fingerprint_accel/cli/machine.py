"""Find the packages, devices, limits and settings of this machine, which the verb `doctor` reports."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fingerprint_accel.executors import cores
from fingerprint_accel.untrusted import read_yaml

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU")
CPU_INFO, MEMORY_INFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
DRIVER_INFO = Path("/proc/driver/nvidia/version")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Machine:
    """Packages, devices, limits and settings of a machine. Sizes are in bytes.

    Attributes:
        torch: Version of torch, or "" if it cannot be imported.
        torchvision: Version of torchvision, or "" if it cannot be imported.
        import_error: First line of the error that importing torch or torchvision raised.
        cuda: CUDA version that torch was built for, or "" for a build without CUDA.
        gpus: Descriptions of the GPUs that torch can use.
        unsupported: Descriptions of the GPUs that this build of torch has no kernels for.
        gpu_error: First line of the error that torch raises if it can use no GPU, else "".
        driver: Version of the NVIDIA driver, or "".
        precision: Fastest number format for training (`training.setup.fast_precision`), or "" if it is unknown.
        cpu: Model of the processor.
        cores: Three numbers: cores, threads, and threads that this process may use.
        quota: Number of cores that the container may use, or 0 without a limit.
        features: Instruction sets in `CPU_FEATURES` that the processor supports.
        memory: Available and total memory.
        disk: Free and total space of the disk that holds the current folder.
        shm: Size of /dev/shm, or 0.
        open_files: Number of files that a process may open, or 0 without a limit.
        config: Settings that `accelerate config` has written to a file, or {} if there is no file.
        config_file: Path of the file of `accelerate config`.
        environment: Dictionary from the name to the value of each environment variable in `VARIABLES` that is set.
    """

    torch: str = ""
    torchvision: str = ""
    import_error: str = ""
    cuda: str = ""
    gpus: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    gpu_error: str = ""
    driver: str = ""
    precision: str = ""
    cpu: str = ""
    cores: tuple[int, int, int] = (1, 1, 1)
    quota: float = 0.0
    features: list[str] = field(default_factory=list)
    memory: tuple[int, int] = (0, 0)
    disk: tuple[int, int] = (0, 0)
    shm: int = 0
    open_files: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    config_file: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def this_machine() -> Machine:
    """Return the description of this machine. The function imports torch, which takes seconds."""
    disk = shutil.disk_usage(Path.cwd())
    config, config_file = _attempt(_accelerate_config, ({}, ""))
    driver = re.search(r"Module\D*([\d.]+)", _text(DRIVER_INFO))
    return Machine(
        **_packages(),
        **_processor(),
        driver=driver[1] if driver else "",
        precision=_attempt(_fast_precision, ""),
        memory=(_memory("MemAvailable"), _memory("MemTotal")),
        disk=(disk.free, disk.total),
        shm=_attempt(lambda: shutil.disk_usage("/dev/shm").total, 0),
        open_files=max(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),  # -1 stands for no limit
        config=config,
        config_file=config_file,
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def _packages() -> dict[str, Any]:
    """Return the fields of `Machine` about torch, torchvision and the GPUs that torch can use."""
    facts: dict[str, Any] = {}
    try:
        import torch

        facts |= {"torch": str(torch.__version__), "cuda": torch.version.cuda or ""}
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            facts["gpu_error"] = _first_line(error)
        facts |= _gpus() if torch.cuda.is_available() else {}
        import torchvision

        facts["torchvision"] = torchvision.__version__
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        facts["import_error"] = _first_line(error)
    return facts


def _gpus() -> dict[str, list[str]]:
    import torch

    found: dict[str, list[str]] = {"gpus": [], "unsupported": []}
    built_for = [arch.split("_") for arch in torch.cuda.get_arch_list()]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        capability = 10 * card.major + card.minor
        name = f"{card.name}, {card.total_memory / 2**30:.1f} GiB, compute capability {card.major}.{card.minor}"
        found["gpus"].append(name)
        # Binary code runs on later GPUs of the same major version, and PTX code runs on all later GPUs.
        numbers = [(kind, int(re.sub(r"\D", "", arch))) for kind, arch in built_for]
        fits = (n <= capability and (kind == "compute" or n // 10 == card.major) for kind, n in numbers)
        if numbers and not any(fits):
            found["unsupported"].append(name)
    return found


def _processor() -> dict[str, Any]:
    """Return the fields of `Machine` about the processor: model, cores, quota and instruction sets."""
    text = _text(CPU_INFO)
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    threads = os.cpu_count() or 1
    places = set(re.findall(r"^physical id\s*: (\d+)$(?:.*\n)*?core id\s*: (\d+)$", text, re.MULTILINE))
    quota = re.match(r"(\d+) (\d+)", _text(CPU_QUOTA))
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": (len(places) or threads, threads, cores()),
        "quota": int(quota[1]) / int(quota[2]) if quota else 0.0,
        "features": [name for name in CPU_FEATURES if flags and name in flags[1].split()],
    }


def _memory(name: str) -> int:
    """Return the entry `name` of /proc/meminfo in bytes, or 0 if it is missing."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", _text(MEMORY_INFO), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def _fast_precision() -> str:
    from fingerprint_accel.training.setup import fast_precision

    return fast_precision()


def _accelerate_config() -> tuple[dict[str, Any], str]:
    """Return the settings that `accelerate config` has written to its file, and the path of the file."""
    from accelerate.commands.config.config_args import default_config_file

    return dict(read_yaml(Path(default_config_file))), default_config_file


def _text(path: Path) -> str:
    return _attempt(path.read_text, "")


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].strip() if str(error) else type(error).__name__


def _attempt(function: Callable[[], Any], otherwise: Any) -> Any:
    """Return the result of a function, or `otherwise` if it raises an exception.

    `doctor` must also work on broken installations.
    """
    try:
        return function()
    except Exception:
        return otherwise
