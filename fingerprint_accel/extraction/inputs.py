"""Read everything that `FingerprintExtractor` accepts as prints: files, images, arrays, canvases and datasets.

A canvas is a square image of the size that the model needs, with one print in the middle.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import PIL.Image
import torch

from fingerprint_accel.data.captures import check_one_finger
from fingerprint_accel.data.decoding import ImageError, grey_image
from fingerprint_accel.data.images import decode_apart, read_grey
from fingerprint_accel.data.print_file import ImageFile, PrintImage, Reading, open_image, open_print
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.synthesis.workers import each

if TYPE_CHECKING:
    import datasets

    from fingerprint_accel.data.loader import Subset
    from fingerprint_accel.data.shard_writing import DatasetInfo
    from fingerprint_accel.data.shards import Shards

Image: TypeAlias = Union[str, "os.PathLike[str]", bytes, np.ndarray, PIL.Image.Image]
Prints: TypeAlias = Union[
    Image, Sequence[Image], torch.Tensor, Sequence[torch.Tensor], "Shards", "Subset", "datasets.Dataset"
]
ToCanvas: TypeAlias = Callable[[Any, str], np.ndarray]  # maps an image and its name for errors to a canvas
IMAGES = "image files (str, Path or bytes), PIL images, uint8 arrays (H, W) or (H, W, 3)"
NO_PPI = "resolution of the images unknown; give ppi, for example 500"
COLUMN = "image"  # column of a `datasets.Dataset` that contains the images


@dataclass(frozen=True)
class CanvasReader:
    """Prints as canvases (square images with one print each), which are read in parts.

    Attributes:
        count: number of prints.
        read: function that takes two row indices, start and stop, and returns the canvases of the rows from start to
            stop - 1 as (stop - start, canvas, canvas) uint8.
    """

    count: int
    read: Callable[[int, int], torch.Tensor]


def open_prints(prints: Prints, wanted: PrintInfo, place: ToCanvas, ppi: int, placed: bool) -> CanvasReader:
    """Open prints of any accepted type for reading as canvases (square images with one print each).

    Args:
        prints: images or a dataset, as in `FingerprintExtractor.extract`.
        wanted: resolution and size of the canvases that the model needs.
        place: function that finds the print in an image and returns its canvas.
        ppi: resolution of the images, pixels per inch; not needed for dataset folders and placed images.
        placed: whether the images are canvases; they are then used without changes.

    Raises:
        TypeError: if `prints` has an unsupported type.
        UserError: if the resolution of the images is not given, or a dataset does not fit the model.
    """
    # Where a class was never imported, `prints` is no instance of it. The imports would take long: they load pyarrow.
    shards_class = getattr(sys.modules.get("fingerprint_accel.data.shards"), "Shards", ())
    subset_class = getattr(sys.modules.get("fingerprint_accel.data.loader"), "Subset", ())
    if isinstance(prints, shards_class):
        return _shards_reader(prints, np.arange(len(prints)), wanted)
    if isinstance(prints, subset_class):
        return _shards_reader(prints.shards, prints.rows, wanted)
    to_canvas: ToCanvas = (lambda image, name: _placed_canvas(image, name, wanted.canvas)) if placed else place
    ppi_known = ppi > 0 or placed
    if isinstance(prints, getattr(sys.modules.get("datasets"), "Dataset", ())):
        return _dataset_reader(prints, wanted, to_canvas, ppi_known)
    images = _as_several(prints, wanted.canvas, placed)
    require(ppi_known, NO_PPI)
    if isinstance(images, torch.Tensor):
        return CanvasReader(len(images), lambda start, stop: images[start:stop])
    return CanvasReader(len(images), lambda start, stop: _stacked(images[start:stop], start, to_canvas))


def read_image(image: Image | ImageFile, reading: Reading) -> PrintImage:
    """Read one print from an image file, the contents of a file, a PIL image or an array.

    Args:
        image: the image.
        reading: options for reading, such as the resolution.

    Raises:
        TypeError: if `image` has an unsupported type.
        ImageError: if the image cannot be decoded, or shows several fingers.
    """
    if isinstance(image, ImageFile):
        return open_print(image.path, reading, image.record, image.cut, image.slap, image.ppi)
    if isinstance(image, str | os.PathLike):
        return open_image(os.fspath(image), reading)
    grey = _grey(image)
    check_one_finger(grey, reading.ppi)
    return open_image(grey, reading)


def name_of_image(image: Image | ImageFile, otherwise: str = "image") -> str:
    """Return the file name of an image for error messages, or `otherwise` for an image without a file."""
    if isinstance(image, ImageFile):
        return image.name
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return str(getattr(image, "filename", "") or otherwise)


def check_dataset(info: DatasetInfo, wanted: PrintInfo, folder: Path) -> None:
    """Raise a UserError if the prints of a dataset do not have the format that a model needs.

    Args:
        info: description of the dataset, with resolution, size and enhancement of its prints.
        wanted: format that the model needs.
        folder: dataset folder, for the error message.
    """
    PrintInfo(info.ppi, info.canvas, info.enhanced).check_suits(wanted, folder)


def _shards_reader(shards: Shards, rows: np.ndarray, wanted: PrintInfo) -> CanvasReader:
    """Return a reader for rows (n,) of an opened dataset."""
    check_dataset(shards.info, wanted, shards.folder)

    def read(start: int, stop: int) -> torch.Tensor:
        canvases = np.empty((stop - start, wanted.canvas, wanted.canvas), np.uint8)
        shards.read(rows[start:stop], canvases)
        return torch.from_numpy(canvases)

    return CanvasReader(len(rows), read)


def _dataset_reader(dataset: Any, wanted: PrintInfo, to_canvas: ToCanvas, ppi_known: bool) -> CanvasReader:
    """Return a reader for the column `image` of a `datasets.Dataset`; its format and transforms are ignored.

    Args:
        dataset: the `datasets.Dataset`.
        wanted: resolution and size of the canvases that the model needs.
        to_canvas: function that finds the print in an image and returns its canvas.
        ppi_known: whether the caller gave the resolution of the images.

    Raises:
        TypeError: if the dataset has no column of images.
        UserError: if the images have no known resolution, or the dataset does not fit the model.
    """
    import datasets

    from fingerprint_accel.data.shard_writing import INFO

    feature = dataset.features.get(COLUMN)
    info = _info_beside(dataset, wanted) if getattr(feature, "dtype", "") == "binary" else None
    if not (info or isinstance(feature, datasets.Image)):
        raise TypeError(
            f"a datasets.Dataset needs a column `{COLUMN}` of type datasets.Image, or the canvases of a dataset folder "
            f"beside {INFO}; got columns {', '.join(dataset.column_names)}"
        )
    plain = dataset.with_format(None).select_columns([COLUMN])
    if info:
        decode = _canvas_decoder(info)
        return CanvasReader(len(plain), lambda start, stop: _stacked(plain[start:stop][COLUMN], start, decode))
    require(ppi_known, NO_PPI)
    plain = plain.cast_column(COLUMN, datasets.Image(decode=False))  # decoded later, in the same way as image files

    def read(start: int, stop: int) -> torch.Tensor:
        files = plain[start:stop][COLUMN]
        return _stacked([file["path"] if file["bytes"] is None else file["bytes"] for file in files], start, to_canvas)

    return CanvasReader(len(plain), read)


def _info_beside(dataset: Any, wanted: PrintInfo) -> DatasetInfo | None:
    """Return the description of the dataset folder from which a `datasets.Dataset` was loaded.

    The description is the `fingerprint.json` beside the files of the dataset. If the files lie in several dataset
    folders, the first description is returned.

    Returns:
        The description, or None if a file does not lie in a dataset folder.

    Raises:
        UserError: if a dataset folder does not fit the model, or the folders store images in different encodings.
    """
    from fingerprint_accel.data.shard_writing import INFO, DatasetInfo

    folders = sorted({Path(file["filename"]).parent for file in dataset.cache_files})
    if not folders or not all((folder / INFO).is_file() for folder in folders):
        return None
    infos = [DatasetInfo.read(folder) for folder in folders]
    for folder, info in zip(folders, infos, strict=True):
        check_dataset(info, wanted, folder)
        alike = info.encoding == infos[0].encoding
        require(alike, f"{folder}: encoding {info.encoding}, but {folders[0]} has {infos[0].encoding}; `merge` them")
    return infos[0]


def _canvas_decoder(info: DatasetInfo) -> ToCanvas:
    """Return a function that decodes the stored images of a dataset folder."""
    from fingerprint_accel.data.encoding import decode_canvas

    def decode(stored: bytes, name: str) -> np.ndarray:
        return decode_canvas(stored, info.canvas, info.encoding)

    return decode


def _stacked(images: Iterable[Any], start: int, to_canvas: ToCanvas) -> torch.Tensor:
    """Convert images to canvases on all cores, and stack them to (n, canvas, canvas) uint8.

    Args:
        images: the images.
        start: position of the first image among all prints, for the names in error messages.
        to_canvas: function that converts an image.
    """
    named = [(image, name_of_image(image, f"print {row}")) for row, image in enumerate(images, start)]
    # Two threads must not decode the same Pillow image, which a list may contain several times.
    alone = len(named) == 1 or any(isinstance(image, PIL.Image.Image) for image, _ in named)
    rows = [to_canvas(*pair) for pair in named] if alone else each(lambda pair: to_canvas(*pair), named)
    return torch.from_numpy(np.stack(rows))


def _as_several(prints: Any, side: int, placed: bool) -> Sequence[Any] | np.ndarray | torch.Tensor:
    """Return one image as a sequence of one image, and several images unchanged; check their types.

    Args:
        prints: one image or several images.
        side: side of a canvas, pixels.
        placed: whether the images are canvases, which must have the shape (side, side).

    Raises:
        TypeError: if an image has an unsupported type or shape.
    """
    if isinstance(prints, np.ndarray | torch.Tensor):
        several = prints[None] if _is_single(prints) else prints
        if several.ndim < 3 or not all(_is_image(image, side, placed) for image in several[:1]):
            raise _refusal(prints, side)
        return several
    if _is_image(prints, side, placed):
        return [prints]
    if not isinstance(prints, Sequence):
        raise _refusal(prints, side)
    for image in prints:
        if not _is_image(image, side, placed):
            raise _refusal(image, side, "a list with ")
    return prints


def _is_single(array: np.ndarray | torch.Tensor) -> bool:
    """Return whether an array has the shape of one image, (H, W) or (H, W, 3)."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)


