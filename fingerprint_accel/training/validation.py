"""Compute embeddings of prints on all ranks together, and error rates on the validation prints."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from fingerprint_accel.metrics.verification import validation_metrics
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.preprocess.pipeline import MM_PER_INCH, Preprocessor
from fingerprint_accel.training.data import PrintSource
from fingerprint_accel.training.fsdp import reshard
from fingerprint_accel.training.module import TrainingModule
from fingerprint_accel.training.speed import begin_step


class Embedded(NamedTuple):
    """Embeddings of N prints, in the order of the prints. The tensors are on the CPU and equal on all ranks.

    Attributes:
        embeddings: (N, D) float32 embeddings with D dimensions.
        labels: (N,) int64 class label of the finger of each print.
        misaligned: (N, 3) float32 errors of the alignment network, which estimates the rotation and position of a
            finger. The columns are the rotation in radians, and the shifts along x and y, divided by half the side
            length of the input. The errors are NaN if the true pose is unknown or there is no alignment network.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor
    misaligned: torch.Tensor


@torch.no_grad()
def embed(
    accelerator: Accelerator,
    model: DeepPrint | TrainingModule,
    preprocessor: Preprocessor,
    prints: PrintSource,
    batch_size: int,
    samples: np.ndarray | None = None,
    title: str = "",
) -> Embedded:
    """Compute the embeddings of prints. All ranks must call this, because each rank embeds a part of the prints.

    The prints are assigned to the ranks in turn. A rank with fewer prints repeats some of its prints, because `gather`
    needs equal shapes on all ranks. The result contains each print once.

    Args:
        accelerator: Accelerator of the run.
        model: The network, or the training module. With FSDP, it must be the training module.
        preprocessor: Preprocessor of the run.
        prints: Source of the prints.
        batch_size: Number of prints per batch of each rank.
        samples: (N,) indices of the prints to embed. Defaults to all prints.
        title: Title of a progress bar; without a title, no progress bar is shown.
    """
    samples = np.arange(len(prints)) if samples is None else samples
    count, processes = len(samples), accelerator.num_processes
    share = -(-count // processes)
    mine = (np.arange(share) * processes + accelerator.process_index) % count
    describe = model.embed if isinstance(model, TrainingModule) else model
    was_training = model.training
    model.eval()
    parts = []
    shown = bool(title) and accelerator.is_main_process
    for start in tqdm(range(0, share, batch_size), desc=title, unit="batch", disable=not shown):
        some = samples[mine[start : start + batch_size]]
        begin_step()
        batch = prints.read(some, np.zeros(len(some), np.int64), truth=True).to(accelerator.device)
        with accelerator.autocast():
            output = describe(preprocessor(batch, augment=False)[0])
        misaligned = torch.full((len(some), 3), math.nan, device=accelerator.device)
        if output.transform is not None and batch.pose is not None:
            misaligned = output.transform - preprocessor.truth(batch, augment=False)[0]
        parts.append(torch.cat([output.embedding.float(), misaligned], dim=1))
    model.train(was_training)
    reshard(model)
    index = torch.from_numpy(mine).to(accelerator.device)
    gathered_index = accelerator.gather(index).cpu()
    gathered = accelerator.gather(torch.cat(parts)).cpu()
    found = torch.empty(count, gathered.shape[1])
    found[gathered_index] = gathered
    return Embedded(found[:, :-3].contiguous(), torch.from_numpy(prints.labels[samples]), found[:, -3:].contiguous())


def validate(
    accelerator: Accelerator,
    model: DeepPrint | TrainingModule,
    preprocessor: Preprocessor,
    subset: PrintSource,
    batch_size: int,
    cells: int = 0,
) -> dict[str, float]:
    """Compute the error rates of a network over all pairs of the validation prints. All ranks must call this.

    Args:
        accelerator: Accelerator of the run.
        model: The network, or the training module.
        preprocessor: Preprocessor of the run.
        subset: The validation prints.
        batch_size: Number of prints per batch of each rank.
        cells: Number of cells of a dense embedding, which consists of a vector for each cell of a grid on the finger;
            0 for other embeddings.

    Returns:
        Dictionary with `eer`, and `tar@far=...` for each false accept rate (FAR) for which there are enough pairs. If
        true poses are known, the result also contains the metrics of `alignment_metrics`. If an embedding is not
        finite, the EER is 1, and training can continue.
    """
    found = embed(accelerator, model, preprocessor, subset, batch_size)
    metrics = alignment_metrics(found.misaligned, preprocessor.config.crop / 2 / subset.info.ppi * MM_PER_INCH)
    if not torch.isfinite(found.embeddings).all():
        return {"eer": 1.0, **metrics}
    rates = validation_metrics(found.embeddings, found.labels, cells)
    return {name: value for name, value in rates.items() if value is not None} | metrics


def alignment_metrics(misaligned: torch.Tensor, half_side_mm: float) -> dict[str, float]:
    """Summarise the errors of the alignment network, which estimates the position and rotation of a finger.

    Args:
        misaligned: (N, 3) errors, see `Embedded.misaligned`.
        half_side_mm: Half the side of the input of the network, in mm on the finger.

    Returns:
        Dictionary with `alignment_mm` (median), `alignment_mm_95` (95th percentile) and `alignment_degrees` (median).
        The dictionary is empty if no true pose is known.
    """
    known = misaligned[misaligned.isfinite().all(dim=1)]
    if not len(known):
        return {}
    off = known[:, 1:].norm(dim=1) * half_side_mm
    return {
        "alignment_mm": float(off.median()),
        "alignment_mm_95": float(off.quantile(0.95)),
        "alignment_degrees": math.degrees(float(known[:, 0].abs().median())),
    }
