"""Training loss of DeepPrint (Engelsma, Cao and Jain 2019, arXiv 1909.09901), dense variants and alignment networks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.config import LossConfig
from fingerprint_accel.losses.attraction import CenterLoss, contrastive_loss
from fingerprint_accel.losses.exchange import gather
from fingerprint_accel.losses.margin import IdentityHead
from fingerprint_accel.losses.sharded import ShardedHead
from fingerprint_accel.models.alignment import aligned, pose_loss
from fingerprint_accel.models.deepprint import Output


class LossParts(NamedTuple):
    """A loss and its terms.

    Attributes:
        total: () loss to minimise.
        parts: the unweighted terms by name, () each, detached.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class DeepPrintLoss(nn.Module):
    """Identity head, center loss and contrastive loss on each branch, minutia-map loss on the minutia branch.

    total = sum over branches (w_identity * cross-entropy + w_center * center loss + w_contrastive * contrastive loss)
    + w_map * map loss + w_mask * mask loss + w_pose * pose loss. Every term is a mean over the batch, so the mean over
    micro-batches or ranks of one size is the loss of the whole batch; but the contrastive loss compares prints of one
    micro-batch, over all ranks, so its mean over micro-batches is not. Everything is computed in float32, under
    autocast too.

    Args:
        config: head, weights and rates.
        branch_dims: length of the embedding by branch name.
        num_fingers: number of training fingers.
        dropout: on the embedding, in front of the softmax head.
        has_map: the network has a minutia-map decoder.
        cells: of a dense network.
    """

    def __init__(
        self,
        config: LossConfig,
        branch_dims: dict[str, int],
        num_fingers: int,
        dropout: float = 0.2,
        has_map: bool = False,
        cells: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.has_map, self.cells = config, has_map, cells
        self.heads = nn.ModuleDict({name: self._head(dim, num_fingers, dropout) for name, dim in branch_dims.items()})
        with_centers = branch_dims if config.center_weight > 0 else {}  # else they would only take room
        self.centers = nn.ModuleDict({name: CenterLoss(dim, num_fingers) for name, dim in with_centers.items()})

    def _head(self, dim: int, classes: int, dropout: float) -> nn.Module:
        config = self.config
        how = dim, classes, config.head, config.scale, config.margin, dropout
        if config.sharded:
            return ShardedHead(*how, config.class_sample_rate, config.interclass_filter_threshold)
        return IdentityHead(*how, config.label_smoothing)

    @property
    def describes(self) -> bool:
        """Whether embeddings are trained, and not only the alignment network."""
        config = self.config
        weights = [config.identity_weight, config.center_weight, config.contrastive_weight]
        weights += [config.minutia_map_weight] if self.has_map else []
        weights += [config.mask_weight] if self.cells else []
        return any(weights)

    @property
    def sharded_heads(self) -> dict[str, ShardedHead]:
        """Heads that are sharded over processes, by branch."""
        return {name: head for name, head in self.heads.items() if isinstance(head, ShardedHead)}

    def forward(
        self,
        output: Output,
        finger: torch.Tensor,
        maps: torch.Tensor | None = None,
        has_minutiae: torch.Tensor | None = None,
        margin: float | torch.Tensor | None = None,
        pose: torch.Tensor | None = None,
        contact: torch.Tensor | None = None,
    ) -> LossParts:
        """The loss of a batch.

        Args:
            output: of the network in training mode, batch of B.
            finger: (B,) int64 class labels.
            maps: (B, 6, M, M) true minutia maps, if there are any.
            has_minutiae: (B,) bool, which of them to learn from; default all.
            margin: of this step, a number or () float32; default `config.margin`. An argument, not a state: it follows
                from the step.
            pose: (B, 3) true poses as of `AlignmentNetwork.transform`; NaN where unknown.
            contact: (B, N, N) share of each cell of the input that is in contact, before the network aligns it.
        """
        total = torch.zeros((), device=finger.device)
        parts: dict[str, torch.Tensor] = {}
        with torch.autocast(finger.device.type, enabled=False):
            terms = [
                (term, f"{term}_{name}", value)
                for name, embedding in output.branches.items()
                for term, value in self._branch(name, embedding.float(), finger, margin).items()
            ]
            if self.has_map and self.describes:
                assert output.minutia_map is not None, "the minutia map is predicted in training mode only"
                map_loss = minutia_map_loss(output.minutia_map.float(), maps, has_minutiae)
                terms.append(("minutia_map", "minutia_map", map_loss))
            terms += [(term, term, value) for term, value in self._truths(output, pose, contact).items()]
            for term, name, value in terms:
                total = total + getattr(self.config, f"{term}_weight") * value
                parts[name] = value.detach()
        return LossParts(total, parts)

    def _truths(
        self, output: Output, pose: torch.Tensor | None, contact: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Return the alignment loss and the mask loss, where they apply."""
        terms = {}
        if output.pose is not None and self.config.pose_weight > 0:
            known = pose if pose is not None else output.pose.angle.new_full((len(output.pose.angle), 3), math.nan)
            terms["pose"] = pose_loss(output.pose, known)
        if output.contact is not None:
            terms["mask"] = mask_loss(output.contact.float(), contact, output.transform)
        return terms

    def _branch(
        self, name: str, embedding: torch.Tensor, finger: torch.Tensor, margin: float | torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Return the terms of one branch by name.

        Identity and contrastive losses are averaged over embedding prefixes.
        """
        config = self.config
        nested = [embedding, *(F.normalize(embedding[:, :length], dim=1) for length in config.matryoshka_dims)]
        terms = {"identity": self.heads[name](nested, finger, margin)}
        if config.center_weight > 0:
            terms["center"] = self.centers[name](embedding, finger)
        if config.contrastive_weight > 0:
            cells = self.cells if name == "dense" else 0
            contrastive = [contrastive_loss(each, finger, config.contrastive_temperature, cells) for each in nested]
            terms["contrastive"] = sum(contrastive[1:], contrastive[0]) / len(nested)
        return terms

    @torch.no_grad()
    def update_centers(
        self, embeddings: dict[str, torch.Tensor], finger: torch.Tensor, skip: torch.Tensor | None = None
    ) -> None:
        """Move the class centres using the prints of all ranks. Call this method once per optimizer step.

        Args:
            embeddings: (N, D) by branch, from all micro-batches of this rank.
            finger: (N,) class labels.
            skip: () bool; if True, the update was skipped and the centres do not change.
        """
        everyone = gather(finger)
        for name, embedding in embeddings.items():
            center = self.centers[name]
            assert isinstance(center, CenterLoss)
            center.update(gather(embedding), everyone, skip)


def minutia_map_loss(
    predicted: torch.Tensor, maps: torch.Tensor | None, has_minutiae: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared error of minutia maps, mean over the whole batch; prints without minutiae count as 0.

    Args:
        predicted: (B, 6, S, S) float32.
        maps: (B, 6, M, M) or None, which gives 0 and keeps the decoder in the graph, as DDP needs. If M differs from S
            the prediction is resampled.
        has_minutiae: (B,) bool or None for all.
    """
    if maps is None:
        return 0.0 * predicted.sum()
    if maps.shape[-1] != predicted.shape[-1]:
        predicted = F.interpolate(predicted, size=maps.shape[-2:], mode="bilinear", align_corners=False)
    error = (predicted - maps.float()).square().mean(dim=(1, 2, 3))  # (B,)
    if has_minutiae is not None:
        error = error * has_minutiae
    return error.mean()


def mask_loss(
    predicted: torch.Tensor, contact: torch.Tensor | None, transform: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the binary cross-entropy of the contact mask, averaged over cells and prints.

    Args:
        predicted: (B, G, G) contact logits of the aligned print.
        contact: (B, N, N) share of each cell of the input that is in contact; the loss is 0 if None.
        transform: (B, 3) alignment that the network applied to the input, or None.
    """
    if contact is None:
        return 0.0 * predicted.sum()
    there = contact[:, None].float()
    if transform is not None:
        there = aligned(there, transform, "bilinear")
    share = F.adaptive_avg_pool2d(there, predicted.shape[-1])[:, 0]
    return F.binary_cross_entropy_with_logits(predicted, (share > 0.5).float())
