"""Apply gradient checkpointing: the backward pass recomputes the features inside a block instead of storing them.

Gradient checkpointing saves memory and takes more time (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
Cost", arXiv 1604.06174). This module uses `torch.utils.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def statistics_kept(block: nn.Module) -> Iterator[None]:
    """Return a context manager that keeps the running statistics of the batch normalisations in a block unchanged.

    The recomputation processes the same batch again, and must not update the statistics a second time. The layers stay
    in training mode, because the recomputation must save the same tensors as the first pass.
    """
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [(part.momentum, part.num_batches_tracked) for part in norms]
    for part in norms:
        part.momentum, part.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for part, (momentum, count) in zip(norms, before, strict=True):
            part.momentum, part.num_batches_tracked = momentum, count


def forward_checkpointed(blocks: nn.Sequential, features: torch.Tensor) -> torch.Tensor:
    """Apply blocks in sequence, and store only the features between the blocks for the backward pass.

    Modules without children are called directly, because checkpointing a single layer saves nothing. No block contains
    random layers, so the random state is not preserved.
    """

    def compute(block: nn.Module, features: torch.Tensor) -> torch.Tensor:
        return checkpoint(
            block,
            features,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), statistics_kept(block)),
        )

    for block in blocks:
        features = compute(block, features) if any(True for _ in block.children()) else block(features)
    return features
