"""The extractor: prints in, embeddings out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.canvas import CanvasError, put_on_canvas
from fingerprint_accel.data.decoding import ImageError
from fingerprint_accel.data.print_file import ImageFile, Reading
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.data.templates import NO_MINUTIAE
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.inputs import (
    NO_PPI,
    CanvasReader,
    Image,
    Prints,
    check_dataset,
    name_of_image,
    open_prints,
    read_image,
)
from fingerprint_accel.extraction.model_card import model_card
from fingerprint_accel.extraction.network import PreparedNetwork
from fingerprint_accel.extraction.poses import UPRIGHT, Poses
from fingerprint_accel.extraction.print_quality import contact_area
from fingerprint_accel.models.saved_model import find_model, write_model, write_notes
from fingerprint_accel.preprocess.enhance import enhance_canvas
from fingerprint_accel.similarity import similarity

LEAST_AREA = "least_print_area_mm2"  # note of a model: smaller prints are not compared


class FingerprintExtractor(PreparedNetwork):
    """Trained network with its preparation, which turns prints into embeddings.

    Open a model with `from_pretrained`. The constructor makes a network with random weights. As a PyTorch module it
    takes canvases; see `forward`. It runs on the CPU until it is moved, `extractor.to("cuda")`.

    Args:
        model: Configuration of the network.
        preprocess: Configuration of the preparation.
        ppi: Resolution that the network is trained at, pixels per inch.
        canvas: Side of the canvases in pixels.
        enhanced: Whether the network is trained on prints that are stored enhanced.

    Attributes:
        model: The network, a `DeepPrint`.
        bf16: Whether to run the network in bf16, which is faster on processors and GPUs that support it.
        reading: How image files are read: inverted, mirrored, raw pixels.
        notes: Facts that are saved with the model, such as its calibration.
        origin: Folder that the model was opened from.
        cells: Number of cells of a dense embedding, 0 for other models.
        identity: Digest of the weights. Embeddings of models with other digests must not be compared.
    """

    def __init__(
        self, model: ModelConfig, preprocess: PreprocessConfig, ppi: int, canvas: int, enhanced: bool = False
    ) -> None:
        super().__init__(model, preprocess, ppi, canvas, enhanced)
        self.reading = Reading()

    def extract(
        self,
        prints: Prints,
        ppi: int = 0,
        poses: Poses = UPRIGHT,
        batch_size: int = 64,
        progress: bool = True,
        placed: bool = False,
    ) -> np.ndarray:
        """Embed prints, in their order.

        Args:
            prints: One image or a list of images; or a dataset. An image is a file (`str`, `Path` or the bytes of the
                file), a PIL image, or a uint8 array, (H, W) or (H, W, 3). A dataset is the result of `open_dataset`,
                or a `datasets.Dataset`. That has a column `image` of type `datasets.Image`, or it is a dataset folder
                opened by `datasets.load_from_disk`.
            ppi: Resolution of the images in pixels per inch. Datasets of canvases and placed images need none.
            poses: Ways in which each print is turned and shifted before it is embedded.
            batch_size: Number of prints that are embedded at a time.
            progress: Whether to show a progress bar where there is more than one batch.
            placed: Whether the images are canvases, (canvas, canvas) pixels at the resolution of the network, with one
                print in the middle. They are used as they are. They may also be a uint8 array or tensor
                (N, canvas, canvas), or a list of uint8 tensors.

        Returns:
            (N, D) float32 array of unit length, N = 1 for one image; (N, P, D) for P > 1 poses. Networks with two
            branches give half of the numbers from each, the texture branch first.

        Raises:
            TypeError: `prints` is of another kind.
            UserError: An image without a print, an unknown resolution, or a dataset that does not suit the network.
                Small prints are embedded too. `quality` is low for them; `compare`, enrolment and search refuse them.
        """
        embeddings, filled = np.empty((0, self.model.config.embedding_dim), np.float32), 0
        reader = self._opened(prints, ppi, placed)
        for images in self._batches(reader, batch_size, progress):
            found = self(images, poses).cpu().numpy()
            if not filled:  # one array from the start: with poses it is large
                embeddings = np.empty((reader.count, *found.shape[1:]), np.float32)
            embeddings[filled : filled + len(found)] = found
            filled += len(found)
        return embeddings

    def quality(self, prints: Prints, ppi: int = 0, batch_size: int = 64, placed: bool = False) -> np.ndarray:
        """Measure how much each print offers for a comparison. Prints of low quality often fail to match.

        Args:
            prints: As in `extract`.
            ppi: As in `extract`.
            batch_size: As in `extract`.
            placed: As in `extract`.

        Returns:
            (N,) float32 array, 0 to 1.

        Raises:
            TypeError: As in `extract`.
            UserError: As in `extract`.
        """
        parts = [np.empty(0, np.float32)]
        parts += [
            self.with_quality(images)[1].cpu().numpy()
            for images in self.batches(prints, ppi, batch_size, placed=placed)
        ]
        return np.concatenate(parts)

    def batches(
        self, prints: Prints, ppi: int = 0, batch_size: int = 64, progress: bool = False, placed: bool = False
    ) -> Iterator[torch.Tensor]:
        """Yield the canvases of prints, (B, canvas, canvas) uint8 on the device of the network.

        Arguments and errors are those of `extract`.
        """
        return self._batches(self._opened(prints, ppi, placed), batch_size, progress)

    def _opened(self, prints: Prints, ppi: int, placed: bool) -> CanvasReader:
        def place(image: Image, name: str) -> np.ndarray:
            return self.on_canvas(image, ppi, however_small=True, name=name)

        return open_prints(prints, self.print_info, place, ppi, placed)

    def _batches(self, reader: CanvasReader, batch_size: int, progress: bool) -> Iterator[torch.Tensor]:
        shown = progress and reader.count > batch_size
        with tqdm(total=reader.count, desc="extracting", unit="print", disable=not shown) as bar:
            for start in range(0, reader.count, batch_size):
                canvases = reader.read(start, min(start + batch_size, reader.count))
                yield canvases.to(self.device)
                bar.update(len(canvases))

    def compare(self, reference: Image, probe: Image, ppi: int = 500, poses: Poses | None = None) -> float:
        """Compare two prints in several poses.

        Args:
            reference: Image of one print, as in `extract`.
            probe: The other image.
            ppi: Resolution of both in pixels per inch.
            poses: Poses to try, `usual_poses` by default.

        Returns:
            Similarity in the best pose, -1 to 1, as of `similarity`.

        Raises:
            TypeError: An image of another kind.
            UserError: An image without a print, or one that shows less of a finger than the model needs.
        """
        both = self.embed_to_compare([reference, probe], ppi, poses or self.usual_poses)
        return float(self.similarity(both[:1], both[1:])[0, 0])

    def similarity(self, references: np.ndarray, probes: np.ndarray) -> np.ndarray:
        """Compare embeddings of this model.

        Args:
            references: (N, D), or (N, P, D) in P poses, as `extract` returns them.
            probes: (M, D), or (M, P, D) in P poses.

        Returns:
            (N, M) float32 array of cosine similarities, -1 to 1. Dense embeddings are compared over the part of the
            finger that both prints show. With poses the best one counts.
        """
        return similarity(references, probes, self.cells)

    def embed_to_compare(self, images: Sequence[Image], ppi: int, poses: Poses) -> np.ndarray:
        """Embed a few images as `extract` does, but refuse those that fail `check_area`."""
        if ppi <= 0:
            raise UserError(NO_PPI)
        canvases = np.stack([self.on_canvas(image, ppi) for image in images])
        return self(torch.from_numpy(canvases).to(self.device), poses).cpu().numpy()

    def on_canvas(self, image: Image | ImageFile, ppi: int, however_small: bool = False, name: str = "") -> np.ndarray:
        """Find the print on an image and place it on a canvas, as an import would store it.

        Args:
            image: Image of one print, as in `extract`. A print in a file of several is named `file#record`, a finger
                of a slap `file#record-position`.
            ppi: Resolution of images that do not state their own, pixels per inch.
            however_small: Whether to leave out `check_area`.
            name: Name of the image in errors, by default that of its file.

        Returns:
            (canvas, canvas) uint8.

        Raises:
            TypeError: An image of another kind.
            UserError: No image, no print on it, or too little of one.
        """
        name = name or name_of_image(image)
        try:
            opened = read_image(image, dataclasses.replace(self.reading, ppi=ppi))
            placed, _ = put_on_canvas(opened.grey, NO_MINUTIAE, opened.ppi, self.ppi, self.canvas)
        except (ImageError, CanvasError) as error:
            raise UserError(f"{name}: {error}; give an image of one print, ridges dark") from error
        if not however_small:
            self.check_area(placed, name)
        return enhance_canvas(placed, self.ppi) if self.enhanced else placed

    def check_area(self, canvas: np.ndarray, name: str) -> None:
        """Raise UserError where a canvas (S, S) uint8 shows less of a finger than the model needs to recognise it.

        The least area was measured for the bundled models, which keep it in `notes`. Other models take any print.
        """
        least = self.notes.get(LEAST_AREA)
        if least is None:
            return
        area = contact_area(canvas, self.ppi)
        if area < least:
            raise UserError(f"{name}: too small: {area:.0f} mm^2 of ridges, the model needs about {least:g}")

    def check_dataset(self, shards: Shards) -> None:
        """Raise UserError, with the remedy, where a dataset does not suit the network."""
        check_dataset(shards.info, self.print_info, shards.folder)

    def save_pretrained(self, folder: Path | str, notes: dict[str, Any] | None = None, half: bool = False) -> None:
        """Write the model to a folder that `from_pretrained` opens.

        The folder gets `model.safetensors`, `config.json` and `README.md`. An existing model folder is replaced.

        Args:
            folder: Folder to write.
            notes: Facts to keep in `config.json`, by default the model's own `notes`.
            half: Whether to store matrices in 16 bits, which halves the file and changes embeddings by about 0.001.

        Raises:
            UserError: The folder exists and is not a model folder.
        """
        folder = Path(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        if half:  # statistics and biases are few, and their range is wide
            tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
        write_model(folder, tensors, *self._described(folder.name, self.notes if notes is None else notes))

    def save_notes(self, folder: Path | str) -> None:
        """Write `notes` into `config.json` and `README.md` of an exported model that has these weights."""
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
        """Open a trained model on the CPU.

        Args:
            place: Name of a bundled model (`small`, `base`), an exported folder, a run folder, whose best checkpoint is
                opened, or a checkpoint folder.

        Raises:
            UserError: There is no model at this place, or it is damaged.
        """
        saved = find_model(place)
        extractor = cls(saved.model, saved.preprocess, saved.ppi, saved.canvas, saved.enhanced)
        saved.load_into(extractor.model)
        extractor.notes, extractor.origin = saved.notes, str(saved.folder)
        return extractor.eval()


def open_extractor(place: Path | str) -> FingerprintExtractor:
    """Open a model as `FingerprintExtractor.from_pretrained` does, on the GPU if there is one."""
    return FingerprintExtractor.from_pretrained(place).to("cuda" if torch.cuda.is_available() else "cpu")
