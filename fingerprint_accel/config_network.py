"""Options for the network and for the losses that train it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fingerprint_accel.config_dict import check_numbers
from fingerprint_accel.errors import require

Variant = Literal["Tex", "Minu", "TexMinu", "LocTex", "LocMinu", "LocTexMinu", "Dense", "LocDense"]
Trunk = Literal["inception_v4", "compact", "vit_small", "vit_base", "flx"]


@dataclass(frozen=True)
class ModelConfig:
    """Options for the architecture of the network and its initial weights."""

    init_from: str = ""
    """Trained network to start from: a bundled model (`small` or `base`), a run folder, a checkpoint, or an exported
    model. It must have the same architecture, resolution (ppi) and canvas size. The identity heads are initialised from
    the training prints. If empty, weights are random."""
    variant: Variant = "TexMinu"
    """DeepPrint variant: a texture branch (`Tex`), a minutia branch (`Minu`), or both. `Dense` embeds each cell of a
    grid on the finger separately, and a comparison uses the cells that both prints show. `Loc` adds an alignment
    network, which corrects the position and rotation of the print first."""
    trunk: Trunk = "inception_v4"
    """`inception_v4` is the trunk of DeepPrint; `compact` has a few million parameters and trains on CPUs; `vit_small`
    and `vit_base` are vision transformers; `flx` is the Inception v4 of flx, another implementation of DeepPrint, and
    can load its weights."""
    embedding_dim: int = 512
    """Number of elements of the embedding. In a variant with two branches, each branch computes half of them."""
    grid: int = 8
    """Number of cells along each side of the square grid of dense variants. Each cell has an equal part of the
    embedding."""
    width: int = 32
    """Number of channels in the first stage of the `compact` trunk. The vision transformers have a multiple of
    `width` channels: 12 times `width` for `vit_small`, 24 times `width` for `vit_base`."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation layers of the `compact` trunk; `group` makes outputs independent of the other prints in a batch."""
    dropout: float = 0.2
    """Dropout rate before the embedding layers, 0 to 1."""
    alignment_frozen: bool = False
    """Do not train the alignment network of a `Loc` variant; it keeps the weights of `init_from`."""
    stem_frozen: bool = False
    """Do not train the layers that all branches share; they keep the weights of `init_from`, and steps are faster."""
    trunk_frozen: bool = False
    """Train only the last layer of each branch. Use it with `init_from` and very few fingers."""
    gradient_checkpointing: bool = False
    """Store only the inputs of the blocks and recompute the rest in the backward pass. This reduces memory
    and takes about a third more time."""

    @property
    def needs_minutia_maps(self) -> bool:
        """Whether the network predicts minutia maps, which are images of the positions and directions of minutiae."""
        return "Minu" in self.variant or self.cells > 0

    @property
    def cells(self) -> int:
        """Number of cells in the grid of a dense variant; 0 for other variants."""
        return self.grid**2 if self.variant.endswith("Dense") else 0

    def __post_init__(self) -> None:
        check_numbers(self, "model", embedding_dim=2**16, grid=64, width=4096)
        both = self.variant.endswith("TexMinu")
        require(self.embedding_dim >= 2, "model.embedding_dim must be at least 2")
        require(not both or self.embedding_dim % 2 == 0, f"model.embedding_dim must be even for {self.variant}")
        require(self.grid >= 1, "model.grid must be at least 1")
        require(
            self.cells == 0 or self.embedding_dim % self.cells == 0,
            f"model.embedding_dim {self.embedding_dim} must be a multiple of the {self.cells} cells of model.grid "
            f"{self.grid}",
        )
        require(
            self.cells == 0 or self.trunk != "flx",
            f"model.variant {self.variant} does not work with trunk flx: choose another of the two",
        )
        require(self.width >= 8 and self.width % 8 == 0, "model.width must be a positive multiple of 8")
        require(0 <= self.dropout < 1, "model.dropout must be at least 0 and below 1")
        require(
            self.norm == "batch" or self.trunk == "compact",
            "model.norm group exists for the compact trunk only: add --model.trunk compact",
        )