def _is_image(image: Any, side: int, placed: bool) -> bool:
    """Return whether a value is one image of an accepted type.

    Args:
        image: value to check.
        side: side of a canvas, pixels.
        placed: whether arrays and tensors must be canvases of the shape (side, side).
    """
    if isinstance(image, torch.Tensor):
        return placed and image.dtype == torch.uint8 and image.shape == (side, side)
    if isinstance(image, np.ndarray):
        shape_fits = image.shape == (side, side) if placed else _is_single(image) and image.size > 0
        return bool(image.dtype == np.uint8 and shape_fits)
    return isinstance(image, str | os.PathLike | bytes | PIL.Image.Image)


def _refusal(value: Any, side: int, container: str = "") -> TypeError:
    """Return the TypeError for a value that is not an accepted image.

    Args:
        value: the value.
        side: side of a canvas, pixels, for the message.
        container: text in front of the type of the value, such as "a list with ".
    """
    return TypeError(
        f"expected {IMAGES}, a list of these, a dataset of open_dataset or datasets.load_from_disk, or with "
        f"placed=True uint8 canvases (N, {side}, {side}); got {container}{_described(value)}"
    )


def _described(value: Any) -> str:
    """Describe the type of a value for an error message, for example "numpy.ndarray (3, 4) float64" or "dict"."""
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return name


