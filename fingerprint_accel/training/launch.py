"""Check how this process was launched, and use the answers to `accelerate config` as options of the run."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace

import torch

from fingerprint_accel.config import Config, TrainingConfig
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.ranks import RANKS, launched_rank_and_size
from fingerprint_accel.training.launch_answers import check_answer, check_environment, normalised, uses_fsdp

ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def check_answers() -> None:
    """Check the answers to `accelerate config` before an `Accelerator` or `PartialState` uses them.

    Raises:
        UserError: If an answer is not supported, or needs a package that is not installed.
    """
    check_environment()
    affinity = normalised(os.environ.get("ACCELERATE_CPU_AFFINITY", "0")) in ("1", "true")
    require(
        not (affinity and torch.cuda.is_available()) or importlib.util.find_spec("pynvml") is not None,
        "`accelerate config`: enable_cpu_affinity needs the NVIDIA Management Library; pip install '.[nvml]', or "
        "answer no to numa efficiency",
    )


def with_answers(config: Config) -> tuple[Config, list[str]]:
    """Use the answers to `accelerate config` that correspond to options of a run, unless these options are given.

    An option counts as given if it differs from its default. The answers are read from the environment variables that
    `accelerate launch` sets.

    Args:
        config: Configuration of a run.

    Returns:
        Configuration with the answers as options, and a line of text for each answer that is used or overridden.

    Raises:
        UserError: If an answer is not supported, or does not work with the other options.
    """
    notes: list[str] = []
    training = _with_accumulation(config.training, notes)
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if check_answer("dynamo_backend", backend).kind == "mapped":
        mode = os.environ.get("ACCELERATE_DYNAMO_MODE", "default")
        check_answer("dynamo_mode", mode)
        training = _with_compilation(config, training, f"dynamo_backend {backend}, dynamo_mode {mode}", mode, notes)
    return replace(config, training=training), notes


def _with_accumulation(training: TrainingConfig, notes: list[str]) -> TrainingConfig:
    text, own = os.environ.get(ACCUMULATION, "1"), training.gradient_accumulation_steps
    require(text.isdecimal() and int(text) >= 1, f"{ACCUMULATION}={text}: give a whole number of at least 1")
    steps, answer = int(text), f"`accelerate config`: gradient_accumulation_steps {text}"
    if steps in (1, own):
        return training
    if own != 1:
        notes.append(f"{answer} is not used, because --training.gradient-accumulation-steps is {own}")
        return training
    notes.append(f"{answer} is used as --training.gradient-accumulation-steps {steps}")
    return replace(training, gradient_accumulation_steps=steps)


def _with_compilation(
    config: Config, training: TrainingConfig, answer: str, mode: str, notes: list[str]
) -> TrainingConfig:
    answer, turn_off = f"`accelerate config`: {answer}", "`accelerate launch --dynamo_backend no` turns it off"
    if training.compile != "no":
        if training.compile != mode:
            notes.append(f"{answer} is not used, because --training.compile is {training.compile}")
        return training
    for holds, what in (
        (uses_fsdp(), "FSDP"),
        (config.model.gradient_checkpointing, "--model.gradient-checkpointing"),
    ):
        require(not holds, f"{answer} does not work with {what}; {turn_off}")
    notes.append(f"{answer} is used as --training.compile {mode}, which compiles block by block; {turn_off}")
    return replace(training, compile=mode)  # type: ignore[arg-type]


def check_launch(seen: int, device: str) -> None:
    """Check that Accelerate sees all processes that were launched, and has found a device that training supports.

    Accelerate sees only one process if a configuration for several GPUs is used on a machine without GPUs, or if the
    processes were started with `srun python`. Each process would then train a whole run by itself. On CPUs,
    `accelerate launch` starts several processes only with MPI.

    Args:
        seen: Number of processes of the run according to Accelerate.
        device: Type of the device that Accelerate has selected, such as `cuda`.

    Raises:
        UserError: If Accelerate sees one process, but several were launched or asked for; or if the device is not
            supported.
    """
    check_answer("device", device)
    launched = max(launched_rank_and_size()[1], _tasks_of_slurm() if "WORLD_SIZE" not in os.environ else 1)
    if seen == 1 and launched > 1:
        raise UserError(
            f"launched as {launched} processes, but Accelerate sees one, so each would train by itself. On CPUs, set "
            "ACCELERATE_USE_CPU=true or give --config_file recipes/hardware/cpu.yaml. Under srun, start one "
            "`accelerate launch` per machine (recipes/hardware/slurm.sh)"
        )
    # `accelerate launch` sets MASTER_ADDR if several processes are asked for, and no rank if it starts a single one.
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if seen == 1 and by_accelerate and not any(os.environ.get(name) for name in RANKS):
        raise UserError(
            "`accelerate launch` was asked for several processes, but starts one without mpirun. Use `ACCELERATE_USE_"
            "CPU=true torchrun --standalone --nproc_per_node=N RECIPE` on CPUs, distributed_type MULTI_GPU on GPUs, or "
            "num_processes 1. If you have set MASTER_ADDR yourself, unset it"
        )


def _tasks_of_slurm() -> int:
    """Return the number of tasks that SLURM has started in the current job step, or 1 outside of SLURM.

    The number is read from the environment variable `SLURM_STEP_NUM_TASKS`. If `SLURM_STEP_NUM_TASKS` is not set, the
    number is read from `SLURM_NTASKS`, but only if `SLURM_PROCID` is not 0. The reason is that a batch script is a
    single task with `SLURM_PROCID` 0, although its `SLURM_NTASKS` may be larger than 1.
    """
    step = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if not step and os.environ.get("SLURM_PROCID", "0") != "0":
        step = os.environ.get("SLURM_NTASKS", "")
    return int(step) if step.isdigit() else 1
