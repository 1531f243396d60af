"""One file to one print, in a worker process. Imports little, because every worker pays for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fingerprint_accel.data.canvas import CanvasError, put_on_canvas
from fingerprint_accel.data.images import ImageError, read_grey
from fingerprint_accel.data.templates import NO_MINUTIAE, TemplateError, read_template

# (canvas (S, S) uint8, ppi) -> the same, enhanced. The filters live in `preprocess`, which stands after `data`, so
# whoever asks for them passes the function in; it is a module's function, so that worker processes can be sent it.
Enhance = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Target:
    """What the prints of a dataset look like.

    Attributes:
        ppi: resolution, pixels per inch.
        canvas: side, pixels.
        enhance: done once to every canvas.
    """

    ppi: int
    canvas: int
    enhance: Enhance | None = None


@dataclass(frozen=True)
class ImageFile:
    """A file to import.

    Attributes:
        path: where it is.
        ppi: its resolution, pixels per inch.
        minutiae: its minutiae file.
        minutiae_reason: why that is not to be used, if so.
        name, finger_key, impression, finger: as of `shard_writing.Record`, whose `source` is the name.
    """

    path: Path
    ppi: int
    minutiae: Path | None = None
    minutiae_reason: str = ""
    name: str = ""
    finger_key: str = ""
    impression: int = -1
    finger: int = 0


@dataclass(frozen=True)
class Prepared:
    """What became of a file: an image (canvas, canvas) uint8, or a reason; and a reason if its minutiae failed."""

    image: np.ndarray | None
    minutiae: np.ndarray
    reason: str = ""
    minutiae_reason: str = ""


def prepare(file: ImageFile, target: Target) -> Prepared:
    """Reads and places one print; never raises for what a file holds."""
    minutiae, minutiae_reason = NO_MINUTIAE, file.minutiae_reason
    try:
        grey = read_grey(file.path)
        if file.minutiae is not None and not minutiae_reason:
            try:
                minutiae = read_template(file.minutiae, grey.shape[0]).fitted(grey.shape[1], grey.shape[0])
            except TemplateError as error:
                minutiae_reason = f"minutiae: {error}"
        image, minutiae = put_on_canvas(grey, minutiae, file.ppi, target.ppi, target.canvas)
    except (ImageError, CanvasError) as error:
        return Prepared(None, NO_MINUTIAE, str(error), minutiae_reason)
    if target.enhance is not None:
        image = target.enhance(image, target.ppi)
    return Prepared(image, minutiae, "", minutiae_reason)
