"""The extractor: a trained model with its preprocessing, which maps images of fingerprints to embeddings."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.canvas import put_on_canvas
from fingerprint_accel.data.decoding import ImageError
from fingerprint_accel.data.print_file import ImageFile, Reading
from fingerprint_accel.data.ridge_mask import CanvasError
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
from fingerprint_accel.extraction.model_notes import LEAST_AREA, check_notes
from fingerprint_accel.extraction.network import PreparedNetwork
from fingerprint_accel.extraction.poses import UPRIGHT, Poses
from fingerprint_accel.extraction.print_quality import contact_area
from fingerprint_accel.extraction.protection import Protection, with_key
from fingerprint_accel.models.saved_model import find_model, write_model, write_notes
from fingerprint_accel.preprocess.enhance import enhance_canvas
from fingerprint_accel.similarity import similarity
from fingerprint_accel.synthesis.workers import overlapped

if TYPE_CHECKING:
    from fingerprint_accel.data.shards import Shards


class FingerprintExtractor(PreparedNetwork):
    """Trained model with its preprocessing, which maps images of fingerprints to embeddings.

    Open a trained model with `from_pretrained`. The constructor creates a network with random weights. The model runs
    on the CPU until it is moved, for example with `extractor.to("cuda")`. Its `forward` method takes canvases, which
    are square images of fixed size and resolution with one print each.

    Args:
        model: configuration of the network.
        preprocess: configuration of the preprocessing.
        ppi: resolution that the network is trained at, pixels per inch.
        canvas: side of a canvas, pixels.
        enhanced: whether the network is trained on prints whose ridges were enhanced before they were stored.

    Attributes:
        model: the network, a `DeepPrint`.
        bf16: run the network in bfloat16, which is faster on CPUs and GPUs that support it.
        reading: options for reading image files: inverted, mirrored, or raw pixels.
        protection: secret transform of all embeddings except those of `with_quality`; None for none.
        notes: dictionary that is saved with the model and describes it, for example its calibration.
        origin: folder that the model was opened from.
        cells: number of grid cells of a dense embedding, 0 for other models; see `similarity`.
        identity: hash of the weights and the mean template, and the fingerprint of the key of `protection`. Embeddings
            with different identities must not be compared.
    """

    def __init__(
        self, model: ModelConfig, preprocess: PreprocessConfig, ppi: int, canvas: int, enhanced: bool = False
    ) -> None:
        super().__init__(model, preprocess, ppi, canvas, enhanced)
        self.reading = Reading()
        self.protection: Protection | None = None

    @property
    def identity(self) -> str:
        """Identity of the embeddings: that of the model, followed by the fingerprint of the key of `protection`."""
        return with_key(super().identity, self.protection)

    def forward(self, images: torch.Tensor, poses: Poses = UPRIGHT) -> torch.Tensor:
        """Embed a batch of canvases as `PreparedNetwork.forward` does, and protect the embeddings.

        Args:
            images: (B, canvas, canvas) uint8 on the device of the network, ridges dark.
            poses: rotations and shifts in which each print is embedded.

        Returns:
            (B, D) float32 of unit length; (B, P, D) for P > 1 poses.
        """
        embeddings = super().forward(images, poses)
        if self.protection is None:
            return embeddings
        return torch.from_numpy(self.protection.apply(embeddings.cpu().numpy(), self.cells)).to(embeddings.device)

    def extract(
        self,
        prints: Prints,
        ppi: int = 0,
        poses: Poses = UPRIGHT,
        batch_size: int = 64,
        progress: bool = True,
        placed: bool = False,
    ) -> np.ndarray:
        """Embed prints, and return the embeddings in the order of the prints.

        Args:
            prints: one image, a list of images, or a dataset. An image is a file (`str`, `Path`, or the contents as
                `bytes`), a PIL image, or a uint8 array (H, W) or (H, W, 3). A dataset is the result of `open_dataset`,
                or a `datasets.Dataset`. A `datasets.Dataset` needs a column `image` of type `datasets.Image`, or it
                must be a dataset folder that was opened with `datasets.load_from_disk`.
            ppi: resolution of the images, pixels per inch. It is not needed for dataset folders and placed images.
            poses: rotations and shifts in which each print is embedded; by default only the original position.
            batch_size: number of prints per batch.
            progress: show a progress bar if there is more than one batch.
            placed: whether the images are canvases, which are used without changes. A canvas has (canvas, canvas)
                pixels at the resolution of the network, with one print in the middle. Canvases may also be passed as a
                uint8 array or tensor (N, canvas, canvas), or as a list of uint8 tensors.

        Returns:
            (N, D) float32 of unit length, with N = 1 for one image; (N, P, D) for P > 1 poses. If the network has two
            branches, the first half of each embedding comes from the texture branch and the second half from the
            minutia branch.

        Raises:
            TypeError: if `prints` has an unsupported type.
            UserError: if an image shows no print, the resolution is unknown, or a dataset does not fit the model. Small
                prints raise no error here and have a low `quality`. `compare`, enrolment and search refuse small
                prints.
        """
        reader, reading = self._opened(prints, ppi, placed), threading.Lock()
        starts = range(0, reader.count, batch_size)

        def embed(start: int) -> np.ndarray:
            with reading:  # lists may contain an image twice, and no image can be decoded by two threads at once
                canvases = reader.read(start, min(start + batch_size, reader.count))
            found: np.ndarray = self(canvases.to(self.device), poses).cpu().numpy()
            return found

        embeddings, filled = np.empty((0, self.model.config.embedding_dim), np.float32), 0
        self.running  # noqa: B018  (made once, before two threads need it)
        shown = progress and len(starts) > 1
        with tqdm(total=reader.count, desc="extracting", unit="print", disable=not shown) as bar:
            for found in overlapped(embed, starts):
                if not filled:  # one array from the start: with poses it is large
                    embeddings = np.empty((reader.count, *found.shape[1:]), np.float32)
                embeddings[filled : filled + len(found)] = found
                filled += len(found)
                bar.update(len(found))
        return embeddings

    def quality(self, prints: Prints, ppi: int = 0, batch_size: int = 64, placed: bool = False) -> np.ndarray:
        """Measure the quality of prints, 0 (worst) to 1 (best). Mated prints of low quality often do not match.

        The quality combines the area of clear ridges with the norm of the embedding; see `print_quality`.

        Args:
            prints: images or dataset, as in `extract`.
            ppi: resolution of the images, as in `extract`.
            batch_size: number of prints per batch.
            placed: whether the images are canvases, as in `extract`.

        Returns:
            (N,) float32, 0 to 1.

        Raises:
            TypeError: if `prints` has a type that `extract` does not accept.
            UserError: for the same reasons as in `extract`.
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
        """Iterate over prints in batches of canvases, the square images that the model embeds.

        Arguments and errors are those of `extract`.

        Yields:
            (B, canvas, canvas) uint8 on the device of the model.
        """
        return self._batches(self._opened(prints, ppi, placed), batch_size, progress)

    def _opened(self, prints: Prints, ppi: int, placed: bool) -> CanvasReader:
        """Open prints of any type that `extract` accepts, as a reader of canvases."""

        def place(image: Image, name: str) -> np.ndarray:
            return self.on_canvas(image, ppi, however_small=True, name=name)

        return open_prints(prints, self.print_info, place, ppi, placed)

    def _batches(self, reader: CanvasReader, batch_size: int, progress: bool) -> Iterator[torch.Tensor]:
        """Read canvases in batches, move each batch to the device of the model, and show a progress bar."""
        shown = progress and reader.count > batch_size
        with tqdm(total=reader.count, desc="extracting", unit="print", disable=not shown) as bar:
            for start in range(0, reader.count, batch_size):
                canvases = reader.read(start, min(start + batch_size, reader.count))
                yield canvases.to(self.device)
                bar.update(len(canvases))

    def compare(self, reference: Image, probe: Image, ppi: int = 500, poses: Poses | None = None) -> float:
        """Compare two prints in several poses (rotations and shifts), and return the highest similarity.

        Args:
            reference: image of one print, as in `extract`.
            probe: image to compare with the reference.
            ppi: resolution of both images, pixels per inch.
            poses: poses to try; None for `usual_poses`.

        Returns:
            Cosine similarity of the embeddings in the best pose, -1 to 1; see `similarity`.

        Raises:
            TypeError: if an image has an unsupported type.
            UserError: if an image shows no print, or less of a finger than the model needs.
        """
        both = self.embed_to_compare([reference, probe], ppi, poses or self.usual_poses)
        return float(self.similarity(both[:1], both[1:])[0, 0])

    def similarity(self, references: np.ndarray, probes: np.ndarray) -> np.ndarray:
        """Compute the cosine similarity of every reference with every probe.

        Args:
            references: embeddings from `extract`, (N, D) float32, or (N, P, D) for P poses.
            probes: embeddings from `extract`, (M, D) float32, or (M, P, D) for P poses.

        Returns:
            (N, M) float32 similarities, -1 to 1. With several poses, each entry is the highest similarity over the
            poses. Dense embeddings are compared over the part of the finger that both prints show.
        """
        return similarity(references, probes, self.cells)

    def embed_to_compare(self, images: Sequence[Image], ppi: int, poses: Poses) -> np.ndarray:
        """Embed a few images as `extract` does, but refuse prints that are too small for a comparison.

        Args:
            images: images of one print each, as in `extract`.
            ppi: resolution of the images, pixels per inch.
            poses: poses in which each print is embedded.

        Returns:
            (N, D) float32 of unit length; (N, P, D) for P > 1 poses.

        Raises:
            UserError: if `ppi` is not above 0, if an image shows no print, or if a print fails `check_area`.
        """
        if ppi <= 0:
            raise UserError(NO_PPI)
        canvases = np.stack([self.on_canvas(image, ppi) for image in images])
        return self(torch.from_numpy(canvases).to(self.device), poses).cpu().numpy()

    def on_canvas(self, image: Image | ImageFile, ppi: int, however_small: bool = False, name: str = "") -> np.ndarray:
        """Find the print in an image, and place it on a canvas: a square image of the size that the model needs.

        Args:
            image: image of one print, as in `extract`. For a file with several prints, append the record number:
                `file#record`. One finger of a slap (an image of several fingers) is `file#record-position`.
            ppi: resolution of images that do not state their own, pixels per inch.
            however_small: skip `check_area`, so that small prints are accepted.
            name: name of the image in error messages; empty for the file name.

        Returns:
            (canvas, canvas) uint8, ridges dark, enhanced if the model needs enhanced prints.

        Raises:
            TypeError: if the image has an unsupported type.
            UserError: if the image cannot be read, or shows no print or too small a part of one.
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
        """Raise a UserError if a print shows less of a finger than the model needs to recognise it.

        The minimum area is stored in the notes of the bundled models, for which it was measured. Models without this
        note accept any print.

        Args:
            canvas: (S, S) uint8, ridges dark.
            name: name of the print in the error message.
        """
        least = self.notes.get(LEAST_AREA)
        if least is None:
            return
        area = contact_area(canvas, self.ppi)
        if area < least:
            raise UserError(f"{name}: too small: {area:.0f} mm^2 of ridges, the model needs about {least:g}")

    def check_dataset(self, shards: Shards) -> None:
        """Check that the prints of a dataset have the format that the model needs.

        Raises:
            UserError: if the dataset and the model differ in resolution, size or enhancement. The message names the
                remedy.
        """
        check_dataset(shards.info, self.print_info, shards.folder)

    def save_pretrained(self, folder: Path | str, notes: dict[str, Any] | None = None, half: bool = False) -> None:
        """Write the model to a folder that `from_pretrained` opens.

        The folder gets `model.safetensors`, `config.json` and `README.md`. An existing model folder is replaced.

        Args:
            folder: folder to write.
            notes: notes to store in `config.json`; None for the attribute `notes`.
            half: store weight matrices in 16 bits, which halves the file size and changes embeddings by about 0.001.

        Raises:
            UserError: if the folder exists and is not a model folder.
        """
        folder = Path(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        if half:  # vectors stay in float32: they are small, and have a wide range of values
            tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
        write_model(folder, tensors, *self._described(folder.name, self.notes if notes is None else notes))

    def save_notes(self, folder: Path | str) -> None:
        """Write `notes` into `config.json` and `README.md` of an exported model folder.

        Args:
            folder: model folder that contains the weights of this model; its weights are not written.
        """
        folder = Path(folder)
        write_notes(folder, *self._described(folder.resolve().name, self.notes))

    def _described(self, name: str, notes: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Return the contents of `config.json` and `README.md` of an exported model folder.

        Args:
            name: name of the model in `README.md`.
            notes: notes of the model to include.
        """
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
            place: name of a bundled model (`small` or `base`), or path of an exported model folder, a checkpoint
                folder, or a run folder. The best checkpoint of a run folder is opened.

        Raises:
            UserError: if `place` is not a model, or the model is damaged.
        """
        saved = find_model(place)
        saved.check_size()
        check_notes(saved.notes, saved.folder, saved.model.embedding_dim)
        try:
            extractor = cls(saved.model, saved.preprocess, saved.ppi, saved.canvas, saved.enhanced)
        except UserError as error:  # values that do not fit each other
            raise UserError(f"{saved.folder}: {error}") from error
        saved.load_into(extractor.model)
        extractor.notes, extractor.origin = saved.notes, str(saved.folder)
        return extractor.eval()


def open_extractor(place: Path | str) -> FingerprintExtractor:
    """Open a trained model as `FingerprintExtractor.from_pretrained` does, and move it to the GPU if there is one."""
    return FingerprintExtractor.from_pretrained(place).to("cuda" if torch.cuda.is_available() else "cpu")
