"""Read everything that `FingerprintExtractor` accepts as prints: files, images, arrays, canvases and datasets."""

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

from fingerprint_accel.data.captures import SEVERAL
from fingerprint_accel.data.decoding import ImageError, grey_image
from fingerprint_accel.data.encoding import decode_canvas
from fingerprint_accel.data.images import decode_apart, read_grey
from fingerprint_accel.data.loader import Subset
from fingerprint_accel.data.print_file import ImageFile, PrintImage, Reading, open_image, open_print
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.data.shard_writing import INFO, DatasetInfo
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.data.slaps import holds_several_fingers
from fingerprint_accel.errors import UserError, require

if TYPE_CHECKING:
    import datasets

Image: TypeAlias = Union[str, "os.PathLike[str]", bytes, np.ndarray, PIL.Image.Image]
Prints: TypeAlias = Union[
    Image, Sequence[Image], torch.Tensor, Sequence[torch.Tensor], Shards, Subset, "datasets.Dataset"
]
ToCanvas: TypeAlias = Callable[[Any, str], np.ndarray]  # (image, name for errors) -> (canvas, canvas) uint8
IMAGES = "image files (str, Path or bytes), PIL images, uint8 arrays (H, W) or (H, W, 3)"
NO_PPI = "resolution of the images unknown; give ppi, for example 500"
COLUMN = "image"  # of a `datasets.Dataset`


@dataclass(frozen=True)
class CanvasReader:
    """Canvases of prints, which are read in parts.

    Attributes:
        count: Number of prints.
        read: Function of (start, stop) that returns (stop - start, canvas, canvas) uint8.
    """

    count: int
    read: Callable[[int, int], torch.Tensor]


def open_prints(prints: Prints, wanted: PrintInfo, place: ToCanvas, ppi: int, placed: bool) -> CanvasReader:
    """Open prints of any accepted kind as canvases.

    Args:
        prints: As in `FingerprintExtractor.extract`.
        wanted: Resolution and size of the canvases that the network takes.
        place: Function that finds the print on an image and returns its canvas.
        ppi: Resolution of the images in pixels per inch. Datasets of canvases and placed images need none.
        placed: Whether the images are canvases already. They are then used as they are.

    Raises:
        TypeError: `prints` is of another kind.
        UserError: The resolution of images is not given, or a dataset does not suit the network.
    """
    if isinstance(prints, Shards | Subset):
        return _shards_reader(prints, wanted)
    to_canvas: ToCanvas = (lambda image, name: _placed_canvas(image, name, wanted.canvas)) if placed else place
    ppi_known = ppi > 0 or placed
    dataset_class = getattr(sys.modules.get("datasets"), "Dataset", ())  # importing `datasets` takes a second
    if isinstance(prints, dataset_class):
        return _dataset_reader(prints, wanted, to_canvas, ppi_known)
    images = _as_several(prints, wanted.canvas, placed)
    require(ppi_known, NO_PPI)
    if isinstance(images, torch.Tensor):
        return CanvasReader(len(images), lambda start, stop: images[start:stop])
    return CanvasReader(len(images), lambda start, stop: _stacked(images[start:stop], start, to_canvas))


def read_image(image: Image | ImageFile, reading: Reading) -> PrintImage:
    """Read one print from a file, the bytes of a file, a PIL image or an array.

    Raises:
        TypeError: `image` is of another kind.
        ImageError: It cannot be decoded, or it shows several fingers.
    """
    if isinstance(image, ImageFile):
        return open_print(image.path, reading, image.record, image.cut, image.slap, image.ppi)
    if isinstance(image, str | os.PathLike):
        return open_image(os.fspath(image), reading)
    grey = _grey(image)
    if holds_several_fingers(grey, reading.ppi):
        raise ImageError(SEVERAL)
    return open_image(grey, reading)


def name_of_image(image: Image | ImageFile, otherwise: str = "image") -> str:
    """Return the file name of an image for error messages, or `otherwise` for an image without a file."""
    if isinstance(image, ImageFile):
        return image.name
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return str(getattr(image, "filename", "") or otherwise)


def check_dataset(info: DatasetInfo, wanted: PrintInfo, folder: Path) -> None:
    """Raise UserError where the prints of a dataset differ in ppi, canvas or enhancement from `wanted`."""
    PrintInfo(info.ppi, info.canvas, info.enhanced).check_suits(wanted, folder)


