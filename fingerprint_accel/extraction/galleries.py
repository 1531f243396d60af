"""Open a gallery by its place: a folder (see `gallery`), or the URL of a PostgreSQL database (see `engine`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fingerprint_accel.errors import require
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.engine import Engine
from fingerprint_accel.extraction.engine_connection import is_url, shown
from fingerprint_accel.extraction.engine_index import EngineIndex
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_files import KIND, read_facts
from fingerprint_accel.extraction.gallery_parts import FLOAT32, INT8, Known, part_files
from fingerprint_accel.extraction.gallery_search import Hits
from fingerprint_accel.outputs import check_folder


class EnrolledPrints(Protocol):
    """What enrolment, search and removal need of a gallery. `Gallery` describes the methods.

    A selection of prints is the result of `selected`. Its type differs between galleries; None means all prints.
    """

    dims: int
    model: str
    cells: int

    def __len__(self) -> int: ...

    def check_model(self, identity: str) -> None: ...

    def append(self, embeddings: np.ndarray, prints: Sequence[str | Known], replace: bool = False) -> int: ...

    def remove(self, person: str = "", names: Iterable[str] = ()) -> int: ...

    def selected(self, position: int = 0, person: str = "") -> Any: ...

    def of_persons(self, persons: Sequence[str]) -> np.ndarray: ...

    def count(self, among: Any) -> int: ...

    def search(
        self, probes: np.ndarray, k: int = 10, device: torch.device | str = "cpu", among: Any = None
    ) -> Hits: ...

    def known(self, rows: np.ndarray) -> list[Known]: ...

    def vectors(self, rows: np.ndarray) -> np.ndarray: ...


def open_enrolled(place: Path | str) -> Gallery | Engine:
    """Open an existing gallery.

    Raises:
        UserError: if there is no gallery at this place.
    """
    return Engine(str(place)) if is_url(place) else Gallery(place)


def open_or_create(
    place: Path | str, dims: int, model: str, cells: int = 0, template: str = FLOAT32
) -> Gallery | Engine:
    """Open a gallery, or create an empty one; see `Gallery.open_or_create`.

    Args:
        place: gallery folder, or URL of a PostgreSQL database.
        dims, model, cells: as in `Gallery.create`.
        template: how a new folder stores templates, "float32" or "int8".

    Raises:
        UserError: if there is anything other than a gallery of this model, or if `template` is "int8" and the gallery
            stores templates in another way.
    """
    check_fits(place, model, template)
    if is_url(place):
        return Engine.open_or_create(str(place), dims, model, cells)
    return Gallery.open_or_create(place, dims, model, cells, template)


def check_fits(place: Path | str, identity: str, template: str = FLOAT32) -> None:
    """Raise a UserError if a gallery has prints and its templates differ from the given ones.

    Args:
        place: gallery folder, or URL of a PostgreSQL database.
        identity: `FingerprintExtractor.identity` of the model.
        template: "int8" if the gallery must store int8 templates.
    """
    if is_url(place):
        require(template != INT8, f"{name_of(place)}: --int8 is for gallery folders; leave it out")
        found: Gallery | Engine | None = Engine.open_if_filled(str(place))
    else:
        folder = Path(place)
        found = Gallery(folder) if read_facts(folder) is not None and part_files(folder) else None
    if found is None:
        return
    found.check_model(identity)
    stored = found.template if isinstance(found, Gallery) else FLOAT32
    fits = template in (FLOAT32, stored)
    require(fits, f"{name_of(place)}: stores {stored} templates; leave out --int8, or give another folder")


def check_gallery(place: Path | str, inputs: Sequence[Path]) -> None:
    """Raise a UserError if a gallery folder contains something else or lies in an input; see `outputs.check_folder`."""
    if not is_url(place):
        check_folder(Path(place), KIND, inputs=inputs)


def name_of(place: Path | str) -> str:
    """Return the place of a gallery for messages: a path, or a URL without password."""
    return shown(str(place)) if is_url(place) else str(place)


def open_index(gallery: EnrolledPrints) -> ApproximateSearch | EngineIndex:
    """Open the index of a gallery for quick search, or build it if it is missing.

    Raises:
        UserError: if the index cannot be built.
    """
    if isinstance(gallery, Engine):
        return EngineIndex(gallery)
    assert isinstance(gallery, Gallery), "there are two kinds of galleries"
    return ApproximateSearch(gallery)
