"""`doctor`: the report holds what a bug report needs, and each trouble comes with its remedy."""

import dataclasses
import os
import platform
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from fingerprint_accel.cli import machine as facts
from fingerprint_accel.cli.doctor import EXTRAS, GIB, anonymous, doctor, report, troubles
from fingerprint_accel.cli.machine import Machine, this_machine

ROOT = Path(__file__).resolve().parent.parent
GPU = "NVIDIA H100, 79.2 GiB, compute capability 9.0"
HEALTHY = Machine(
    torch="2.14.1+cu130", torchvision="0.29.1+cu130", cuda="13.0", gpus=[GPU], driver="580.65.06", precision="bf16",
    cpu="AMD EPYC", cores=(8, 16, 16), features=["avx2"], memory=(60 * GIB, 64 * GIB), disk=(500 * GIB, 900 * GIB),
    shm=32 * GIB, open_files=65536,
)  # fmt: skip
CPU_ONLY = {"gpus": [], "driver": "", "gpu_error": "Found no NVIDIA driver on your system."}
OLD = {"gpus": [], "driver": "535.104.05", "gpu_error": "The NVIDIA driver on your system is too old (found 12020)."}


ZERO = {"zero_stage": 2, "offload_optimizer_device": "none"}
SIZES = {"parallelism_config_tp_size": 2, "parallelism_config_cp_size": 1}


def test_a_machine_without_troubles():
    assert troubles(HEALTHY) == []
    assert list(report(HEALTHY))[-1] == "Nothing was found."


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"torchvision": "0.29.1+cpu"}, ["torchvision 0.29.1+cpu are different builds", "pip install --force-reinst"]),
        (
            {"torchvision": "", "import_error": "operator torchvision::nms does not exist"},
            ["nms does not exist", "pip"],
        ),
        (CPU_ONLY, ["No NVIDIA driver", "driver >= 580 for CUDA 13.0", "--gpus all"]),
        (CPU_ONLY | {"cuda": "12.8"}, ["driver >= 525.60.13 for CUDA 12.8"]),
        (OLD, ["is too old", "CUDA 13.0 needs an NVIDIA driver >= 580, and 535.104.05 is installed", "Update"]),
        (OLD | {"cuda": ""}, ["built without CUDA", "https://pytorch.org/get-started/locally"]),
        (OLD | {"environment": {"CUDA_VISIBLE_DEVICES": ""}}, ["CUDA_VISIBLE_DEVICES hides all GPUs", "Unset"]),
        ({"unsupported": [GPU]}, ["no kernels for NVIDIA H100"]),
        ({"gpus": [GPU, GPU], "shm": GIB // 16}, ["/dev/shm (0.1 GiB)", "--shm-size=8g"]),
        ({"config": {"distributed_type": "MULTI_GPU", "num_processes": 4}}, ["asks for 4 GPUs, but 1 are", "cpu.yaml"]),
        ({"config": {"dynamo_config": {"dynamo_backend": "EAGER"}}}, ["EAGER is not supported; choose inductor"]),
        ({"config": {"dynamo_backend": "ONNXRT"}}, ["dynamo_backend ONNXRT is not supported"]),  # of older versions
        ({"config": {"distributed_type": "DEEPSPEED", "deepspeed_config": ZERO}}, ["choose FullyShardedDataParallel"]),
        (
            {"config": {"distributed_type": "NO", "deepspeed_config": ZERO | {"gradient_accumulation_steps": 4}}},
            ["has no effect without DeepSpeed. Give recipes --training.gradient-accumulation-steps 4 instead."],
        ),
        ({"config": {"distributed_type": "XLA", "downcast_bf16": "no"}}, ["choose multi-GPU with NVIDIA GPUs"]),
        ({"config": {"distributed_type": "MULTI_XPU"}}, ["MULTI_XPU is not supported; choose multi-GPU with NVIDIA"]),
        ({"config": {"compute_environment": "AMAZON_SAGEMAKER", "region": "us-east-1"}}, ["choose This machine"]),
        (
            {"config": {"mixed_precision": "fp8", "fp8_config": {"backend": "TE"}}},
            ["fp8 is not supported; choose bf16"],
        ),
        (
            {"config": {"mixed_precision": "bf16"}, "precision": "fp16"},
            ["bf16, which this GPU emulates", "choose fp16"],
        ),
        ({"config": {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}}, ["choose version 2"]),
        (
            {"config": {"distributed_type": "FSDP", "fsdp_config": {"version": 2}, "parallelism_config": SIZES}},
            ["answer no to the parallelism config"],
        ),
        ({"config": {"distributed_type": "NO", "num_processes": 2}}, ["starts one without mpirun", "nproc_per_node=2"]),
        (
            {"config": {"num_processes": "eight"}},
            ["num_processes eight is not a whole number. Run `accelerate config`"],
        ),
        ({"config": {5: 1}}, ["5 1 is not known"]),
        ({"config": {"distributed_type": "FSDP", "fsdp_config": {5: 1}}}, ["fsdp_5 1 is not known"]),
        ({"config": {"ipex_config": {"ipex": True}}}, ["ipex True is not known", "remove this line"]),
        ({"config": {"enable_cpu_affinity": True}}, ["Give `accelerate launch` --enable_cpu_affinity instead."]),
        ({"cores": (1, 1, 1)}, ["Only one core", "Use at least two"]),
        ({"quota": 1.0}, ["Only one core"]),
        ({"quota": 4.0}, ["may use 4 cores, but programs see 16", "OMP_NUM_THREADS=4", "--workers 4"]),
        ({"disk": (3 * GIB, 900 * GIB)}, ["Only 3.0 GiB of this disk are free"]),
        ({"memory": (2 * GIB, 64 * GIB)}, ["Only 2.0 GiB of memory", "--training.batch-size"]),
        ({"open_files": 256}, ["only 256 files", "ulimit -n 4096"]),
    ],
)
def test_each_trouble_has_a_remedy(changes, parts):
    (line,) = troubles(dataclasses.replace(HEALTHY, **changes))
    assert all(part in line for part in parts), line
    assert "\n" not in line
    assert f"- {line}" in "\n".join(report(dataclasses.replace(HEALTHY, **changes)))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"precision": "no"}, "no bf16 instructions (AVX512-BF16 or AMX)"),
        ({"environment": {"OMP_NUM_THREADS": "1"}}, "fewer threads than cores (16 are usable)"),
        ({"environment": {"OMP_NUM_THREADS": "64"}}, "more threads than cores (16 are usable)"),
        ({"config": {"mixed_precision": "fp16"}}, "asks for fp16, which needs a GPU"),
        ({"config": {"mixed_precision": "bf16"}, "precision": "no"}, "bf16, which this CPU emulates slowly"),
    ],
)
def test_troubles_of_machines_without_a_gpu(changes, part):
    machine = dataclasses.replace(HEALTHY, torch="2.14.1+cpu", torchvision="0.29.1+cpu", cuda="", gpus=[], driver="")
    assert troubles(machine) == []
    found = troubles(dataclasses.replace(machine, **changes))
    assert sum(part in line for line in found) == 1
    assert len(found) == 1 + (changes.get("precision") == "no" and "config" in changes)


