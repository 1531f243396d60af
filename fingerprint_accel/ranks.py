"""Read the rank of this process from the environment, before torch is loaded.

This module imports no other module of the package.
"""

from __future__ import annotations

import os

# Environment variables that accelerate reads. They are set by torchrun, Intel MPI or MPICH, Open MPI, and MVAPICH.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def launched_rank_and_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, read from environment variables of the launcher.

    Without a rank in the environment the result is (0, 1), because SLURM scripts may set only the number of processes.
    """
    return (_number(RANKS, 0), _number(SIZES, 1)) if any(os.environ.get(name) for name in RANKS) else (0, 1)


def launched_local_rank() -> int:
    """Return the rank of this process among those of its machine, or 0 without a launcher."""
    return _number(LOCAL_RANKS, 0)


def not_a_number() -> str:
    """Return the first of the variables that contains no number as NAME=VALUE; an empty string if there is none."""
    for name in (*RANKS, *LOCAL_RANKS, *SIZES):
        if (value := os.environ.get(name)) and not value.isdecimal():
            return f"{name}={value}"
    return ""


def _number(names: tuple[str, ...], default: int) -> int:
    """Return the first of the variables that is set; the default if it is no number, see `not_a_number`."""
    value = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return int(value) if value.isdecimal() else default
