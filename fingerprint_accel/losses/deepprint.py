"""Define the training loss of DeepPrint networks, their dense variants and their alignment networks.

The losses of the texture and minutia branches and of the minutia map are those of Engelsma, Cao and Jain 2019 (arXiv
1909.09901).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.config import LossConfig
from fingerprint_accel.errors import require
from fingerprint_accel.losses.attraction import CenterLoss, contrastive_loss
from fingerprint_accel.losses.exchange import gather
from fingerprint_accel.losses.margin import IdentityHead
from fingerprint_accel.losses.sharded import ShardedHead
from fingerprint_accel.models.alignment import aligned, pose_loss
from fingerprint_accel.models.deepprint import DeepPrint, Output


class LossParts(NamedTuple):
    """The loss of a batch and its terms.

    Attributes:
        total: scalar loss to minimise.
        parts: the terms by name, each a scalar that is not multiplied by its weight and is detached from the graph.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class DeepPrintLoss(nn.Module):
    """Training objective of a `DeepPrint` network.

    Each branch has an identity head, a center loss and a contrastive loss. Networks with a minutia branch add a
    minutia-map loss, dense networks a mask loss, and networks with an alignment network a pose loss. The total is the
    sum of all terms, each multiplied by its weight in `config`.

    Every term is a mean over the batch. The mean over processes is therefore the loss of the whole batch. The same
    holds for the mean over micro-batches of equal size. The contrastive loss is an exception: it compares only the
    prints of one micro-batch. Everything is computed in float32, even under autocast.

    The identity heads have parameters, which the optimizer needs. Centres are buffers: call `update_centers` after each
    optimizer step.

    Args:
        config: Type of the identity head, weights of the terms, and other options.
        model: Network whose outputs are compared with their targets.
        num_fingers: Number of training fingers, `open_dataset(folder).info.fingers` for a whole dataset.
    """

    def __init__(self, config: LossConfig, model: DeepPrint, num_fingers: int) -> None:
        super().__init__()
        self.config, self.has_map, self.cells = config, model.config.needs_minutia_maps, model.config.cells
        dims, dropout = model.branch_dims, model.config.dropout
        self.heads = nn.ModuleDict({name: self._head(dim, num_fingers, dropout) for name, dim in dims.items()})
        with_centers = dims if config.center_weight > 0 else {}  # with weight 0, centres would only take memory
        self.centers = nn.ModuleDict({name: CenterLoss(dim, num_fingers) for name, dim in with_centers.items()})

    def _head(self, dim: int, classes: int, dropout: float) -> nn.Module:
        config = self.config
        how = dim, classes, config.head, config.scale, config.margin, dropout
        if config.sharded:
            return ShardedHead(*how, config.class_sample_rate, config.interclass_filter_threshold)
        return IdentityHead(*how, config.label_smoothing)

    @property
    def describes(self) -> bool:
        """Whether the loss trains the embeddings, and not only the alignment network."""
        config = self.config
        weights = [config.identity_weight, config.center_weight, config.contrastive_weight]
        weights += [config.minutia_map_weight] if self.has_map else []
        weights += [config.mask_weight] if self.cells else []
        return any(weights)

    @property
    def sharded_heads(self) -> dict[str, ShardedHead]:
        """Identity heads that are sharded over processes, as a dictionary keyed by branch name."""
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
        """Compute the loss of a batch. A target is needed if the weight of its term is above 0.

        Args:
            output: Output of the network in training mode for B prints.
            finger: (B,) int64 class labels.
            maps: (B, 6, M, M) true minutia maps, as `Preprocessor` returns them; for networks with a minutia branch and
                dense networks.
            has_minutiae: (B,) bool, whether the minutiae of the print are known, `batch.minutia_count > 0`. The
                minutia-map loss of prints with unknown minutiae is 0.
            margin: Margin of this step, a number or a scalar float32 tensor; `config.margin` by default.
            pose: (B, 3) true rotations and shifts, as `Preprocessor.truth` returns them, NaN where unknown; for
                networks with an alignment network.
            contact: (B, N, N) share of each cell of the input that is in contact with the finger, as
                `Preprocessor.truth` returns it; for dense networks.

        Raises:
            UserError: A target is missing although the weight of its term is above 0.
        """
        self._check_targets(output, maps is not None and has_minutiae is not None, pose, contact)
        total = torch.zeros((), device=finger.device)
        parts: dict[str, torch.Tensor] = {}
        with torch.autocast(finger.device.type, enabled=False):
            terms = [
                (term, f"{term}_{name}", value)
                for name, embedding in output.branches.items()
                for term, value in self._branch(name, embedding.float(), finger, margin).items()
            ]
            if self.has_map and self.describes and output.minutia_map is not None:
                map_loss = minutia_map_loss(output.minutia_map.float(), maps, has_minutiae)
                terms.append(("minutia_map", "minutia_map", map_loss))
            terms += [(term, term, value) for term, value in self._truths(output, pose, contact).items()]
            for term, name, value in terms:
                total = total + getattr(self.config, f"{term}_weight") * value
                parts[name] = value.detach()
        return LossParts(total, parts)

    def _check_targets(
        self, output: Output, has_maps: bool, pose: torch.Tensor | None, contact: torch.Tensor | None
    ) -> None:
        """Raise a UserError if a target is missing although the weight of its term is above 0.

        Args:
            output: Output of the network.
            has_maps: Whether the caller has given `maps` and `has_minutiae`.
            pose, contact: See `forward`.
        """
        config = self.config
        maps_wanted = self.has_map and self.describes and config.minutia_map_weight > 0
        require(
            not maps_wanted or output.minutia_map is not None,
            "the network drew no minutia maps, which loss.minutia_map_weight needs: call model.train() first",
        )
        wanted = {
            "maps and has_minutiae": (maps_wanted and not has_maps, "minutia_map_weight"),
            "pose": (output.pose is not None and pose is None and config.pose_weight > 0, "pose_weight"),
            "contact": (output.contact is not None and contact is None and config.mask_weight > 0, "mask_weight"),
        }
        for target, (is_missing, weight) in wanted.items():
            value = getattr(config, weight)
            require(not is_missing, f"loss.{weight} is {value:g}: give {target} to the loss, or set the weight to 0")

    def _truths(
        self, output: Output, pose: torch.Tensor | None, contact: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Return the pose loss and the mask loss, keyed by name, for the targets that the network predicts.

        Args:
            output: Output of the network.
            pose, contact: See `forward`.
        """
        terms = {}
        if output.pose is not None and self.config.pose_weight > 0:
            assert pose is not None, "checked before"
            terms["pose"] = pose_loss(output.pose, pose)
        if output.contact is not None:
            terms["mask"] = mask_loss(output.contact.float(), contact, output.transform)
        return terms

    def _branch(
        self, name: str, embedding: torch.Tensor, finger: torch.Tensor, margin: float | torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Return the identity, center and contrastive losses of one branch as a dictionary keyed by name.

        Identity and contrastive losses are averaged over the embedding and its prefixes (`config.matryoshka_dims`).

        Args:
            name: Name of the branch.
            embedding: (B, D) float32 of unit length.
            finger: (B,) int64 class labels.
            margin: See `forward`.
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
        """Move the class centres towards the prints of all processes. Call this method once per optimizer step.

        If `config.center_weight` is 0, the method does nothing.

        Args:
            embeddings: (N, D) embeddings by branch, `Output.branches`, of all micro-batches of this process.
            finger: (N,) int64 class labels of the prints.
            skip: scalar bool tensor; if True, the centres do not change. Use it if the optimizer step was skipped.
        """
        everyone = gather(finger) if len(self.centers) else finger
        for name, center in self.centers.items():
            assert isinstance(center, CenterLoss)
            center.update(gather(embeddings[name].detach().float()), everyone, skip)


def minutia_map_loss(
    predicted: torch.Tensor, maps: torch.Tensor | None, has_minutiae: torch.Tensor | None
) -> torch.Tensor:
    """Compute the mean squared error of minutia maps over the whole batch.

    The error of prints without known minutiae is 0. If `maps` is None, the loss is 0 but depends on the predictions, so
    that DDP finds gradients for the decoder.

    Args:
        predicted: (B, 6, S, S) float32 predicted maps.
        maps: (B, 6, M, M) true maps, or None. If M differs from S, the predictions are resampled.
        has_minutiae: (B,) bool, whether the minutiae of the print are known. None means that all are known.
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
    """Return the binary cross-entropy of the predicted contact mask, averaged over cells and prints.

    If `contact` is None, the loss is 0.

    Args:
        predicted: (B, G, G) contact logits of the cells of the aligned print.
        contact: (B, N, N) share of each cell of the input that is in contact with the finger, or None.
        transform: (B, 3) rotation and shift that the network applied to the input, or None. The function
            applies it to `contact`, too.
    """
    if contact is None:
        return 0.0 * predicted.sum()
    there = contact[:, None].float()
    if transform is not None:
        there = aligned(there, transform, "bilinear")
    share = F.adaptive_avg_pool2d(there, predicted.shape[-1])[:, 0]
    return F.binary_cross_entropy_with_logits(predicted, (share > 0.5).float())
