"""A trained network with its preparation: prints in, embeddings out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.canvas import CanvasError, put_on_canvas
from fingerprint_accel.data.decoding import ImageError
from fingerprint_accel.data.print_file import ImageFile, Reading, open_image, open_print
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.data.templates import NO_MINUTIAE
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.calibration import center_of
from fingerprint_accel.extraction.centring import centred, from_text
from fingerprint_accel.extraction.model_card import model_card
from fingerprint_accel.extraction.poses import ALIGNED, DENSE, UPRIGHT, USUAL, Poses
from fingerprint_accel.extraction.print_quality import contact_area, print_quality, ridge_area
from fingerprint_accel.models.alignment import AlignmentNetwork, hypotheses
from fingerprint_accel.models.deepprint import DeepPrint, Output
from fingerprint_accel.models.folding import folded
from fingerprint_accel.models.saved_model import find_model, write_model, write_notes
from fingerprint_accel.preprocess.enhance import enhance_canvas
from fingerprint_accel.preprocess.geometric import Pose, turned_and_shifted
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.similarity import similarity

Image = Path | str | np.ndarray
NO_PPI = "resolution of the images unknown; give ppi, for example 500"
LEAST_AREA = "least_print_area_mm2"  # note of a model: smaller prints are not compared


class FingerprintExtractor(nn.Module):
    """Network and preparation, for inference only.

    Args:
        model: its configuration.
        preprocess: configuration of the preparation.
        ppi: resolution that the network was trained at, pixels per inch.
        canvas: side of the canvases, pixels.
        enhanced: whether the network was trained on prints that are stored enhanced, and wants such.

    Attributes:
        bf16: run the network in bf16, faster on processors and GPUs that have it.
        reading: how image files are to be understood, but for their ppi.
        notes: facts kept with the model, such as its calibration.
        origin: where it was opened.
    """

    def __init__(
        self, model: ModelConfig, preprocess: PreprocessConfig, ppi: int, canvas: int, enhanced: bool = False
    ) -> None:
        super().__init__()
        self.preprocess_config, self.ppi, self.canvas, self.enhanced = preprocess, ppi, canvas, enhanced
        self.model = DeepPrint(model).to(memory_format=torch.channels_last)
        self.preprocessor = Preprocessor(preprocess, canvas, ppi=ppi)
        self.bf16 = False
        self.reading = Reading()
        self._running: list[DeepPrint] = []  # not in the module's own lists: it shares what it does not fold
        self.model.register_load_state_dict_post_hook(lambda *_: self._running.clear())
        self.notes: dict[str, Any] = {}
        self.origin = ""
        self.eval()

    def _apply(self, *arguments: Any, **named: Any) -> FingerprintExtractor:
        """As any module, and what runs is folded anew: `to`, `half` and their like end here."""
        self._running.clear()
        return super()._apply(*arguments, **named)

    @property
    def running(self) -> DeepPrint:
        """`model` as it runs: batch normalisations folded into convolutions, which saves 8 % of the time."""
        if not self._running:
            with torch.inference_mode(False), torch.no_grad():  # who asks first may differentiate later, or export
                self._running.append(cast(DeepPrint, folded(self.model)))
        return self._running[0]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def alignment_network(self) -> AlignmentNetwork | None:
        """The network that aligns prints before they are embedded, if the model has one; flx's align inside."""
        network = self.running.alignment
        return network if isinstance(network, AlignmentNetwork) else None

    @property
    def cells(self) -> int:
        """Cells of its templates where they are dense, else 0; see `similarity`."""
        return self.model.config.cells

    @property
    def center(self) -> torch.Tensor | None:
        """(D,) the mean template that `calibrate` has measured, which is subtracted from templates; None without."""
        text = center_of(self.notes)
        return from_text(text, self.model.config.embedding_dim, self.device) if text else None

    @property
    def usual_poses(self) -> Poses:
        """What is tried at comparison: less where the model aligns prints."""
        if self.alignment_network is None:
            return USUAL
        return DENSE if self.cells else ALIGNED

    @property
    def search_poses(self) -> Poses:
        """What of a probe is tried on the best candidates of a search; thresholds of the usual poses hold for them."""
        return self.usual_poses if self.cells else UPRIGHT

    @property
    def identity(self) -> str:
        """The beginning of a SHA-256 of weights and centre. Embeddings of two models must not be compared."""
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update(center_of(self.notes).encode())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, poses: Poses = UPRIGHT) -> torch.Tensor:
        """images (B, canvas, canvas) uint8, ridges dark -> (B, D) float32 of unit length; (B, P, D) for P > 1 poses:
        hypothesis by hypothesis, turn by turn, shift by shift, the print as it is first."""
        tried = poses.all(float(self.preprocess_config.crop), self.ppi, images.device)
        found = [
            self.centred(self.network(images, pose.repeated(len(images)), alignment).embedding)
            for alignment in self.alignments(images, poses.hypotheses)
            for pose in tried
        ]
        embeddings = torch.stack(found, dim=1)
        return embeddings if embeddings.shape[1] > 1 else embeddings[:, 0]

    def centred(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, D) as the network gives them -> as templates: the centre subtracted, if there is one."""
        return centred(embeddings, self.center, len(self.model.branch_dims), self.cells)

    def alignment(self, images: torch.Tensor) -> Pose | None:
        """images (B, canvas, canvas) uint8 -> where the alignment network finds the fingers; None without one."""
        return self.alignments(images, 1)[0]

    def alignments(self, images: torch.Tensor, count: int) -> list[Pose] | list[None]:
        """The `count` most probable poses of some prints, as of `alignment`; without an alignment network one None."""
        if self.alignment_network is None:
            return [None]
        inputs = self.preprocessor.images(images).contiguous(memory_format=torch.channels_last)
        found, _ = hypotheses(self.alignment_network.logits(inputs), count)
        return [turned_and_shifted(pose, float(self.preprocess_config.crop)) for pose in found.unbind(1)]

    @torch.no_grad()
    def pose_of(self, images: torch.Tensor, poses: Poses, number: int) -> Pose:
        """images (B, canvas, canvas) uint8 -> the poses on their canvases behind embedding `number` of `forward`."""
        tried = poses.all(float(self.preprocess_config.crop), self.ppi, images.device)
        hypothesis, turn = divmod(number, len(tried))
        pose = tried[turn].repeated(len(images))
        alignment = self.alignments(images, poses.hypotheses)[hypothesis]
        return pose if alignment is None else pose.within(alignment)

    def network(self, images: torch.Tensor, pose: Pose | None = None, alignment: Pose | None = None) -> Output:
        """images (B, canvas, canvas) uint8 -> all that the network says of them, taken in `pose` on top of `alignment`;
        without `alignment` the network is asked for one."""
        alignment = alignment or self.alignment(images)
        if alignment is not None:
            pose = alignment if pose is None else pose.within(alignment)
        inputs = self.preprocessor.images(images, pose).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.running(inputs) if alignment is None else self.running.describe(inputs)

    @torch.inference_mode()
    def with_quality(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, canvas, canvas) uint8 -> (B, D) float32 of unit length, and (B,) float32 quality, 0 to 1."""
        output = self.network(images)
        assert output.norm is not None, "an extractor is never in training mode"
        area = ridge_area(images, self.ppi, self.preprocess_config.crop)
        return self.centred(output.embedding), print_quality(area, output.norm, self.notes.get("usual_norm"))

    @torch.inference_mode()
    def usual_norm(self, batches: Iterable[torch.Tensor]) -> float:
        """(B, canvas, canvas) uint8 of usual prints -> median length of their embeddings before they are scaled to unit
        length. Kept in `notes` under this name, it tells `quality` how strongly the network answers to a print."""
        norms = [norm for images in batches if (norm := self.network(images.to(self.device)).norm) is not None]
        return round(float(torch.cat(norms).median()), 3)

    def quality(self, prints: Shards | Sequence[Image], ppi: int = 0, batch_size: int = 64) -> np.ndarray:
        """(N,) float32: how much each print has to compare by, 0 to 1; prints of low quality often fail to match.

        Arguments and errors are those of `extract`.
        """
        batches = self.batches(prints, ppi, batch_size)
        return torch.cat([self.with_quality(images)[1].cpu() for images in batches]).numpy()

    @torch.inference_mode()
    def extract(
        self,
        prints: Shards | Sequence[Image],
        ppi: int = 0,
        poses: Poses = UPRIGHT,
        batch_size: int = 64,
        progress: bool = True,
    ) -> np.ndarray:
        """Embeds N prints, in order -> (N, D) float32 of unit length; (N, P, D) for P > 1 poses. Variants with two
        branches have half the numbers from each, the texture branch first.

        Args:
            prints: an opened dataset; or image files, or arrays (H, W) uint8 with dark ridges, of any size.
            ppi: resolution of the images, pixels per inch; a dataset knows its own.
            poses: ways in which each print is turned and shifted before it is embedded.
            batch_size: prints at a time.
            progress: shows a progress bar.

        Raises:
            UserError: a dataset of another ppi or canvas than the network was trained on, only one of the two
                enhanced, an image without a print, or no ppi. Prints of any size are embedded: `quality` tells small
                ones, and `compare`, enrolment and search refuse them.
        """
        embeddings, filled = np.empty(0, np.float32), 0  # one array from the start: with poses it is large
        for images in self.batches(prints, ppi, batch_size, progress):
            found = self(images, poses).cpu().numpy()
            if not filled:
                embeddings = np.empty((len(prints), *found.shape[1:]), np.float32)
            embeddings[filled : filled + len(found)] = found
            filled += len(found)
        return embeddings

    def compare(self, reference: Image, probe: Image, ppi: int = 500, poses: Poses | None = None) -> float:
        """Similarity of two prints, -1 to 1: the best over poses, see `similarity.similarity`.

        Args:
            reference, probe: image files, or arrays (H, W) uint8 with dark ridges.
            ppi: resolution of both, pixels per inch.
            poses: to try.

        Raises:
            UserError: an image without a print, or with too little of one.
        """
        both = self.embed_to_compare([reference, probe], ppi, poses or self.usual_poses)
        return float(similarity(both[:1], both[1:], self.cells)[0, 0])

    def embed_to_compare(self, images: Sequence[Image], ppi: int, poses: Poses) -> np.ndarray:
        """A few prints as `extract` embeds them; prints of too little area (`check_area`) are a UserError too."""
        if ppi <= 0:
            raise UserError(NO_PPI)
        canvases = np.stack([self.on_canvas(image, ppi) for image in images])
        return self(torch.from_numpy(canvases).to(self.device), poses).cpu().numpy()

    def on_canvas(self, image: Image | ImageFile, ppi: int, however_small: bool = False) -> np.ndarray:
        """An image (H, W) uint8 or file -> (canvas, canvas) uint8, as an import would store it by `reading`.

        `ppi` is the resolution of images that do not state their own. A print of a file of several is named
        `file#record`, a finger of a slap `file#record-position`. `however_small` leaves out `check_area`.

        Raises:
            UserError: no image, no print on it, or too little of one.
        """
        name = "image" if isinstance(image, np.ndarray) else str(image)
        reading = dataclasses.replace(self.reading, ppi=ppi)
        try:
            if isinstance(image, ImageFile):
                name = image.name
                opened = open_print(image.path, reading, image.record, image.cut, image.slap, image.ppi)
            else:
                opened = open_image(image, reading)
            placed, _ = put_on_canvas(opened.grey, NO_MINUTIAE, opened.ppi, self.ppi, self.canvas)
        except (ImageError, CanvasError) as error:
            raise UserError(f"{name}: {error}; give an image of one print, ridges dark") from error
        if not however_small:
            self.check_area(placed, name)
        return enhance_canvas(placed, self.ppi) if self.enhanced else placed

    def check_area(self, canvas: np.ndarray, name: str) -> None:
        """Raises UserError where a canvas (S, S) uint8 shows less of a finger than the model needs to recognise it.

        How much that is was measured for the bundled models, which keep it in `notes`; other models take any print.
        """
        least = self.notes.get(LEAST_AREA)
        if least is None:
            return
        area = contact_area(canvas, self.ppi)
        if area < least:
            raise UserError(f"{name}: too small: {area:.0f} mm^2 of ridges, the model needs about {least:g}")

    def batches(
        self, prints: Shards | Sequence[Image], ppi: int = 0, batch_size: int = 64, progress: bool = False
    ) -> Iterator[torch.Tensor]:
        """(B, canvas, canvas) uint8 on the network's device for some prints after the other; arguments of `extract`."""
        if isinstance(prints, Shards):
            self.check_dataset(prints)
        elif ppi <= 0:
            raise UserError(NO_PPI)
        buffer = np.empty((batch_size, self.canvas, self.canvas), np.uint8)
        with tqdm(total=len(prints), desc="extracting", unit="print", disable=not progress) as bar:
            for start in range(0, len(prints), batch_size):
                canvases = buffer[: min(batch_size, len(prints) - start)]
                if isinstance(prints, Shards):
                    prints.read(np.arange(start, start + len(canvases)), canvases)
                else:
                    for row, image in enumerate(prints[start : start + len(canvases)]):
                        canvases[row] = self.on_canvas(image, ppi, however_small=True)
                yield torch.from_numpy(canvases).to(self.device)
                bar.update(len(canvases))

    def check_dataset(self, shards: Shards) -> None:
        """Raises UserError, with the remedy, where the prints of a dataset are not as the network wants them."""
        found = PrintInfo(shards.info.ppi, shards.info.canvas, shards.info.enhanced)
        found.check_suits(PrintInfo(self.ppi, self.canvas, self.enhanced), shards.folder)

    def save_pretrained(self, folder: Path | str, notes: dict[str, Any] | None = None, half: bool = False) -> None:
        """Writes `model.safetensors`, `config.json` and `README.md`; the folder is replaced as a whole.

        Args:
            folder: to write.
            notes: facts to keep in `config.json`, such as its calibration; default the model's own.
            half: store matrices in 16 bits: half the bytes, embeddings that differ by about 0.001.

        Raises:
            UserError: `folder` is something else than a model folder.
        """
        folder = Path(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        if half:  # statistics and biases are few, and their range is wide
            tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
        write_model(folder, tensors, *self._described(folder.name, self.notes if notes is None else notes))

    def save_notes(self, folder: Path | str) -> None:
        """Writes `notes` into an exported model of these weights, `config.json` and `README.md`; nothing else there
        changes."""
        folder = Path(folder)
        write_notes(folder, *self._described(folder.resolve().name, self.notes))

    def _described(self, name: str, notes: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """`config.json` and card of an exported model called `name`."""
        config = {
            "format_version": 1,
            "model": asdict(self.model.config),
            "preprocess": asdict(self.preprocess_config),
            "ppi": self.ppi,
            "canvas": self.canvas,
            "enhanced": self.enhanced,
            "notes": notes,
        }
        return config, model_card(name, self.model.config, self.ppi, self.canvas, self.enhanced, notes)

    @classmethod
    def from_pretrained(cls, place: Path | str = "small") -> FingerprintExtractor:
        """Opens a bundled model by its name, an exported folder, a run folder (its best checkpoint), or a checkpoint.

        Raises:
            UserError: none of these, or a damaged one.
        """
        saved = find_model(place)
        extractor = cls(saved.model, saved.preprocess, saved.ppi, saved.canvas, saved.enhanced)
        saved.load_into(extractor.model)
        extractor.notes, extractor.origin = saved.notes, str(saved.folder)
        return extractor.eval()


def open_extractor(place: Path | str) -> FingerprintExtractor:
    """`FingerprintExtractor.from_pretrained` on the GPU if there is one."""
    return FingerprintExtractor.from_pretrained(place).to("cuda" if torch.cuda.is_available() else "cpu")
