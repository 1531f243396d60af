"""A trained network with its preparation: canvases in, embeddings out."""

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


class PreparedNetwork(nn.Module):
    """Network and preparation, for inference only. `FingerprintExtractor` adds how prints are read and models saved.

    Args:
        model: Configuration of the network.
        preprocess: Configuration of the preparation.
        ppi: Resolution that the network was trained at, pixels per inch.
        canvas: Side of the canvases in pixels.
        enhanced: Whether the network was trained on prints that are stored enhanced.

    Attributes:
        model: The network, as it is saved.
        preprocessor: The preparation.
        bf16: Whether to run the network in bf16, which is faster on processors and GPUs that support it.
        notes: Facts that are saved with the model, such as its calibration.
        origin: Folder that the model was opened from.
    """

    def __init__(
        self, model: ModelConfig, preprocess: PreprocessConfig, ppi: int, canvas: int, enhanced: bool = False
    ) -> None:
        super().__init__()
        self.preprocess_config, self.ppi, self.canvas, self.enhanced = preprocess, ppi, canvas, enhanced
        self.model = DeepPrint(model).to(memory_format=torch.channels_last)
        self.preprocessor = Preprocessor(preprocess, canvas, ppi=ppi)
        self.bf16 = False
        self._running: list[DeepPrint] = []  # not in the module's own lists: it shares what it does not fold
        self.model.register_load_state_dict_post_hook(lambda *_: self._running.clear())
        self.notes: dict[str, Any] = {}
        self.origin = ""
        self.eval()

    def _apply(self, *arguments: Any, **named: Any) -> Self:
        """Fold the network again after `to`, `half` and the like, which all end here."""
        self._running.clear()
        return super()._apply(*arguments, **named)

    @property
    def running(self) -> DeepPrint:
        """`model` with batch normalisations folded into convolutions, which saves 8 % of the time."""
        if not self._running:
            with torch.inference_mode(False), torch.no_grad():  # who asks first may differentiate later, or export
                self._running.append(cast(DeepPrint, folded(self.model)))
        return self._running[0]

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.model.parameters()).device

    @property
    def print_info(self) -> PrintInfo:
        """Resolution, size and enhancement of the canvases that the network takes."""
        return PrintInfo(self.ppi, self.canvas, self.enhanced)

    @property
    def alignment_network(self) -> AlignmentNetwork | None:
        """Network that aligns prints before they are embedded, if the model has one; flx's align inside."""
        network = self.running.alignment
        return network if isinstance(network, AlignmentNetwork) else None

    @property
    def cells(self) -> int:
        """Number of cells of a dense embedding, 0 for other models; see the module `similarity`."""
        return self.model.config.cells

    @property
    def center(self) -> torch.Tensor | None:
        """Mean template (D,) that `calibrate` has measured and that is subtracted from templates, if there is one."""
        text = center_of(self.notes)
        return from_text(text, self.model.config.embedding_dim, self.device) if text else None

    @property
    def usual_poses(self) -> Poses:
        """Poses that a comparison tries: fewer where the model aligns prints."""
        if self.alignment_network is None:
            return USUAL
        return DENSE if self.cells else ALIGNED

    @property
    def search_poses(self) -> Poses:
        """Poses of a probe that are tried on the best candidates of a search, under the thresholds of `usual_poses`."""
        return self.usual_poses if self.cells else UPRIGHT

    @property
    def identity(self) -> str:
        """First 16 digits of a SHA-256 of weights and centre. Embeddings of two models must not be compared."""
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update(center_of(self.notes).encode())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, poses: Poses = UPRIGHT) -> torch.Tensor:
        """Embed canvases.

        Args:
            images: (B, canvas, canvas) uint8 on the device of the network, ridges dark.
            poses: Ways in which each print is turned and shifted.

        Returns:
            (B, D) float32 of unit length; (B, P, D) for P > 1 poses. Poses are ordered by hypothesis, then turn, then
            shift. The first is the print as it is.
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
        """Subtract the centre, if there is one, from embeddings (B, D) of the network."""
        return centred(embeddings, self.center, len(self.model.branch_dims), self.cells)

    def alignment(self, images: torch.Tensor) -> Pose | None:
        """Return where the alignment network finds the fingers on canvases (B, canvas, canvas); None without one."""
        return self.alignments(images, 1)[0]

    def alignments(self, images: torch.Tensor, count: int) -> list[Pose] | list[None]:
        """Return the `count` most probable results of `alignment`, or one None without an alignment network."""
        if self.alignment_network is None:
            return [None]
        inputs = self.preprocessor.images(images).contiguous(memory_format=torch.channels_last)
        found, _ = hypotheses(self.alignment_network.logits(inputs), count)
        return [turned_and_shifted(pose, float(self.preprocess_config.crop)) for pose in found.unbind(1)]

    @torch.no_grad()
    def pose_of(self, images: torch.Tensor, poses: Poses, number: int) -> Pose:
        """Return the poses on canvases (B, canvas, canvas) that embedding `number` of `forward` was made in."""
        tried = poses.all(float(self.preprocess_config.crop), self.ppi, images.device)
        hypothesis, turn = divmod(number, len(tried))
        pose = tried[turn].repeated(len(images))
        alignment = self.alignments(images, poses.hypotheses)[hypothesis]
        return pose if alignment is None else pose.within(alignment)

    def network(self, images: torch.Tensor, pose: Pose | None = None, alignment: Pose | None = None) -> Output:
        """Run the network on canvases.

        Args:
            images: (B, canvas, canvas) uint8.
            pose: Pose on top of `alignment`; upright by default.
            alignment: Result of `alignment`, which is called by default.
        """
        alignment = alignment or self.alignment(images)
        if alignment is not None:
            pose = alignment if pose is None else pose.within(alignment)
        inputs = self.preprocessor.images(images, pose).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.running(inputs) if alignment is None else self.running.describe(inputs)

    @torch.inference_mode()
    def with_quality(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (B, D) and qualities (B,), 0 to 1, of canvases (B, canvas, canvas) uint8."""
        output = self.network(images)
        assert output.norm is not None, "an extractor is never in training mode"
        area = ridge_area(images, self.ppi, self.preprocess_config.crop)
        return self.centred(output.embedding), print_quality(area, output.norm, self.notes.get("usual_norm"))

    @torch.inference_mode()
    def usual_norm(self, batches: Iterable[torch.Tensor]) -> float:
        """Return the median length of the embeddings of canvases before they are scaled to unit length.

        Kept in `notes` under the name of this function, it is the response to a usual print, by which `quality`
        judges the response of the network to others.

        Args:
            batches: (B, canvas, canvas) uint8 each.
        """
        norms = [norm for images in batches if (norm := self.network(images.to(self.device)).norm) is not None]
        return round(float(torch.cat(norms).median()), 3)
