"""Create a training loader from an opened dataset in one call, for custom training loops."""

from __future__ import annotations

import numpy as np
import torch

from fingerprint_accel.data.loader import Subset, TrainingLoader, subset_of_fingers
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import require


def training_loader(
    data: Shards | Subset,
    batch_size: int,
    *,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
    device: torch.device | str = "cpu",
    samples_per_class: int = 1,
    position: int = 0,
    truth: bool = False,
) -> TrainingLoader:
    """Create an endless loader of shuffled batches for one training process.

    Use the loader as a context manager, then iterate over it. Every print occurs once per epoch. The order depends on
    `seed` and `position` alone. All processes together read the same prints for any number of processes, as long as
    `batch_size * processes` is the same. No `DataLoader` and no `accelerator.prepare` are needed.

    Args:
        data: Opened dataset, or some of its fingers from `data.loader.subset_of_fingers`.
        batch_size: Number of prints per batch of this process.
        seed: Seed of the order.
        rank: Rank of this process, `accelerator.process_index`.
        processes: Number of processes, `accelerator.num_processes`.
        device: Device that batches are copied to, `accelerator.device`. On a CPU the image and minutiae of a batch are
            valid until the next batch is requested.
        samples_per_class: Number of different impressions of each finger in a batch; 1 draws prints independently of
            the finger.
        position: Number of prints to skip, summed over all processes. Pass `step * batch_size * processes` to resume at
            `step`.
        truth: Whether batches have `pose` and `contact`, the ground truth for alignment networks and dense networks.

    Returns:
        Context manager and iterable of `data.batch.Batch`.

    Raises:
        UserError: If there are no prints, or `samples_per_class` does not divide `batch_size`.
    """
    subset = data if isinstance(data, Subset) else subset_of_fingers(data, np.ones(len(data.key_of_finger), bool))
    require(len(subset) > 0, f"{subset.shards.folder}: no prints to train on; select some fingers")
    divides = batch_size % samples_per_class == 0
    require(divides, f"batch_size {batch_size} is not a multiple of samples_per_class {samples_per_class}")
    order = SampleOrder(len(subset), seed, labels=subset.labels, per_finger=samples_per_class)
    return TrainingLoader(subset, order, batch_size, rank, processes, device, position, truth=truth)
