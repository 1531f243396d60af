"""Embeddings of the validation prints, made by all ranks together, and their error rates."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from fingerprint_accel.data.batch import Batch
from fingerprint_accel.evaluation.metrics import validation_metrics
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.training.data import PrintSource
from fingerprint_accel.training.fsdp import ThroughRoot
from fingerprint_accel.training.speed import begin_step


class Readable(Protocol):
    """Prints with fingers; a `PrintSource` is one."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> np.ndarray: ...

    def read(self, samples: np.ndarray, epochs: np.ndarray) -> Batch: ...


@torch.no_grad()
def embed(
    accelerator: Accelerator,
    model: DeepPrint | ThroughRoot,
    preprocessor: Preprocessor,
    subset: Readable,
    batch_size: int,
    title: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeds every print of `subset`, each on one rank.

    Ranks take turns print by print; short ranks repeat prints so that all gather equal shapes, and the repetitions are
    dropped by index. With a `title` a progress bar shows.

    Returns:
        (N, D) float32 embeddings and (N,) int64 labels on the CPU, in the subset's order, the same on every rank.
    """
    count, processes = len(subset), accelerator.num_processes
    share = -(-count // processes)
    mine = (np.arange(share) * processes + accelerator.process_index) % count
    was_training = model.training
    model.eval()
    parts = []
    shown = bool(title) and accelerator.is_main_process
    for start in tqdm(range(0, share, batch_size), desc=title, unit="batch", disable=not shown):
        samples = mine[start : start + batch_size]
        begin_step()
        batch = subset.read(samples, np.zeros(len(samples), np.int64)).to(accelerator.device)
        with accelerator.autocast():
            output = model(preprocessor(batch, augment=False)[0])
        parts.append(output.embedding.float())
    model.train(was_training)
    index = torch.from_numpy(mine).to(accelerator.device)
    gathered_index = accelerator.gather(index).cpu()
    gathered = accelerator.gather(torch.cat(parts)).cpu()
    embeddings = torch.empty(count, gathered.shape[1])
    embeddings[gathered_index] = gathered
    return embeddings, torch.from_numpy(subset.labels)


def validate(
    accelerator: Accelerator,
    model: DeepPrint | ThroughRoot,
    preprocessor: Preprocessor,
    subset: PrintSource,
    batch_size: int,
) -> dict[str, float]:
    """Error rates over all pairs of the validation prints: `eer` and `tar@far=...` where the pairs can resolve them.

    Embeddings that are not finite count as an EER of 1: nothing worse can be reported, and training may recover.
    """
    embeddings, labels = embed(accelerator, model, preprocessor, subset, batch_size)
    if not torch.isfinite(embeddings).all():
        return {"eer": 1.0}
    return {name: value for name, value in validation_metrics(embeddings, labels).items() if value is not None}
