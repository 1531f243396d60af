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
    rank = next((os.environ[name] for name in RANKS if os.environ.get(name)), "")
    if not rank:
        return 0, 1
    size = next((os.environ[name] for name in SIZES if os.environ.get(name)), "")
    return int(rank), int(size or 1)


def launched_local_rank() -> int:
    """Return the rank of this process among those of its machine, or 0 without a launcher."""
    return int(next((os.environ[name] for name in LOCAL_RANKS if os.environ.get(name)), 0))