def _placed_canvas(image: Any, name: str, side: int) -> np.ndarray:
    """Read an image that is already a canvas, and check its size.

    Args:
        image: image file, PIL image, array or tensor.
        name: name of the image in error messages.
        side: side of a canvas, pixels.

    Returns:
        (side, side) uint8.

    Raises:
        UserError: if the image cannot be decoded, or its size is not (side, side).
    """
    try:
        if isinstance(image, torch.Tensor):
            grey = image.cpu().numpy()
        else:
            grey = read_grey(os.fspath(image)) if isinstance(image, str | os.PathLike) else _grey(image)
    except ImageError as error:
        raise UserError(f"{name}: {error}; give an image of one print") from error
    height, width = grey.shape
    require(grey.shape == (side, side), f"{name}: {width} x {height} pixels, a canvas of this model is {side} x {side}")
    return grey


def _grey(image: Any) -> np.ndarray:
    """Convert the contents of an image file, a PIL image or an array to grey values (H, W) uint8.

    The result is the same as if the image were read from a file.

    Raises:
        ImageError: if the image cannot be decoded.
        TypeError: if `image` has an unsupported type.
    """
    if isinstance(image, bytes):
        return decode_apart(image, "image").grey
    if isinstance(image, np.ndarray) and _is_image(image, 0, placed=False):
        if image.ndim == 2:
            return image
        image = PIL.Image.fromarray(image)
    if not isinstance(image, PIL.Image.Image):
        raise TypeError(f"expected one of {IMAGES}; got {_described(image)}")
    return grey_image(image)
