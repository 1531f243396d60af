"""What every network of this package returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fingerprint_accel.models.alignment import PoseLogits


@dataclass(frozen=True)
class Output:
    """Embeddings of a batch; branches that a variant lacks are None.

    Attributes:
        texture: (B, D_t) float32, unit length, from the texture branch.
        minutia: (B, D_m) float32, unit length, from the minutia branch.
        minutia_map: (B, 6, S, S) predicted minutia map, only in training mode.
        norm: (B,) float32, mean length of the branches' embeddings before they were scaled, not in training mode.
        dense: (B, D) float32, unit length, cell after cell of the grid; a cell that the print does not show is zero.
        contact: (B, G, G) logits of the cells that the print shows, with `dense`.
        pose: what the alignment network says of the input; None from `describe`, and where it is not trained.
        transform: (B, 3) the pose that the print was described in, as of `AlignmentNetwork.transform`.
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
        """Embeddings by branch name, texture first."""
        present = {"texture": self.texture, "minutia": self.minutia, "dense": self.dense}
        return {name: value for name, value in present.items() if value is not None}

    @property
    def embedding(self) -> torch.Tensor:
        """(B, D) float32, unit length: the branches side by side, each weighing the same."""
        parts = list(self.branches.values())
        return torch.cat(parts, dim=1) / len(parts) ** 0.5
