"""`fingerprint-accel plan`."""

from __future__ import annotations

from fingerprint_accel.config import Trunk


def plan(
    fingers: int,
    impressions: float = 10,
    gpus: str = "1xH100",
    canvas: int = 320,
    trunk: Trunk = "inception_v4",
    fsdp: bool = False,
) -> None:
    """What will training take? Disk, memory of a GPU by part, the recipe to use, and projected hours.

    fingerprint-accel plan --fingers 100000 --impressions 10 --gpus 8xA100-80

    Args:
        fingers: To train on.
        impressions: Prints of each, on average.
        gpus: How many of which: A100-40, A100-80, H100, H200, L40S or RTX4090, as in 4xA100-40.
        canvas: Side of a stored print in pixels.
        trunk: Of the network.
        fsdp: The GPUs share the network out (recipes/hardware/fsdp.yaml).
    """
    from fingerprint_accel.plan import plan as table

    print(table(fingers, impressions, gpus, canvas, trunk, fsdp))