def _shards_reader(prints: Shards | Subset, wanted: PrintInfo) -> CanvasReader:
    """The canvases of an opened dataset, or of some of its rows."""
    shards = prints if isinstance(prints, Shards) else prints.shards
    rows = np.arange(len(prints)) if isinstance(prints, Shards) else prints.rows
    check_dataset(shards.info, wanted, shards.folder)

    def read(start: int, stop: int) -> torch.Tensor:
        canvases = np.empty((stop - start, wanted.canvas, wanted.canvas), np.uint8)
        shards.read(rows[start:stop], canvases)
        return torch.from_numpy(canvases)

    return CanvasReader(len(rows), read)


def _dataset_reader(dataset: Any, wanted: PrintInfo, to_canvas: ToCanvas, ppi_known: bool) -> CanvasReader:
    """The column `image` of a `datasets.Dataset`, as it is stored: its format or transform is not applied."""
    import datasets

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
    plain = plain.cast_column(COLUMN, datasets.Image(decode=False))  # files are decoded as all others are

    def read(start: int, stop: int) -> torch.Tensor:
        files = plain[start:stop][COLUMN]
        return _stacked([file["path"] if file["bytes"] is None else file["bytes"] for file in files], start, to_canvas)

    return CanvasReader(len(plain), read)


def _info_beside(dataset: Any, wanted: PrintInfo) -> DatasetInfo | None:
    """The description of the folders that the files of a `datasets.Dataset` lie in; None where one has none."""
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
    def decode(stored: bytes, name: str) -> np.ndarray:
        return decode_canvas(stored, info.canvas, info.encoding)

    return decode


def _stacked(images: Iterable[Any], start: int, to_canvas: ToCanvas) -> torch.Tensor:
    """Images, the first of which is number `start` -> (n, canvas, canvas) uint8."""
    rows = [to_canvas(image, name_of_image(image, f"print {row}")) for row, image in enumerate(images, start)]
    return torch.from_numpy(np.stack(rows))


def _as_several(prints: Any, side: int, placed: bool) -> Sequence[Any] | np.ndarray | torch.Tensor:
    """One image or several -> several, all of an accepted kind.

    Raises:
        TypeError: Anything else.
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
    """Whether the shape is that of one image, (H, W) or (H, W, 3), and not of several."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)


def _is_image(image: Any, side: int, placed: bool) -> bool:
    """Whether this is one image of an accepted kind. Placed arrays and tensors must be (side, side)."""
    if isinstance(image, torch.Tensor):
        return placed and image.dtype == torch.uint8 and image.shape == (side, side)
    if isinstance(image, np.ndarray):
        shape_fits = image.shape == (side, side) if placed else _is_single(image) and image.size > 0
        return bool(image.dtype == np.uint8 and shape_fits)
    return isinstance(image, str | os.PathLike | bytes | PIL.Image.Image)


def _refusal(value: Any, side: int, container: str = "") -> TypeError:
    return TypeError(
        f"expected {IMAGES}, a list of these, a dataset of open_dataset or datasets.load_from_disk, or with "
        f"placed=True uint8 canvases (N, {side}, {side}); got {container}{_described(value)}"
    )


def _described(value: Any) -> str:
    """`numpy.ndarray (3, 4) float64`, `dict`."""
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return name


def _placed_canvas(image: Any, name: str, side: int) -> np.ndarray:
    """An image that is a canvas already -> (side, side) uint8."""
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
    """The bytes of an image file, a PIL image or an array -> (H, W) uint8, as read from a file of the same image.

    Raises:
        ImageError: It cannot be decoded.
        TypeError: Anything else.
    """
    if isinstance(image, bytes):
        decoded = decode_apart(image, "image")
        return np.frombuffer(decoded.pixels, np.uint8).reshape(decoded.height, decoded.width)
    if isinstance(image, np.ndarray) and _is_image(image, 0, placed=False):
        if image.ndim == 2:
            return image
        image = PIL.Image.fromarray(image)
    if not isinstance(image, PIL.Image.Image):
        raise TypeError(f"expected one of {IMAGES}; got {_described(image)}")
    grey = grey_image(image)
    return np.frombuffer(grey.pixels, np.uint8).reshape(grey.height, grey.width)
