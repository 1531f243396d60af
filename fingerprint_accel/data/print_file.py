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

    def finish(self, image: np.ndarray) -> np.ndarray:
        """(canvas, canvas) uint8 on its canvas -> the same as it is stored."""
        return image if self.enhance is None else self.enhance(image, self.ppi)


@dataclass(frozen=True)
class ImageFile:
    """A file to import: where it is, what it is called in the dataset, its resolution, and its minutiae file.

    `minutiae_reason` says why the minutiae file is not to be used, if so.
    """

    path: Path
    name: str
    finger_key: str
    impression: int
    ppi: int
    minutiae: Path | None
    minutiae_reason: str = ""


@dataclass(frozen=True)
class Prepared:
    """What became of a file: an image (canvas, canvas) uint8, or a reason; and a reason if its minutiae failed."""

    image: np.ndarray | None
    minutiae: np.ndarray
    reason: str = ""
    minutiae_reason: str = ""


def prepare(file: ImageFile, target: Target) -> Prepared:
    """Reads and places one print; never raises for what a file holds."""
    try:
        grey = read_grey(file.path)
    except ImageError as error:
        return Prepared(None, NO_MINUTIAE, str(error), file.minutiae_reason)
    minutiae, minutiae_reason = NO_MINUTIAE, file.minutiae_reason
    if file.minutiae is not None and not minutiae_reason:
        try:
            template = read_template(file.minutiae, grey.shape[0])
            minutiae = template.fitted(grey.shape[1], grey.shape[0])
        except TemplateError as error:
            minutiae_reason = f"minutiae: {error}"
    try:
        image, minutiae = put_on_canvas(grey, minutiae, file.ppi, target.ppi, target.canvas)
    except CanvasError as error:
        return Prepared(None, NO_MINUTIAE, str(error), minutiae_reason)
    return Prepared(target.finish(image), minutiae, "", minutiae_reason)
