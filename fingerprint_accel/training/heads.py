"""Identity heads of a network that already knows fingers: each class vector starts as the mean of its finger's prints.

Otherwise random class vectors pull the embeddings about until they have been learned, which with many fingers takes
longer than an epoch. As in proxy initialisation for metric learning (Movshovitz-Attias et al. 2017, arXiv 1703.07464,
learn such proxies from random ones) and imprinted weights (Qi, Brown and Lowe 2018, arXiv 1712.07136).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fingerprint_accel.data.batch import Batch
from fingerprint_accel.losses.exchange import reduce
from fingerprint_accel.losses.sharded import ShardedHead
from fingerprint_accel.training.data import PrintSource
from fingerprint_accel.training.fsdp import gather_full, shard_like
from fingerprint_accel.training.run import Run
from fingerprint_accel.training.validation import embed

PRINTS_PER_FINGER = 2  # at most: a mean of two is near enough to start from


@dataclass(frozen=True)
class _Some:
    """Some prints of a source, as `validation.embed` reads them."""

    source: PrintSource
    samples: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.samples]

    def read(self, samples: np.ndarray, epochs: np.ndarray, *, truth: bool = False) -> Batch:
        return self.source.read(self.samples[samples], epochs)


def first_of_each(labels: np.ndarray, most: int) -> np.ndarray:
    """(N,) labels -> (M,) indices of the first `most` of each label, ascending."""
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=ranked[:1] - 1))
    rank = np.arange(len(ranked)) - np.repeat(starts, np.diff(starts, append=len(ranked)))
    return np.sort(order[rank < most])


@torch.no_grad()
def start_heads(run: Run) -> None:
    """Sets the class vectors of every identity head to the mean embedding of a few of the finger's prints.

    The same on every rank. Lengths stay what they were, on average.
    """
    some = _Some(run.train, first_of_each(run.train.labels, PRINTS_PER_FINGER))
    embeddings, labels, _ = embed(
        run.accelerator, run.network, run.preprocessor, some, run.config.training.batch_size, "starting heads"
    )
    branches = embeddings.split(list(run.bare.model.branch_dims.values()), dim=1)
    for name, vectors in zip(run.bare.model.branch_dims, branches, strict=True):
        head = run.bare.loss.heads[name]
        weight, rows = head.weight, head.rows if isinstance(head, ShardedHead) else slice(0, run.train.classes)
        assert isinstance(weight, torch.Tensor)
        here = (labels >= rows.start) & (labels < rows.stop)
        sums = torch.zeros(len(weight), vectors.shape[1]).index_add_(0, labels[here] - rows.start, vectors[here])
        lengths = gather_full(weight).norm(dim=1).sum()
        length = (reduce(lengths) if isinstance(head, ShardedHead) else lengths) / run.train.classes
        weight.copy_(shard_like(F.normalize(sums, dim=1) * length.cpu(), weight))
