"""Every print in a file, whatever the file is: an image, a transaction, a finger image record, raw pixels."""

from __future__ import annotations

import dataclasses
import functools
import mmap
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fingerprint_accel.data import ansi_nist, finger_image
from fingerprint_accel.data.decoding import IMAGE_STARTS, Decoded, ImageError
from fingerprint_accel.data.image_record import SLAPS, ImageRecord, RecordError
from fingerprint_accel.data.images import decode_apart
from fingerprint_accel.data.slaps import cut_fingers, holds_several_fingers

HEAD = 4096  # bytes by which a file is recognised
SEVERAL = (
    "several fingers on one image: to cut them out, state which hand it is, position 13 (right) or 14 (left), by a "
    "group of --names or a column of the csv"
)
IMAGE_PPI = 500  # of images that do not say: what most sensors and archives have
NAME = re.compile(r"(?P<path>.+)#(?P<record>\d+)(?:-(?P<finger>\d+))?")


@dataclass(frozen=True)
class Container:
    """A kind of file that holds images: how it begins, and what reads its records."""

    starts: Callable[[bytes], bool]
    read: Callable[[memoryview, Sequence[str]], list[ImageRecord]]


# A new container is a function and a line here.
CONTAINERS = (
    Container(lambda head: bool(ansi_nist.START.match(head)), ansi_nist.read_transaction),
    Container(lambda head: finger_image.MAGIC in head, lambda data, _: finger_image.read_finger_images(data)),
)


@dataclass(frozen=True)
class Capture:
    """A print as its file has it.

    Attributes:
        grey: (H, W) uint8.
        ppi: as a record states it, pixels per inch; 0 where none does.
        stated_ppi: in the tags of an image file, which are often wrong; 0 where there are none.
        pages: of the image file.
        minutiae: (n, 4) float32 x, y, angle, quality in pixels of the image; None where the file has none.
        quality: NFIQ 2 score, -1 where the file has none.
    """

    grey: np.ndarray
    ppi: float = 0.0
    stated_ppi: float = 0.0
    pages: int = 1
    minutiae: np.ndarray | None = None
    quality: int = -1


def split_name(name: str) -> tuple[str, int, int]:
    """`cards/a.an2#4-07` -> path, record 4, finger position 7; record and position are 0 where they are not named."""
    match = NAME.fullmatch(name)
    if match is None or Path(name).exists():
        return name, 0, 0
    return match["path"], int(match["record"]), int(match["finger"] or 0)


def join_name(path: str, record: int, finger: int) -> str:
    """What `split_name` takes apart."""
    return path + (f"#{record}" if record else "") + (f"-{finger:02d}" if finger else "")


def container_of(head: bytes) -> Container | None:
    """The kind of container that a file's first bytes (`HEAD` of them) belong to; None for images and all else."""
    if head.startswith(IMAGE_STARTS):
        return None
    return next((container for container in CONTAINERS if container.starts(head)), None)


