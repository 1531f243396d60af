"""Compute the softmax cross-entropy over classes that are sharded over processes.

Each process computes the logits of all prints for its own classes. Two numbers per print are reduced over processes:
the largest logit and the sum of exponentials. With these two numbers, each process computes the loss and the gradients
of its shard (An et al. 2021, "Partial FC: Training 10 Million Identities on a Single Machine", arXiv 2010.05222).

The backward pass is written by hand. The logits are by far the largest tensor. They are computed once and modified in
place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from fingerprint_accel.losses.exchange import rank_and_world_size, reduce

WithMargin = Callable[[torch.Tensor, "float | torch.Tensor"], torch.Tensor]


@dataclass(frozen=True)
class Scoring:
    """Options for computing logits from embeddings and class vectors.

    Attributes:
        scale: factor of the logits.
        with_margin: function that applies the margin to the cosine of the true class. None selects dot products and a
            bias instead of cosines.
        filter_threshold: wrong classes with a larger cosine are excluded; 1 excludes none.
    """

    scale: float
    with_margin: WithMargin | None
    filter_threshold: float = 1.0


@dataclass
class _Part:
    """Tensors of one embedding prefix that the backward pass needs, for N prints and R classes.

    Attributes:
        logits: (N, R) logits. The forward pass overwrites them with exp(logit - largest logit of the print).
        inverse: (R,) reciprocal Euclidean norm of each class vector, or None for dot products.
        slope: (N, 1) derivative of the logit of the true class with respect to its cosine or product, divided by
            `scale`.
    """

    logits: torch.Tensor
    inverse: torch.Tensor | None
    slope: torch.Tensor


class ShardedCrossEntropy(torch.autograd.Function):
    """Autograd function that returns the mean softmax cross-entropy over sharded classes as a scalar tensor.

    The softmax covers the classes of all ranks. The mean is taken over the prints of all ranks.

    All ranks get the same loss. The gradient of the embeddings is multiplied by the number of ranks, because DDP
    averages over ranks. The gradient of the class vectors is not scaled.

    Args:
        everyone: (N, sum(lengths)) embeddings of the prints of all ranks, concatenated with their prefixes along the
            second dimension.
        weight: (R, D) class vectors of this rank.
        bias: (R,) or None.
        own: (N,) int64 row of the true class in `weight`, or -1 if a different rank owns this class. The loss is NaN if
            no rank owns the class.
        margin: Margin of the true class.
        lengths: Dimensions of the embeddings and of each prefix in `everyone`, starting with D. The loss is averaged
            over these parts.
        scoring: Options for computing logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        everyone: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        own: torch.Tensor,
        margin: float | torch.Tensor,
        lengths: list[int],
        scoring: Scoring,
    ) -> torch.Tensor:
        parts = [_score(embedding, weight, bias, own, margin, scoring) for embedding in everyone.split(lengths, dim=1)]
        here, slot = own >= 0, own.clamp(min=0)[:, None]
        largest = reduce(torch.stack([part.logits.amax(dim=1) for part in parts]), largest=True)  # (P, N)
        own_logits = torch.stack([torch.where(here, part.logits.gather(1, slot)[:, 0], 0) for part in parts])
        for part, top in zip(parts, largest, strict=True):
            part.logits.sub_(top[:, None]).exp_()
        sums = torch.stack([part.logits.sum(dim=1) for part in parts])
        sums, own_logits, found = reduce(torch.stack([sums, own_logits, here.expand_as(sums).to(sums)]))  # (P, N) each
        ctx.save_for_backward(everyone, weight, bias, own, sums)
        ctx.parts, ctx.lengths, ctx.scale = parts, lengths, scoring.scale
        return (sums.log() + largest - own_logits / found).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        everyone, weight, bias, own, sums = ctx.saved_tensors
        assert ctx.parts, "backward can run only once, because logits are modified in place"
        here, slot = own >= 0, own.clamp(min=0)[:, None]
        # (P, N, 1); dividing by the sums normalises the exponentials that the forward pass left
        rows = gradient * ctx.scale / sums.numel() / sums[..., None]
        to_everyone, to_weight, to_bias = [], torch.empty(0), None if bias is None else torch.zeros_like(bias)
        for embedding, row, total in zip(everyone.split(ctx.lengths, dim=1), rows, sums, strict=True):
            part = ctx.parts.pop(0)
            logits, vectors = part.logits, weight[:, : embedding.shape[1]]
            kept = logits.gather(1, slot)
            logits.scatter_(1, slot, torch.where(here[:, None], (kept - total[:, None]) * part.slope, kept))
            to_vectors = logits.T @ (embedding * row)  # (R, d)
            if to_bias is not None:
                to_bias += logits.T @ row[:, 0]
            if part.inverse is not None:  # gradient of the normalisation: remove the component along the vector
                along = torch.einsum("rd,rd->r", to_vectors, vectors) * part.inverse.square()
                to_vectors.addcmul_(vectors, along[:, None], value=-1).mul_(part.inverse[:, None])
                logits.mul_(part.inverse)
            to_everyone.append(logits @ vectors * row * rank_and_world_size()[1])
            if embedding.shape[1] == weight.shape[1]:
                to_weight = to_vectors
            else:
                to_weight[:, : embedding.shape[1]] += to_vectors
        return torch.cat(to_everyone, dim=1), to_weight, to_bias, None, None, None, None


def _score(
    embedding: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    own: torch.Tensor,
    margin: float | torch.Tensor,
    scoring: Scoring,
) -> _Part:
    """Compute the logits of embeddings, or of prefixes of embeddings, for the classes of this rank.

    The margin is applied to the logits of the true classes.

    Args:
        embedding: (N, d) embeddings or prefixes. They are compared with the first d elements of the class vectors.
        weight: (R, D) class vectors of this rank.
        bias: (R,) or None.
        own: (N,) int64 row of the true class in `weight`, or -1.
        margin: margin of the true class.
        scoring: options for computing logits.
    """
    vectors = weight[:, : embedding.shape[1]]
    logits = embedding @ vectors.T
    if scoring.with_margin is None:
        if bias is not None:
            logits += bias
        return _Part(logits.mul_(scoring.scale), None, torch.ones_like(logits[:, :1]))
    inverse = 1 / torch.linalg.vector_norm(vectors, dim=1).clamp(min=1e-12)
    logits.mul_(inverse * scoring.scale)
    slot = own.clamp(min=0)[:, None]
    cosine = logits.gather(1, slot) / scoring.scale
    with torch.enable_grad():
        leaf = cosine.requires_grad_()
        shifted = scoring.with_margin(leaf, margin)
        (slope,) = torch.autograd.grad(shifted.sum(), leaf)
    if scoring.filter_threshold < 1:
        logits.masked_fill_(logits > scoring.filter_threshold * scoring.scale, float("-inf"))
    own_logit = torch.where(own[:, None] >= 0, scoring.scale * shifted.detach(), logits.gather(1, slot))
    logits.scatter_(1, slot, own_logit)
    return _Part(logits, inverse, slope)
