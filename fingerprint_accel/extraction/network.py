"""A trained network with its preprocessing, which maps canvases to embeddings.

A canvas is a square image of fixed size and resolution with one print. A pose is a rotation and shift of the network
input on the canvas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Self, cast

import torch
from torch import nn

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.extraction.calibration import center_of
from fingerprint_accel.extraction.centring import centred, from_text
from fingerprint_accel.extraction.poses import ALIGNED, DENSE, UPRIGHT, USUAL, Poses
from fingerprint_accel.extraction.print_quality import print_quality, ridge_area
from fingerprint_accel.models.alignment import AlignmentNetwork, hypotheses
from fingerprint_accel.models.deepprint import DeepPrint, Output
from fingerprint_accel.models.folding import folded
from fingerprint_accel.preprocess.geometric import Pose, turned_and_shifted
from fingerprint_accel.preprocess.pipeline import Preprocessor

USUAL_NORM = "usual_norm"  # key in the notes of a model, for the norm of the embeddings of typical prints


class PreparedNetwork(nn.Module):
    """Network with its preprocessing, for inference only.

    The subclass `FingerprintExtractor` also reads images and saves models.

    Args:
        model: configuration of the network.
        preprocess: configuration of the preprocessing.
        ppi: resolution that the network was trained at, pixels per inch.
        canvas: side of a canvas (the square image of a print), pixels.
        enhanced: whether the network was trained on prints whose ridges were enhanced before they were stored.

    Attributes:
        model: the network, with the weights that are saved.
        preprocessor: the preprocessing.
        bf16: run the network in bfloat16, which is faster on CPUs and GPUs that support it.
        notes: dictionary that is saved with the model and describes it, for example its calibration.
        origin: folder that the model was opened from.
    """

    def __init__(
        self, model: ModelConfig, preprocess: PreprocessConfig, ppi: int, canvas: int, enhanced: bool = False
    ) -> None:
        super().__init__()
        self.preprocess_config, self.ppi, self.canvas, self.enhanced = preprocess, ppi, canvas, enhanced
        self.model = DeepPrint(model).to(memory_format=torch.channels_last)
        self.preprocessor = Preprocessor(preprocess, canvas, ppi=ppi)
        self.bf16 = False
        self._running: list[DeepPrint] = []  # a list hides it from `state_dict`; parts are shared with `model`
        self.model.register_load_state_dict_post_hook(lambda *_: self._running.clear())
        self.notes: dict[str, Any] = {}
        self.origin = ""
        self.eval()

    def _apply(self, *arguments: Any, **named: Any) -> Self:
        """Discard the folded copy of the network, because a method such as `to` or `half` changes the tensors.

        The property `running` makes a new copy. `torch.nn.Module` calls `_apply` in all methods of this kind.
        """
        self._running.clear()
        return super()._apply(*arguments, **named)

    @property
    def running(self) -> DeepPrint:
        """Copy of `model` with batch normalisations folded into convolutions, which makes inference 8 % faster."""
        if not self._running:
            with torch.inference_mode(False), torch.no_grad():  # may be used in autograd or export later
                self._running.append(cast(DeepPrint, folded(self.model)))
        return self._running[0]

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.model.parameters()).device

    @property
    def print_info(self) -> PrintInfo:
        """Resolution, size and enhancement of the canvases that the network needs."""
        return PrintInfo(self.ppi, self.canvas, self.enhanced)

    @property
    def alignment_network(self) -> AlignmentNetwork | None:
        """Network that aligns prints before they are embedded; None if the model has none.

        For models of flx, another implementation of DeepPrint, the value is also None, because their network contains
        the alignment.
        """
        network = self.running.alignment
        return network if isinstance(network, AlignmentNetwork) else None

    @property
    def cells(self) -> int:
        """Number of grid cells of a dense embedding, 0 for other models; see the module `similarity`."""
        return self.model.config.cells

    @property
    def center(self) -> torch.Tensor | None:
        """Mean template (D,) to subtract from every template, as measured by `calibrate`; None if there is none."""
        text = center_of(self.notes)
        return from_text(text, self.model.config.embedding_dim, self.device) if text else None

    @property
    def usual_poses(self) -> Poses:
        """Poses that a comparison of two prints tries; fewer if the model aligns prints."""
        if self.alignment_network is None:
            return USUAL
        return DENSE if self.cells else ALIGNED

    @property
    def search_poses(self) -> Poses:
        """Poses of the probe in a search: `usual_poses` for dense models, a single upright pose for other models.

        The similarities of a search are judged by thresholds that were measured with the same number of poses.
        """
        return self.usual_poses if self.cells else UPRIGHT

    @property
    def identity(self) -> str:
        """First 16 hexadecimal digits of a SHA-256 of weights and mean template; identifies the model.

        Embeddings of models with different identities must not be compared.
        """
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update(center_of(self.notes).encode())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, poses: Poses = UPRIGHT) -> torch.Tensor:
        """Embed a batch of canvases, which are square images with one print each.

        Args:
            images: (B, canvas, canvas) uint8 on the device of the network, ridges dark.
            poses: rotations and shifts in which each print is embedded.

        Returns:
            (B, D) float32 of unit length; (B, P, D) for P > 1 poses. Poses are ordered by alignment hypothesis, then
            rotation, then shift. The first pose has neither rotation nor shift.
        """
        tried = poses.all(float(self.preprocess_config.crop), self.ppi, images.device)
        found = [
            self.centred(self.network(images, pose.repeated(len(images)), alignment).embedding)
            for alignment in self.alignments(images, poses.hypotheses)
            for pose in tried
        ]
        embeddings = torch.stack(found, dim=1)
        return embeddings if embeddings.shape[1] > 1 else embeddings[:, 0]

    def centred(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Subtract the mean template `center`, if there is one, from embeddings (B, D); the result has unit length."""
        return centred(embeddings, self.center, len(self.model.branch_dims), self.cells)

    def alignment(self, images: torch.Tensor) -> Pose | None:
        """Return the most probable position and rotation of the finger on each canvas.

        Args:
            images: (B, canvas, canvas) uint8.

        Returns:
            One pose per canvas; None if the model has no alignment network.
        """
        return self.alignments(images, 1)[0]

    def alignments(self, images: torch.Tensor, count: int) -> list[Pose] | list[None]:
        """Return the most probable alignments (position and rotation of the finger) of each canvas.

        Args:
            images: (B, canvas, canvas) uint8.
            count: number of alignments.

        Returns:
            `count` batches of poses, most probable first; [None] if the model has no alignment network.
        """
        if self.alignment_network is None:
            return [None]
        inputs = self.preprocessor.images(images).contiguous(memory_format=torch.channels_last)
        found, _ = hypotheses(self.alignment_network.logits(inputs), count)
        return [turned_and_shifted(pose, float(self.preprocess_config.crop)) for pose in found.unbind(1)]

    @torch.no_grad()
    def pose_of(self, images: torch.Tensor, poses: Poses, number: int) -> Pose:
        """Return the pose in which `forward` computed one of the P embeddings of each canvas.

        Args:
            images: (B, canvas, canvas) uint8.
            poses: poses that were passed to `forward`.
            number: index of the embedding, from 0 to P - 1.
        """
        tried = poses.all(float(self.preprocess_config.crop), self.ppi, images.device)
        hypothesis, turn = divmod(number, len(tried))
        pose = tried[turn].repeated(len(images))
        alignment = self.alignments(images, poses.hypotheses)[hypothesis]
        return pose if alignment is None else pose.within(alignment)

    def network(self, images: torch.Tensor, pose: Pose | None = None, alignment: Pose | None = None) -> Output:
        """Preprocess canvases and run the network on them.

        Args:
            images: (B, canvas, canvas) uint8.
            pose: rotation and shift in addition to `alignment`; None for neither.
            alignment: position and rotation of each finger; None to compute them with `self.alignment`.
        """
        alignment = alignment or self.alignment(images)
        if alignment is not None:
            pose = alignment if pose is None else pose.within(alignment)
        inputs = self.preprocessor.images(images, pose).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.running(inputs) if alignment is None else self.running.describe(inputs)

    @torch.inference_mode()
    def with_quality(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed canvases and measure the quality of the prints; see `print_quality`.

        Args:
            images: (B, canvas, canvas) uint8.

        Returns:
            Embeddings (B, D) float32 of unit length, and qualities (B,) float32 from 0 to 1.
        """
        output = self.network(images)
        assert output.norm is not None, "an extractor is never in training mode"
        area = ridge_area(images, self.ppi, self.preprocess_config.crop)
        return self.centred(output.embedding), print_quality(area, output.norm, self.notes.get(USUAL_NORM))

    @torch.inference_mode()
    def usual_norm(self, batches: Iterable[torch.Tensor]) -> float:
        """Return the median norm of the embeddings of typical prints before normalisation.

        The value is stored in `notes` under `USUAL_NORM`. The quality of a print depends on the ratio of its norm to
        this value.

        Args:
            batches: batches of canvases, (B, canvas, canvas) uint8.
        """
        norms = [norm for images in batches if (norm := self.network(images.to(self.device)).norm) is not None]
        return round(float(torch.cat(norms).median()), 3)
