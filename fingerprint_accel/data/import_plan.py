"""Which file an import prepares in which part, and all that its bytes depend on."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fingerprint_accel import __version__
from fingerprint_accel.data.import_parts import files_per_part
from fingerprint_accel.data.listing import Listing
from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.pairing import Pairing
from fingerprint_accel.data.print_file import Job, Target


@dataclass(frozen=True)
class ImportPlan:
    """What is to be imported, and how; the same on every process.

    Attributes:
        source, layout: as given.
        listing: what is there.
        ppi: of images that do not state their own.
        minutiae: folder of minutiae files, if they do not lie beside the images.
        target: what prints are to look like.
        encoding: of the images in the dataset.
        seed: of the order.
    """

    source: Path
    layout: str
    listing: Listing
    ppi: int
    minutiae: Path | None
    target: Target
    encoding: str
    seed: int

    def __len__(self) -> int:
        return len(self.listing.table)

    @functools.cached_property
    def _order(self) -> np.ndarray:
        """(N,) rows of the listing in the order in which they are written: shuffled over fingers."""
        return permutation(len(self), self.seed, epoch=0, level=2)

    @functools.cached_property
    def _table(self) -> pa.Table:
        return self.listing.table.combine_chunks()

    @functools.cached_property
    def _pairing(self) -> Pairing:
        return Pairing(self.listing, self.minutiae)

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-len(self) // files_per_part(len(self)))

    def rows(self, part: int) -> range:
        """Places in the order of the files in a part."""
        size = files_per_part(len(self))
        return range(part * size, min(len(self), (part + 1) * size))

    def jobs(self, part: int) -> list[Job]:
        """The files of a part."""
        places = self.rows(part)
        numbers = self._order[places.start : places.stop]
        found = []
        for number, row in zip(numbers.tolist(), self._table.take(pa.array(numbers)).to_pylist(), strict=True):
            path, ppi = self.listing.root / row["path"], row["ppi"] or self.ppi
            template = self._pairing.of(number)
            found.append(Job(path, row["path"], row["finger_key"], row["impression"], ppi, *template))
        return found

    def arguments(self) -> dict[str, Any]:
        """All that the bytes of the dataset depend on but what is in the files, with the versions that make them."""
        names = hashlib.sha256()
        for batch in self.listing.table.to_batches():
            names.update(batch.serialize())
        return {
            "source": str(self.source.resolve()),
            "layout": self.layout,
            "files": len(self),
            "names": names.hexdigest()[:16],
            "ppi": self.ppi,
            "dataset_ppi": self.target.ppi,
            "canvas": self.target.canvas,
            "minutiae": str(self.minutiae.resolve()) if self.minutiae else None,
            "encoding": self.encoding,
            "enhance": self.target.enhance is not None,
            "seed": self.seed,
            **versions(self.target.enhance is not None),
        }


def versions(enhance: bool) -> dict[str, str]:
    """Of all that decides the bytes of a print that is read, placed and perhaps enhanced."""
    return {
        "fingerprint_accel": __version__,
        "pyarrow": version("pyarrow"),
        "pillow": version("pillow"),
        "torch": version("torch") if enhance else "",
    }
