"""The verb `doctor`: report the versions, devices and settings of this machine, and what would be slow or fail."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fingerprint_accel.cli.machine import VARIABLES, Machine, this_machine
from fingerprint_accel.text import aligned
from fingerprint_accel.training.launch_answers import answers_in, normalised

GIB = 2**30
PACKAGES = ("fingerprint-accel", "accelerate", "datasets", "timm", "numpy", "safetensors")
EXTRAS = {  # optional dependencies: their modules, and the options that need them
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "export --onnx"),
    "faiss": (("faiss",), "search --index"),
    "nbis": (("nbis",), "import --nfiq2, import --find-minutiae"),
    "cluster": (("distributed",), "--cluster"),
    "nvml": (("pynvml",), "GPU utilisation during training"),
}
# oldest Linux driver for each major version of CUDA:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
DRIVERS = {"11": "450.80.02", "12": "525.60.13", "13": "580"}
ANSWERS = ("distributed_type", "num_machines", "num_processes", "use_cpu", "mixed_precision")
LITTLE_DISK, LITTLE_MEMORY, LITTLE_SHM, FEW_FILES = 10 * GIB, 4 * GIB, GIB, 1024
TORCH = "https://pytorch.org/get-started/locally"


def doctor() -> None:
    """Show versions and devices, and what would be slow or fail.

    The output is plain text without user and host names, so that you can paste it into a bug report.

    Examples:
      fingerprint-accel doctor
    """
    print(anonymous("\n".join(report(this_machine()))))


def anonymous(text: str) -> str:
    """Return a text with ~ in place of the home folder, and USER and HOST in place of the names of user and host."""
    text = text.replace(str(Path.home()), "~")
    user, host = os.environ.get("USER", ""), platform.node()
    text = re.sub(rf"(?<=/){re.escape(user)}\b", "USER", text) if user else text
    return text.replace(host, "HOST") if len(host) > 3 else text


def report(machine: Machine) -> Iterator[str]:
    """Yield the sections of the report on a machine, as text."""
    rows = [["Python", platform.python_version()], ["OS", platform.platform()]]
    rows += [["torch", machine.torch or "-"], ["torchvision", machine.torchvision or "-"]]
    yield "## Versions\n\n" + aligned([*rows, *([name, _version(name)] for name in PACKAGES)])
    yield "\n## Devices\n\n" + aligned(list(_devices(machine)))
    yield "\n## Extras\n\n" + aligned([[name, _extra(name)] for name in EXTRAS])
    yield "\n## Settings\n\n" + aligned(list(_settings(machine)))
    yield "\n## What would be slow or fail\n"
    yield "\n".join(f"- {line}" for line in troubles(machine)) or "Nothing was found."


def _devices(machine: Machine) -> Iterator[list[str]]:
    physical, threads, usable = machine.cores
    limit = f", limited to {machine.quota:g} by the container" if machine.quota else ""
    yield ["CPU", machine.cpu]
    yield ["cores", f"{physical} with {threads} threads, {usable} usable by this process{limit}"]
    yield ["instructions", " ".join(machine.features) or "none of AVX2, AVX-512, AMX"]
    for number, name in enumerate(machine.gpus):
        yield [f"GPU {number}", name]
    if not machine.gpus:
        yield ["GPU", "none that torch can use"]
    yield ["CUDA of torch", machine.cuda or "none"]
    yield ["NVIDIA driver", machine.driver or ("unknown" if machine.gpus else "none")]
    yield ["fastest precision", {"no": "float32", "": "unknown"}.get(machine.precision, machine.precision)]


def _settings(machine: Machine) -> Iterator[list[str]]:
    answers = ", ".join(f"{name} {machine.config[name]}" for name in ANSWERS if name in machine.config)
    yield ["accelerate config", f"{machine.config_file}: {answers}" if machine.config else "none"]
    for name, value, answer in answers_in(machine.config):
        if answer is not None and answer.kind == "mapped" and name.startswith("dynamo_"):
            yield ["", f"{name} {value}, used as {answer.text}"]
    for name in VARIABLES:
        yield [name, machine.environment.get(name, "not set")]
    yield ["memory", f"{_gib(machine.memory[0])} available of {_gib(machine.memory[1])}"]
    yield ["disk of this folder", f"{_gib(machine.disk[0])} free of {_gib(machine.disk[1])}"]
    yield ["/dev/shm", _gib(machine.shm)]
    yield ["open files", f"at most {machine.open_files:,}" if machine.open_files else "not limited"]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def _extra(name: str) -> str:
    modules, purpose = EXTRAS[name]
    if all(importlib.util.find_spec(module) for module in modules):
        return "installed"
    return f"missing ({purpose}): pip install 'fingerprint-accel[{name}]'"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"


def troubles(machine: Machine) -> list[str]:
    """Return a list with one line of text for each problem of a machine, which also names the remedy."""
    groups = (_package_troubles, _gpu_troubles, _config_troubles, _cpu_troubles, _limit_troubles)
    return [line for group in groups for line in group(machine)]


def _package_troubles(machine: Machine) -> Iterator[str]:
    builds = {text.partition("+")[2] for text in (machine.torch, machine.torchvision)} - {""}
    install = "pip install --force-reinstall torch torchvision"
    if machine.import_error:
        yield f"torch or torchvision cannot be imported ({machine.import_error}). Install both together: {install}"
    elif len(builds) > 1:
        both = f"torch {machine.torch} and torchvision {machine.torchvision}"
        yield f"{both} are different builds. Install both together: {install}"


def _gpu_troubles(machine: Machine) -> Iterator[str]:
    needed = DRIVERS.get(machine.cuda.partition(".")[0], "of that CUDA version")
    if not machine.gpus and machine.torch:
        if machine.driver and machine.environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            yield "CUDA_VISIBLE_DEVICES hides all GPUs. Unset it to use them."
        elif machine.driver and not machine.cuda:
            yield f"There is an NVIDIA driver, but this torch is built without CUDA. Install a CUDA build: {TORCH}"
        elif machine.driver:
            yield (
                f"torch cannot use the GPU ({machine.gpu_error}). CUDA {machine.cuda} needs an NVIDIA driver >= "
                f"{needed}, and {machine.driver} is installed. Update the driver, or install torch for an older CUDA: "
                f"{TORCH}"
            )
        elif machine.cuda:
            yield (
                "No NVIDIA driver was found, so everything runs on the CPU. If this machine has a GPU, install a "
                f"driver >= {needed} for CUDA {machine.cuda}. Start a container with --gpus all."
            )
    for name in machine.unsupported:
        yield f"This torch has no kernels for {name}. Install a build for this GPU: {TORCH}"
    if len(machine.gpus) > 1 and 0 < machine.shm < LITTLE_SHM:
        yield f"/dev/shm ({_gib(machine.shm)}) is too small for several GPUs. Start the container with --shm-size=8g."


def _config_troubles(machine: Machine) -> Iterator[str]:
    config, gpus, again = machine.config, len(machine.gpus), "Run `accelerate config` again"
    counts = {name: str(config.get(name) or 1) for name in ("num_processes", "num_machines")}
    for name in [name for name, count in counts.items() if not count.isdecimal()]:
        yield f"`accelerate config`: {name} {counts[name]} is not a whole number. {again}."
        counts[name] = "1"
    processes, machines = map(int, counts.values())
    kind = normalised(config.get("distributed_type", "no"))
    if kind == "multi_gpu" and processes > gpus * machines:
        yield (
            f"`accelerate config` asks for {processes} GPUs, but {gpus * machines} are usable. {again}, or give "
            "`accelerate launch` another --config_file, such as recipes/hardware/cpu.yaml."
        )
    if kind in ("false", "multi_cpu") and processes > 1 and not config.get("mpirun_config"):
        yield (
            f"`accelerate config` asks for {processes} processes, but Accelerate starts one without mpirun. On CPUs, "
            f"use ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node={processes}."
        )
    yield from _precision_troubles(machine, not gpus or normalised(config.get("use_cpu", "no")) == "true")
    lines = {}  # one line for all settings of a section that are refused for the same reason
    for name, value, answer in answers_in(config):
        if value is None or (name.startswith("fsdp_") and kind != "fsdp"):
            continue
        if answer is None:
            lines[name] = f"`accelerate config`: {name} {value} is not known. {again}, or remove this line."
        elif answer.kind == "refused":
            lines[answer.keys + answer.values] = f"{answer.refusal(value)}."
        elif name == "gradient_accumulation_steps" and value != 1:
            lines[name] = (
                f"`accelerate config`: {name} {value} has no effect without DeepSpeed. Give recipes "
                f"--training.gradient-accumulation-steps {value} instead."
            )
        elif name == "enable_cpu_affinity" and value:
            lines[name] = f"Accelerate ignores {name} in its file. Give `accelerate launch` --{name} instead."
    yield from lines.values()


def _precision_troubles(machine: Machine, on_cpu: bool) -> Iterator[str]:
    asked = "`accelerate config` asks for"
    if machine.config.get("mixed_precision") == "fp16" and on_cpu:
        yield f"{asked} fp16, which needs a GPU. Run it again and choose no or bf16."
    if machine.config.get("mixed_precision") == "bf16" and machine.precision in ("no", "fp16"):
        where, other = ("CPU", "no") if on_cpu else ("GPU", "fp16")
        yield f"{asked} bf16, which this {where} emulates slowly. Run it again and choose {other}."


def _cpu_troubles(machine: Machine) -> Iterator[str]:
    usable, threads = machine.cores[2], machine.environment.get("OMP_NUM_THREADS", "")
    if not machine.gpus and machine.precision == "no":
        yield (
            "This CPU has no bf16 instructions (AVX512-BF16 or AMX), so training runs in float32 and is slow. Use a "
            "GPU, or train a small network, as recipes/quickstart.py does."
        )
    if min(usable, machine.quota or usable) <= 1:
        yield "Only one core is usable, so training waits while prints are read. Use at least two cores."
    elif machine.quota and machine.quota < usable:
        few = int(machine.quota)
        yield (
            f"The container may use {machine.quota:g} cores, but programs see {usable} and start as many threads. Set "
            f"OMP_NUM_THREADS={few}, and give commands --workers {few}."
        )
    elif threads.isdigit() and int(threads) != usable and not machine.gpus:
        what = "fewer threads than cores" if int(threads) < usable else "more threads than cores"
        yield f"OMP_NUM_THREADS={threads} makes torch use {what} ({usable} are usable). Unset it."


def _limit_troubles(machine: Machine) -> Iterator[str]:
    if machine.disk[0] < LITTLE_DISK:
        yield f"Only {_gib(machine.disk[0])} of this disk are free. Free some space, or write to another disk."
    if machine.memory[0] < LITTLE_MEMORY:
        yield (
            f"Only {_gib(machine.memory[0])} of memory are available, so commands may be killed. Close other programs, "
            "or use a smaller --training.batch-size and fewer --workers."
        )
    if 0 < machine.open_files < FEW_FILES:
        yield f"A process may open only {machine.open_files} files. Raise the limit: ulimit -n 4096"
