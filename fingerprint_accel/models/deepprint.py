"""Define the network DeepPrint in its six original variants, and its dense variants.

The original variants are those of Engelsma, Cao and Jain 2019 (arXiv 1909.09901). The dense variants follow FDD (Pan,
Duan, Feng and Zhou 2023, arXiv 2311.18576) and DMD (2024, arXiv 2405.01199). Their embedding is a grid of short vectors
on the aligned print. A comparison of two prints uses the cells of the grid that both prints show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.models.alignment import AlignmentNetwork, FlxAlignmentNetwork, PoseLogits, aligned, best_or_mean
from fingerprint_accel.models.gradient_checkpointing import forward_checkpointed
from fingerprint_accel.models.trunks import DenseHead, trunk_parts
from fingerprint_accel.preprocess.minutia_map import MAP_SIZE


@dataclass(frozen=True)
class Output:
    """Output of the network for a batch. Fields that a variant does not have are None.

    Attributes:
        texture: (B, D_t) float32 of unit length, embedding of the texture branch.
        minutia: (B, D_m) float32 of unit length, embedding of the minutia branch.
        minutia_map: (B, 6, S, S) predicted minutia map; only in training mode.
        norm: (B,) float32 mean Euclidean norm of the branch embeddings before normalisation; only in evaluation mode.
        dense: (B, D) float32 of unit length, embedding of a dense variant: the vectors of all grid cells in row-major
            order. The vectors of cells that the print does not show are zero.
        contact: (B, G, G) logits of the probability that the print shows the cell, for a grid of G x G cells; dense
            variants only.
        pose: logits of an `AlignmentNetwork`. None if the alignment network is frozen, and in the output of `describe`.
        transform: (B, 3) rotation and shift that were applied, in the format of `AlignmentNetwork.transform`.
    """

    texture: torch.Tensor | None = None
    minutia: torch.Tensor | None = None
    minutia_map: torch.Tensor | None = None
    norm: torch.Tensor | None = None
    dense: torch.Tensor | None = None
    contact: torch.Tensor | None = None
    pose: PoseLogits | None = None
    transform: torch.Tensor | None = None

    @property
    def branches(self) -> dict[str, torch.Tensor]:
        """Embeddings of the existing branches, as a dictionary keyed by branch name, texture first."""
        present = {"texture": self.texture, "minutia": self.minutia, "dense": self.dense}
        return {name: value for name, value in present.items() if value is not None}

    @property
    def embedding(self) -> torch.Tensor:
        """Concatenation of the branch embeddings with equal weights, as a float32 tensor (B, D) of unit length."""
        parts = list(self.branches.values())
        return torch.cat(parts, dim=1) / len(parts) ** 0.5


class DeepPrint(nn.Module):
    """Network that maps prints to embeddings of unit length.

    A shared stem feeds a texture branch and a minutia branch. The minutia branch also predicts the minutia map (heat
    maps of minutia positions). Dense variants have a single branch instead, which predicts one vector per grid cell and
    the minutia map. `Loc` variants align the print first.

    Args:
        config: variant, trunk and sizes.
        map_size: side of the minutia map, pixels.
    """

    def __init__(self, config: ModelConfig, map_size: int = MAP_SIZE) -> None:
        super().__init__()
        self.config = config
        name = config.variant
        texture, minutia, dense = "Tex" in name, "Minu" in name, config.cells > 0
        dims = config.embedding_dim // (texture + minutia + dense)
        branches = {"texture": texture, "minutia": minutia, "dense": dense}
        self.branch_dims = {branch: dims for branch, on in branches.items() if on}
        self.alignment: AlignmentNetwork | FlxAlignmentNetwork | None = None
        if name.startswith("Loc"):
            self.alignment = FlxAlignmentNetwork() if config.trunk == "flx" else AlignmentNetwork(config.norm)
        parts = trunk_parts(config, dims)
        self.stem = parts.stem()
        self.texture_branch = self.minutia_stem = self.minutia_map = self.minutia_branch = None
        self.map_after = parts.map_after if dense else 0
        if dense:
            body = parts.body()
            head = DenseHead(parts.channels, config.grid, dims // config.cells, config.dropout)
            self.texture_branch = nn.Sequential(*body, head)
            self.minutia_map = parts.dense_map(map_size)
        if texture:
            self.texture_branch = parts.texture()
        if minutia:
            self.minutia_stem, self.minutia_map = parts.minutia_stem(), parts.minutia_map(map_size)
            self.minutia_branch = parts.minutia()
        self.train()

    @property
    def blocks(self) -> list[nn.Module]:
        """Modules of the trunk that consist of several layers."""
        return [block for part in self._trunk for block in _blocks(part)]

    @property
    def regions(self) -> list[nn.Module]:
        """Modules to compile separately.

        These are the alignment network, the map decoder, and the blocks of each part of the trunk. A part with at most
        one block is compiled as a whole.
        """
        found: list[nn.Module] = [part for part in (self.alignment, self.minutia_map) if part is not None]
        for part in self._trunk:
            blocks = _blocks(part)
            found += blocks if len(blocks) > 1 else [part]
        return found

    @property
    def _trunk(self) -> list[nn.Sequential]:
        parts = (self.stem, self.minutia_stem, self.texture_branch, self.minutia_branch)
        return [part for part in parts if part is not None]

    def train(self, mode: bool = True) -> DeepPrint:
        """Set the training mode like `nn.Module.train`, but keep frozen parts in evaluation mode."""
        super().train(mode)
        config = self.config
        frozen: list[nn.Module | None] = []
        if self._keeps_alignment:
            frozen.append(self.alignment)
        if config.stem_frozen or config.trunk_frozen:
            frozen.append(self.stem)
        if config.trunk_frozen:
            frozen += [self.minutia_stem, self.minutia_map]
            head = 1 if config.cells else 2  # a dense head is one module, other heads are dropout and a linear layer
            for branch in (self.texture_branch, self.minutia_branch):
                frozen += list(branch[:-head]) if branch is not None else []
        for part in frozen:
            if part is not None:
                part.eval().requires_grad_(False)
        return self

    def forward(self, image: torch.Tensor) -> Output:
        """Compute embeddings of images (B, 1, S, S) float32.

        In training mode, the output also contains the minutia map. In evaluation mode, the output contains the norm.
        """
        if self.alignment is None:
            return self.describe(image)
        if isinstance(self.alignment, FlxAlignmentNetwork):
            return self.describe(self.alignment(image))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._keeps_alignment):
            logits = self.alignment.logits(image)
            transform = best_or_mean(logits, self.training)
            upright = aligned(image, transform, "bicubic")
        learns = None if self._keeps_alignment else logits
        return replace(self.describe(upright), pose=learns, transform=transform.detach())

    @property
    def _keeps_alignment(self) -> bool:
        return self.config.alignment_frozen or self.config.trunk_frozen

    def locate(self, image: torch.Tensor) -> Output:
        """Run only the alignment network, and return an output that has only `pose`.

        This method is for variants with an `AlignmentNetwork`.

        Args:
            image: (B, 1, S, S) float32.
        """
        assert isinstance(self.alignment, AlignmentNetwork)
        return Output(pose=self.alignment.logits(image))

    def align(self, image: torch.Tensor) -> torch.Tensor:
        """Align images (B, 1, S, S), or return them unchanged if the variant has no alignment network."""
        if self.alignment is None:
            return image
        upright: torch.Tensor = self.alignment(image)
        return upright

    def describe(self, image: torch.Tensor) -> Output:
        """Compute embeddings of images (B, 1, S, S) that are already aligned; see `forward`."""
        texture = minutia = dense = maps = contact = drawn_from = None
        features = self._run(self.stem, image)
        norms = []
        if self.texture_branch is not None and self.config.cells:
            drawn_from = self._run(self.texture_branch[: self.map_after], features)
            vectors, contact = self._run(self.texture_branch[self.map_after :], drawn_from)
            dense, length = masked_embedding(vectors, contact)
            norms.append(length)
        elif self.texture_branch is not None:
            texture, length = _unit(self._run(self.texture_branch, features))
            norms.append(length)
        if self.minutia_stem is not None and self.minutia_branch is not None:
            drawn_from = self._run(self.minutia_stem, features)
            minutia, length = _unit(self._run(self.minutia_branch, drawn_from))
            norms.append(length)
        if self.minutia_map is not None and self.training:
            maps = self.minutia_map(drawn_from)
        norm = None if self.training else torch.stack(norms).mean(dim=0)
        return Output(texture, minutia, maps, norm, dense, contact)

    def _run(self, part: nn.Sequential, features: torch.Tensor) -> Any:
        checkpointing = self.config.gradient_checkpointing and self.training and torch.is_grad_enabled()
        return forward_checkpointed(part, features) if checkpointing else part(features)

    def draw_minutiae(self, image: torch.Tensor) -> torch.Tensor:
        """Predict only the minutia map, in training or evaluation mode.

        `config.needs_minutia_maps` must be true.

        Args:
            image: (B, 1, S, S) float32.

        Returns:
            (B, 6, map_size, map_size).
        """
        assert self.minutia_map is not None, "this variant has no minutia map"
        features = self.stem(self.align(image))
        if self.config.cells and self.texture_branch is not None:
            features = self.texture_branch[: self.map_after](features)
        elif self.minutia_stem is not None:
            features = self.minutia_stem(features)
        return self.minutia_map(features)


def _blocks(part: nn.Sequential) -> list[nn.Module]:
    return [block for block in part if any(True for _ in block.children())]


def masked_embedding(vectors: torch.Tensor, contact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Set cells outside the contact to zero, concatenate the vectors of all cells, and normalise to unit length.

    Args:
        vectors: (B, G, G, D) vectors of the cells.
        contact: (B, G, G) contact logits; cells with a logit above 0 are kept. If no logit is above 0, the cell with
            the largest logit is kept, so that no embedding is zero.

    Returns:
        Embeddings (B, G * G * D) float32 in row-major order, and their Euclidean norms (B,) before normalisation.
    """
    logits = contact.detach().float().flatten(1)  # detached: the mask has its own loss
    shown = logits >= logits.amax(dim=1, keepdim=True).clamp(max=0.0)
    cells = vectors.float().flatten(1, 2) * shown[:, :, None]
    return _unit(cells.flatten(1))


def _unit(embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise embeddings (B, D) to unit length in float32, and also return the original norms (B,)."""
    with torch.autocast(embedding.device.type, enabled=False):
        embedding = embedding.float()
        return F.normalize(embedding, dim=1), embedding.detach().norm(dim=1)