@dataclass(frozen=True)
class LossConfig:
    """Options for the training loss, a weighted sum of several losses."""

    head: Literal["softmax", "arcface", "cosface"] = "softmax"
    """Identity loss of each branch of the network. An identity head classifies the finger of a print."""
    scale: float = 64.0
    """Factor on the cosines of arcface and cosface."""
    margin: float = 0.35
    """Additive margin: an angle in radians for arcface, a cosine for cosface."""
    sharded: bool = False
    """Split the class vectors of each identity head, one for each finger, over the processes (PartialFC). Use this
    option for many fingers. Loss and gradients are the same as without it."""
    class_sample_rate: float = 1.0
    """Share of the class vectors that each update uses, drawn at random. The vectors of the fingers in the batch are
    always included. A value below 1 needs `sharded`."""
    interclass_filter_threshold: float = 1.0
    """In the identity loss of a print, ignore class vectors of other fingers with a cosine to the print above this
    threshold. Such a finger may be the same finger under a second label. A value below 1 needs `sharded`, and arcface
    or cosface."""
    margin_start: float = 0.0
    """Share of the training steps, at the start of the run, in which the margin is 0."""
    margin_ramp: float = 0.0
    """Share of the training steps, after `margin_start`, in which the margin rises linearly to `margin`."""
    label_smoothing: float = 0.0
    """Share of the target of the identity loss that is spread over all fingers, for datasets with wrong labels."""
    identity_weight: float = 1.0
    """Weight of the identity loss."""
    center_weight: float = 0.125
    """Weight of the center loss, which moves each embedding towards the mean embedding of its finger."""
    minutia_map_weight: float = 0.3
    """Weight of the minutia-map loss, which trains the network to predict the positions and directions of minutiae. The
    loss needs prints with minutiae; 0 trains a minutia branch without minutiae."""
    contrastive_weight: float = 0.0
    """Weight of the contrastive loss (InfoNCE). The loss needs several impressions of a finger in a micro-batch
    (`reading.samples_per_class`)."""
    mask_weight: float = 1.0
    """Weight of the mask loss, which trains dense variants to predict which grid cells a print shows."""
    pose_weight: float = 1.0
    """Weight of the pose loss, which trains the alignment network to predict position and rotation. The loss
    applies only to prints with a known pose, which are synthetic."""
    contrastive_temperature: float = 0.1
    """Temperature of the contrastive loss. Smaller values put more weight on the most similar non-mated prints."""
    matryoshka_dims: tuple[int, ...] = ()
    """Shorter lengths, in ascending order, for which each branch is trained too (Matryoshka). The first n elements of
    an embedding, scaled to unit norm, are then an embedding of length n for each length n in this option."""

    def __post_init__(self) -> None:
        check_numbers(self, "loss", scale=1e6)
        require(self.scale > 0, "loss.scale must be above 0")
        require(self.contrastive_temperature > 0, "loss.contrastive_temperature must be above 0")
        weights = [option.name for option in dataclasses.fields(self) if option.name.endswith("_weight")]
        for name in (*weights, "margin", "margin_start", "margin_ramp"):
            require(getattr(self, name) >= 0, f"loss.{name} must not be negative")
        rising = all(low < high for low, high in zip((0, *self.matryoshka_dims), self.matryoshka_dims, strict=False))
        require(rising, "loss.matryoshka_dims must be lengths above 0 in ascending order")
        for name in ("class_sample_rate", "interclass_filter_threshold"):
            require(0 < getattr(self, name) <= 1, f"loss.{name} must be above 0 and at most 1")
            require(self.sharded or getattr(self, name) == 1, f"loss.{name} needs loss.sharded: add --loss.sharded")
        require(
            self.head != "softmax" or self.interclass_filter_threshold == 1,
            "loss.interclass_filter_threshold compares cosines: choose --loss.head arcface or cosface",
        )
        require(self.margin_start + self.margin_ramp <= 1, "loss.margin_start + loss.margin_ramp must be at most 1")
        require(0 <= self.label_smoothing < 1, "loss.label_smoothing must be at least 0 and below 1")
        require(
            not (self.sharded and self.label_smoothing),
            "loss.label_smoothing does not work with loss.sharded: leave one of them out",
        )
