"""Less memory for more time: features inside a block are computed again in the backward pass instead of being kept.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174; `torch.utils.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def statistics_kept(block: nn.Module) -> Iterator[None]:
    """Running statistics stay as they are: the second pass over the same batch must not count twice.

    They are still read, because the second pass has to save the tensors that the first one saved.
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
    """blocks(features), but only what passes between blocks is kept for the backward pass.

    Layers that stand alone are called as they are: nothing would be saved, and none inside a block is random.
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
