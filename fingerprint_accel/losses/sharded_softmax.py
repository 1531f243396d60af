"""Softmax cross-entropy over classes that lie on several processes.

Each process scores all prints against its own classes. Two numbers per print, the largest logit and the sum of the
exponentials, are reduced over processes, and with them every process knows the loss and the gradients of its part
(An et al. 2021, "Partial FC: Training 10 Million Identities on a Single Machine", arXiv 2010.05222).

Written out by hand, because the logits are by far the largest tensor: here they are made once and changed in place.
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
    """How embeddings and class vectors become logits.

    Attributes:
        scale: multiplies what is below.
        with_margin: for cosines, what the margin makes of the one to the own class. None: products with class vectors
            as long as they are, and a bias.
        filter_threshold: other classes with a larger cosine count as absent; 1 leaves all in.
    """

    scale: float
    with_margin: WithMargin | None
    filter_threshold: float = 1.0


@dataclass
class _Part:
    """What one part of the embeddings leaves for the backward pass.

    Attributes:
        logits: (N, R), exp(logit - largest logit of the print) after the forward pass.
        inverse: (R,) 1 / length of class vectors, or None for plain products.
        slope: (N, 1) derivative of the own logit by the own product or cosine, over `scale`.
    """

    logits: torch.Tensor
    inverse: torch.Tensor | None
    slope: torch.Tensor


class ShardedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of all prints over all classes, (), the same on every rank.

    Embeddings get the number of ranks times their gradient of this mean: DDP averages over ranks what follows from
    them. Class vectors get their gradient as it is. The arguments are those of `apply`.

    Args:
        everyone: (N, sum of lengths) embeddings of all ranks, the whole and its beginnings side by side.
        weight: (R, D) class vectors of this rank.
        bias: (R,) or None.
        own: (N,) int64 row of the own class in `weight`, or -1 where another rank has it. Where no rank has it the
            loss is NaN.
        margin: of the own class.
        lengths: of the parts of `everyone`, D first; the loss is the mean over parts.
        scoring: how logits are made.
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
        assert ctx.parts, "backward runs once: logits are changed in place"
        here, slot = own >= 0, own.clamp(min=0)[:, None]
        rows = gradient * ctx.scale / sums.numel() / sums[..., None]  # (P, N, 1); exponentials are not normalised
        to_everyone, to_weight, to_bias = [], torch.empty(0), None if bias is None else torch.zeros_like(bias)
        for embedding, row, total in zip(everyone.split(ctx.lengths, dim=1), rows, sums, strict=True):
            part = ctx.parts.pop(0)
            logits, vectors = part.logits, weight[:, : embedding.shape[1]]
            kept = logits.gather(1, slot)
            logits.scatter_(1, slot, torch.where(here[:, None], (kept - total[:, None]) * part.slope, kept))
            to_vectors = logits.T @ (embedding * row)  # (R, d)
            if to_bias is not None:
                to_bias += logits.T @ row[:, 0]
            if part.inverse is not None:  # of the direction; what is left along the vector itself does nothing
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
    """Logits (N, R) of embeddings (N, d) against the beginnings of the class vectors (R, D)."""
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
