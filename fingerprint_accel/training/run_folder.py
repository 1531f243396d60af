"""Checks before a run folder is written: no other files, no second run, and no processes that train separately."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import broadcast_object_list

from fingerprint_accel.config import Config
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.models.saved_model import MODEL
from fingerprint_accel.outputs import FolderKind, check_folder, exclusive_lock
from fingerprint_accel.ranks import launched_rank_and_size

if TYPE_CHECKING:
    from accelerate import Accelerator

SECTIONS = ("reading:", "preprocess:", "model:", "loss:", "training:")  # lines by which a config.yaml is recognised


def _is_run(folder: Path) -> bool:
    try:
        lines = (folder / "config.yaml").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return all(section in lines for section in SECTIONS)


RUN = FolderKind(
    "a run folder",
    _is_run,
    r"config\.yaml|metrics\.jsonl|(best|latest)\.json|checkpoints|tensorboard|model",
    whole=False,
)


def check_run_folder(config: Config) -> None:
    """Check `--out` before any work is done.

    Raises:
        UserError: If it is missing, contains files that are not of a run, or is inside the training data.
    """
    if not config.out:
        raise UserError("no run folder: give --out a new folder")
    out = Path(config.out)
    check_folder(out, RUN, inputs=[config.data] if config.data and Path(config.data).exists() else [])
    check_folder(out / "model", MODEL)


@contextlib.contextmanager
def holding(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of a run folder. The main process acquires it for all processes.

    Raises:
        UserError: On all processes, if another run holds the lock.
    """
    refusal = f"{folder}: another run writes to it; wait until that run has ended, or choose another --out"
    with contextlib.ExitStack() as stack:
        found = [""]
        if accelerator.is_main_process:
            try:
                stack.enter_context(exclusive_lock(folder / "run.lock", refusal))
            except UserError as error:
                found = [str(error)]
        if accelerator.num_processes > 1:
            broadcast_object_list(found)
        require(not found[0], found[0])
        yield


def check_launch(seen: int) -> None:
    """Check that the launched processes form one run.

    Otherwise each of them would train the same run alone. That happens with a configuration for several GPUs on a
    machine without a GPU, and with `srun python`.

    Args:
        seen: Number of processes of the run according to Accelerate.

    Raises:
        UserError: If this process is alone in its run, but was launched as one of several.
    """
    launched = max(launched_rank_and_size()[1], _tasks_of_slurm() if "WORLD_SIZE" not in os.environ else 1)
    if seen == 1 and launched > 1:
        raise UserError(
            f"launched as {launched} processes, but Accelerate sees one: each would train alone. Without a usable "
            "GPU, launch with ACCELERATE_USE_CPU=true or --config_file recipes/hardware/cpu.yaml; under srun, start "
            "`accelerate launch` once per machine (recipes/hardware/slurm.sh)"
        )


def _tasks_of_slurm() -> int:
    """Return the number of tasks of this SLURM job step, or 1.

    A batch script has SLURM_NTASKS although it is a single process, so that this variable alone does not count.
    """
    step = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if not step and os.environ.get("SLURM_PROCID", "0") != "0":
        step = os.environ.get("SLURM_NTASKS", "")
    return int(step) if step.isdigit() else 1
