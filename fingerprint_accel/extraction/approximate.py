"""Search in a gallery too large to be compared with as a whole: FAISS names candidates, which are compared exactly.

FAISS (Douze et al. 2024, arXiv 2401.08281) groups the references into cells and keeps each in one byte per number; a
search looks into the cells nearest to the probe. The index lies in the gallery's folder and is memory-mapped; its name
is that of the gallery's files that it has read, so that one that is cut off, or made by two at once, never lies.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from fingerprint_accel.durable import draft_of
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.gallery import RESCORED, Gallery, Hits
from fingerprint_accel.extraction.gallery_files import INDEXES, changing, part_files

REFERENCES_PER_CELL = 39  # below, FAISS warns that cells are badly placed
TRAINED_ON = 64  # references per cell, at most
SHARE_OF_CELLS = 4  # a search looks into one in so many, and into FEWEST_CELLS at least
FEWEST_CELLS = 32
CANDIDATES = 20  # compared exactly, for each that is asked for


class ApproximateSearch:
    """A gallery with its index, which is made or brought up to date first; `added` references were not in it yet.

    Args:
        gallery: to search.
        quick: looks into `FEWEST_CELLS` cells, however many there are. That finds references which are about as similar
            as prints of one finger can be; all prints of a gallery can be searched in it in little time.

    Raises:
        UserError: FAISS is not installed, an empty gallery, or an index that is damaged.
    """

    def __init__(self, gallery: Gallery, quick: bool = False) -> None:
        try:
            import faiss
        except ImportError as error:
            raise UserError("--index needs FAISS: pip install 'fingerprint_accel[faiss]'") from error
        self.gallery, self._quick = gallery, quick
        self._faiss: Any = faiss
        require(len(gallery) > 0, f"{gallery.folder}: no print is enrolled yet")
        self.added = self._bring_up_to_date()
        self._index = self._read(self._names()[-1], self._faiss.IO_FLAG_MMAP)
        self._index.nprobe = max(FEWEST_CELLS, 0 if quick else self._index.nlist // SHARE_OF_CELLS)

    def search(self, probes: np.ndarray, k: int = 10, among: np.ndarray | None = None) -> Hits:
        """The k references most similar to each probe, as far as they lie in the cells that are looked into.

        Arguments and errors are those of `Gallery.search`; similarities are exact.
        """
        self.gallery.check_probes(probes)
        k = min(k, len(self.gallery) if among is None else int(among.sum()))
        hypotheses = probes[:, None] if probes.ndim == 2 else probes
        again = self.gallery.cells or hypotheses.shape[1] > 1  # the index ranks by dot products of the first
        wanted = max(CANDIDATES * k, RESCORED if again and not self._quick else 0)
        first = np.ascontiguousarray(hypotheses[:, 0])
        settings = None
        if among is not None:
            chosen = self._faiss.IDSelectorBitmap(np.packbits(among, bitorder="little"))
            settings = self._faiss.SearchParametersIVF(sel=chosen, nprobe=self._index.nprobe)
        _, candidates = self._index.search(first, min(wanted, len(self.gallery)), params=settings)
        return self.gallery.best(hypotheses, candidates, k)  # fewer than asked for where cells of the index are small

    def _bring_up_to_date(self) -> int:
        *older, name = self._names()
        folder = self.gallery.folder
        if (folder / name).exists():
            return 0
        known = next((each for each in reversed(older) if (folder / each).exists()), None)
        index = self._read(known) if known else self._trained()
        before = index.ntotal
        for start, block in self.gallery.blocks():
            if start + len(block) > index.ntotal:
                index.add(np.ascontiguousarray(block[max(0, index.ntotal - start) :]))
        temporary = draft_of(folder / name)
        try:
            self._faiss.write_index(index, str(temporary))
            with changing(folder):
                # templates of a print that was deleted meanwhile must not come back in an index
                there = {path.name for path in part_files(folder)}
                gone = not there.issuperset(self.gallery.part_names)
                require(not gone, f"{folder}: prints were deleted during the search; search again")
                temporary.rename(folder / name)
                for path in folder.glob(INDEXES):
                    if path.name != name:
                        path.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)
        return int(index.ntotal - before)

    def _names(self) -> list[str]:
        """Of an index of the gallery's first file, of its first two, and so on; each is that of their content."""
        names, files = [], hashlib.sha256()
        for part in self.gallery.part_names:
            files.update(part.encode())
            names.append(f"index-{files.hexdigest()[:16]}.faiss")
        return names

    def _trained(self) -> Any:
        """An empty index whose cells lie where references do, a seeded sample of them."""
        count = len(self.gallery)
        cells = max(1, min(round(2 * math.sqrt(count)), count // REFERENCES_PER_CELL))
        index = self._faiss.index_factory(self.gallery.dims, f"IVF{cells},SQ8", self._faiss.METRIC_INNER_PRODUCT)
        rows = np.random.default_rng(0).choice(count, min(count, TRAINED_ON * cells), replace=False)
        index.train(self.gallery.vectors(np.sort(rows)))
        return index

    def _read(self, name: str, flags: int = 0) -> Any:
        path = self.gallery.folder / name
        try:
            return self._faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise UserError(f"{path}: damaged; delete it, and the next search makes it again") from error
