"""Which process of a launch this is, as the environment says before anything is set up. A leaf module."""

from __future__ import annotations

import os

# as accelerate reads them: torchrun, Intel MPI or MPICH, Open MPI, MVAPICH
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def launched_rank_and_size() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) where no launcher names a rank: scripts for SLURM may set
    the number alone."""
    rank = next((os.environ[name] for name in RANKS if os.environ.get(name)), "")
    if not rank:
        return 0, 1
    size = next((os.environ[name] for name in SIZES if os.environ.get(name)), "")
    return int(rank), int(size or 1)