def read_records(path: Path, key: Sequence[str] = ()) -> list[ImageRecord]:
    """The records of a container, without decoding their images; a file that is none has no records.

    Args:
        path: of the file. It stays mapped into memory as long as a record is kept.
        key: fields of an ANSI/NIST transaction that name the subject, as `2.018`.

    Raises:
        RecordError: a damaged container.
        ImageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            container = container_of(file.read(HEAD))
            if container is None:
                return []
            return container.read(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), key)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error


def read_capture(
    path: Path,
    record: int = 0,
    finger: int = 0,
    *,
    slap: int = 0,
    ppi: float = 0.0,
    raw_size: tuple[int, int] | None = None,
) -> Capture:
    """Reads and decodes one print.

    Args:
        path: of the file.
        record: of a container; 0 for an image file, or a container of one print.
        finger: position of the finger to cut out of a slap; 0 for an image of one finger.
        slap: position code of all fingers on an image file, as 13 for the four of the right hand; records state theirs.
        ppi: of the image where the file does not state it; to cut slaps it must be known.
        raw_size: (height, width) of files of raw pixels.

    Raises:
        ImageError: the file or the record cannot be used, or it holds several prints and none is named.
        UserError: the process that decodes does not start.
    """
    try:
        if finger:
            state = path.stat()
            cut = _fingers_of(path, record, slap, ppi, raw_size, (state.st_mtime_ns, state.st_size))
            if finger not in cut:
                raise ImageError(f"does not show finger {finger}")
            return cut[finger]
        found, capture = _read(path, record, raw_size)
    except RecordError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    if found.position in SLAPS or holds_several_fingers(capture.grey, capture.ppi or ppi or IMAGE_PPI):
        raise ImageError(SEVERAL)
    return capture


@functools.lru_cache(maxsize=1)  # the fingers of a slap follow each other
def _fingers_of(
    path: Path, number: int, slap: int, ppi: float, raw_size: tuple[int, int] | None, _: tuple[int, int]
) -> dict[int, Capture]:
    """The fingers of a slap by their positions."""
    record, capture = _read(path, number, raw_size)
    if record.position not in SLAPS:
        record = dataclasses.replace(record, position=slap)
    if not record.fingers[0]:
        raise ImageError(f"position {slap} is not that of several fingers")
    resolution = capture.ppi or ppi or IMAGE_PPI
    if set(record.fingers) <= set(record.segments):
        boxes = [record.segments[finger] for finger in record.fingers]
        parts = [capture.grey[top:bottom, left:right] for left, top, right, bottom in boxes]
    else:
        boxes, parts = cut_fingers(capture.grey, resolution, len(record.fingers))
    return {
        finger: dataclasses.replace(capture, grey=part, minutiae=_inside(capture.minutiae, box), quality=-1)
        for finger, part, box in zip(record.fingers, parts, boxes, strict=True)
    }


def _inside(minutiae: np.ndarray | None, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """Minutiae of an image -> those in a box (left, top, right, bottom) of it, in pixels of the box."""
    if minutiae is None:
        return None
    left, top, right, bottom = box
    moved = minutiae - np.array([left, top, 0, 0], np.float32)
    return moved[((moved[:, :2] >= 0) & (moved[:, :2] < (right - left, bottom - top))).all(axis=1)]


def _read(path: Path, number: int, raw_size: tuple[int, int] | None) -> tuple[ImageRecord, Capture]:
    """A record and its image, undivided; an image file counts as a record that says nothing."""
    records = read_records(path)
    if records:
        record = _chosen(records, number, path)
        return record, _decoded(record, str(path))
    data = path.read_bytes()
    if not data:
        raise ImageError("empty file")
    if raw_size is not None and len(data) == raw_size[0] * raw_size[1]:
        return ImageRecord(0), Capture(_raw(data, raw_size))
    grey, image = _image(data, str(path))
    return ImageRecord(0), Capture(grey, 0.0, image.ppi, image.pages)


def _chosen(records: list[ImageRecord], number: int, path: Path) -> ImageRecord:
    """The record of this number, or the only one that can be used."""
    usable = [record for record in records if not record.reason]
    if number:
        usable = [record for record in records if record.number == number]
        if not usable:
            raise ImageError(f"has no record {number}")
    if not usable or usable[0].reason:
        raise ImageError((usable or records)[0].reason)
    if len(usable) > 1:
        names = " or ".join(join_name(path.name, record.number, 0) for record in usable[:2])
        raise ImageError(f"holds {len(usable)} prints: name one, as {names}")
    return usable[0]


def _decoded(record: ImageRecord, name: str) -> Capture:
    data = bytes(record.image)
    # the stated algorithm may be wrong; what an image file begins with is not
    if record.raw is not None and (len(data) == record.raw[0] * record.raw[1] or not data.startswith(IMAGE_STARTS)):
        grey = _raw(data, record.raw)
    else:
        grey, _ = _image(data, name)
    return Capture(grey, record.ppi, minutiae=record.minutiae, quality=record.quality)


def _raw(data: bytes, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    if not height * width or len(data) < height * width:
        raise ImageError(f"{len(data)} bytes are too few for {width} x {height} raw pixels")
    return np.frombuffer(data, np.uint8, height * width).reshape(height, width)


def _image(data: bytes, name: str) -> tuple[np.ndarray, Decoded]:
    image = decode_apart(data, name)
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width), image