def test_this_machine(capsys):
    doctor()
    text = capsys.readouterr().out
    for line in (torch.__version__, torchvision.__version__, platform.python_version()):
        assert line in text
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        *("Versions", "Devices", "Extras", "Settings", "What would be slow or fail")
    ]
    machine = this_machine()
    assert machine.cores[2] == len(os.sched_getaffinity(0))
    assert 0 < machine.memory[0] <= machine.memory[1]
    assert len(machine.gpus) == torch.cuda.device_count()


def test_the_processor_as_linux_lists_it(monkeypatch, tmp_path):
    (tmp_path / "cpu").write_text(
        "".join(
            f"processor\t: {thread}\nmodel name\t: Intel(R) Xeon(R)\nphysical id\t: {thread % 2}\nsiblings\t: 4\n"
            f"core id\t\t: {thread // 4}\nflags\t\t: fpu avx2 avx512f amx_bf16 amx_tile\n\n"
            for thread in range(8)
        )
    )
    (tmp_path / "quota").write_text("250000 100000\n")
    monkeypatch.setattr(facts, "CPU_INFO", tmp_path / "cpu")
    monkeypatch.setattr(facts, "CPU_QUOTA", tmp_path / "quota")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = facts._processor()
    assert found["cpu"] == "Intel(R) Xeon(R)"
    assert found["cores"][:2] == (4, 8)
    assert found["quota"] == 2.5
    assert found["features"] == ["avx2", "avx512f", "amx_bf16"]
    (tmp_path / "quota").write_text("max 100000\n")
    assert facts._processor()["quota"] == 0


def test_the_accelerate_config(monkeypatch, tmp_path):
    file = tmp_path / "default_config.yaml"
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(file))
    assert this_machine().config == {}
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 8\nmain_process_ip: 10.1.2.3\nmixed_precision: bf16\n")
    text = "\n".join(report(this_machine()))
    assert f"{file}: distributed_type MULTI_GPU, num_processes 8, mixed_precision bf16" in text
    assert "10.1.2.3" not in text
    assert "asks for 8 GPUs" in text or torch.cuda.device_count() >= 8


def test_hardware_files_have_no_troubles_where_their_gpus_are():
    for path in (ROOT / "recipes" / "hardware").glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        assert troubles(dataclasses.replace(HEALTHY, gpus=[GPU] * 8, config=config)) == [], path.name


def test_an_answer_that_is_an_option_of_recipes_is_a_setting():
    config = {"distributed_type": "NO", "dynamo_config": {"dynamo_backend": "INDUCTOR", "dynamo_mode": "default"}}
    machine = dataclasses.replace(HEALTHY, config=config, config_file="default.yaml")
    assert troubles(machine) == []
    text = "\n".join(report(machine))
    assert "dynamo_backend INDUCTOR, used as --training.compile\n" in text
    assert "dynamo_mode default, used as the value of --training.compile\n" in text


def test_names_are_removed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("USER", "anna")
    monkeypatch.setattr(platform, "node", lambda: "node17")
    text = "/home/anna/env/lib, /scratch/anna/hf, /scratch/annabel/hf on node17"
    assert anonymous(text) == "~/env/lib, /scratch/USER/hf, /scratch/annabel/hf on HOST"


def test_extras_are_those_of_the_package():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert set(EXTRAS) <= set(project["optional-dependencies"])


def test_missing_extras_have_a_pip_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = "\n".join(report(HEALTHY))
    for name in EXTRAS:
        assert f"pip install 'fingerprint-accel[{name}]'" in text


def test_a_broken_installation_is_reported(monkeypatch):
    """torchvision raises this where it was built for another torch."""
    import builtins

    original = builtins.__import__

    def broken(name, *rest):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    machine = this_machine()
    assert machine.import_error == "operator torchvision::nms does not exist"
    assert any("operator torchvision::nms" in line for line in troubles(machine))
