"""Approximate search in large galleries: a FAISS index selects candidates, and their similarities are computed exactly.

The FAISS index (Douze et al. 2024, arXiv 2401.08281) groups the references, which are the enrolled embeddings, into
cells. It stores each element of an embedding in one byte. A search visits only the cells nearest to the probe. The
index is a memory-mapped file in the gallery folder. The name of the index contains a hash of the names of the gallery
files that the index covers. The names of gallery files contain checksums. An index is therefore used only with the
files that it was built from. The name also contains the beginning of the SHA-256 of the index. It is compared before
FAISS reads the file, and the structure of the file is checked, because FAISS crashes if it reads a damaged file. A
damaged index is built again.
"""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_accel.data import bus_errors
from fingerprint_accel.durable import draft_of, errors_naming, file_sha256, fsync_path
from fingerprint_accel.errors import UserError, require, write_errors
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_files import INDEX_DRAFTS, INDEXES, changing, delete_abandoned
from fingerprint_accel.extraction.gallery_parts import is_intact, part_files
from fingerprint_accel.extraction.gallery_search import RESCORED, Hits, rescored
from fingerprint_accel.extraction.index_file import check_index_file
from fingerprint_accel.privacy import private_files
from fingerprint_accel.untrusted import UnreadableError

REFERENCES_PER_CELL = 39  # minimum; with fewer, FAISS warns that there are too few training points
TRAINED_ON = 64  # the cell centres are computed from a sample of the references; maximum size of the sample, per cell
SHARE_OF_CELLS = 4  # a search visits one in `SHARE_OF_CELLS` cells, but at least `FEWEST_CELLS`
FEWEST_CELLS = 32
CANDIDATES = 20  # number of candidates to compare exactly, per reference to return


class ApproximateSearch:
    """Search a gallery with a FAISS index; the constructor builds the index or adds new references to it.

    Args:
        gallery: gallery to search.
        quick: visit only `FEWEST_CELLS` (32) cells of the index, whatever the size of the gallery. This reliably finds
            only references that are about as similar to the probe as prints of the same finger. It is fast enough to
            search for every print of a large gallery.

    Attributes:
        added: number of references that the constructor added to the index.

    Raises:
        UserError: if FAISS is not installed, the gallery is empty, or the index cannot be written.
    """

    def __init__(self, gallery: Gallery, quick: bool = False) -> None:
        try:
            import faiss
        except ImportError as error:
            raise UserError("an index needs FAISS: pip install 'fingerprint-accel[faiss]'") from error
        self.gallery, self._quick = gallery, quick
        self._faiss: Any = faiss
        enrolled = len(gallery) > 0
        require(enrolled, f"{gallery.folder}: no print is enrolled yet; add prints with `fingerprint-accel enroll`")
        prefix, self.added = self._prefixes()[-1], 0
        index = self._intact(prefix, faiss.IO_FLAG_MMAP)
        if index is None:
            self.added = self._bring_up_to_date()
            index = self._intact(prefix, faiss.IO_FLAG_MMAP)
        if index is None:
            raise UserError(f"{gallery.folder}: changed during the search; search again")
        self._index: Any = index
        self._index.nprobe = max(FEWEST_CELLS, 0 if quick else self._index.nlist // SHARE_OF_CELLS)

    def search(self, probes: np.ndarray, k: int = 10, among: np.ndarray | None = None) -> Hits:
        """Find the k references that are most similar to each probe, among the candidates that the index selects.

        The returned similarities are exact, but the search misses references outside the visited cells of the index. If
        it finds fewer than k references for a probe, the last entries have row 0 and similarity -1.

        Args:
            probes: (M, D) float32 of unit length; or (M, P, D) with P poses of each probe. The highest similarity over
                the poses is used.
            k: number of references to return for each probe.
            among: (N,) bool, true for the references to search; None for all N references of the gallery.

        Raises:
            UserError: if the dimensions of the probes and the gallery embeddings differ.
        """
        self.gallery.check_probes(probes)
        k = min(k, len(self.gallery) if among is None else int(among.sum()))
        hypotheses = probes[:, None] if probes.ndim == 2 else probes
        # The index ranks by the dot product of the first pose. Dense templates and several poses need more candidates.
        again = self.gallery.cells or hypotheses.shape[1] > 1
        wanted = max(CANDIDATES * k, RESCORED if again and not self._quick else 0)
        first = np.ascontiguousarray(hypotheses[:, 0])
        settings = None
        if among is not None:
            chosen = self._faiss.IDSelectorBitmap(np.packbits(among, bitorder="little"))
            settings = self._faiss.SearchParametersIVF(sel=chosen, nprobe=self._index.nprobe)
        _, candidates = self._index.search(first, min(wanted, len(self.gallery)), params=settings)
        known = bool((candidates < len(self.gallery)).all())
        require(known, f"{self.gallery.folder}: the index names prints that are not enrolled; delete index-*.faiss")
        return rescored(self.gallery.vectors, hypotheses, candidates, k, self.gallery.cells)

    @private_files()
    def _bring_up_to_date(self) -> int:
        """Build the FAISS index, or add the references that the index lacks; return the number of added references.

        Raises:
            UserError: if the index cannot be written, or a print was deleted in the meantime.
        """
        *older, prefix = self._prefixes()
        folder = self.gallery.folder
        known = (self._intact(each) for each in reversed(older))
        index = next((each for each in known if each is not None), None) or self._trained()
        before = index.ntotal
        for rows, block in self.gallery.blocks():
            if rows[-1] >= index.ntotal:
                index.add(np.ascontiguousarray(block[rows >= index.ntotal]))
        delete_abandoned(folder, INDEX_DRAFTS)
        temporary = draft_of(folder / "index")
        try:
            with write_errors(lambda: "or search without --index"):
                with errors_naming(folder):
                    with temporary.open("wb") as file:  # FAISS ignores some errors of the files that it opens itself
                        self._faiss.write_index(index, self._faiss.PyCallbackIOWriter(file.write))
                    fsync_path(temporary)
                    path = folder / f"{prefix}-{file_sha256(temporary)[:16]}.faiss"
                with changing(folder), errors_naming(path):
                    self._publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return int(index.ntotal - before)

    def _publish(self, temporary: Path, path: Path) -> None:
        """Give a new index its name, and delete all others; the caller must hold the lock of the gallery.

        Raises:
            UserError: if a print was deleted during the build. Its embedding must not remain in an index.
        """
        folder = self.gallery.folder
        there = {part.name for part in part_files(folder)}
        gone = not there.issuperset(self.gallery.part_names) or not temporary.exists()
        require(not gone, f"{folder}: prints were deleted during the search; search again")
        temporary.rename(path)
        fsync_path(folder)
        for other in folder.glob(INDEXES):
            if other != path:
                other.unlink(missing_ok=True)

    def _prefixes(self) -> list[str]:
        """Return the beginning of the name of the index over the first n gallery files, for each n from 1 on.

        It contains a hash of the names of the gallery files that the index covers. An index that covers only the first
        files can be extended, because enrolment only appends files. Deleting prints renames files and deletes all
        indexes.
        """
        names, files = [], hashlib.sha256()
        for part in self.gallery.part_names:
            files.update(part.encode())
            names.append(f"index-{files.hexdigest()[:16]}")
        return names

    def _trained(self) -> Any:
        """Create an empty FAISS index; its cell centres are computed from a seeded random sample of the references."""
        count = len(self.gallery)
        cells = max(1, min(round(2 * math.sqrt(count)), count // REFERENCES_PER_CELL))
        index = self._faiss.index_factory(self.gallery.dims, f"IVF{cells},SQ8", self._faiss.METRIC_INNER_PRODUCT)
        rows = np.random.default_rng(0).choice(count, min(count, TRAINED_ON * cells), replace=False)
        index.train(self.gallery.vectors(np.sort(rows)))
        return index

    def _intact(self, prefix: str, flags: int = 0) -> Any | None:
        """Read the index whose name begins with `prefix`; return None if there is none, or if it is damaged.

        Args:
            prefix: element of `_prefixes`.
            flags: flags of `faiss.read_index`.
        """
        for path in sorted(self.gallery.folder.glob(f"{prefix}-{'[0-9a-f]' * 16}.faiss")):
            index = None
            try:
                if is_intact(path):
                    check_index_file(path, self.gallery.dims, len(self.gallery))
                    index = self._faiss.read_index(str(path), flags)
                    if flags & self._faiss.IO_FLAG_MMAP:
                        bus_errors.watch_mapped(path, index)
            except (RuntimeError, OSError):  # another process has deleted the file
                continue
            except (UnreadableError, MemoryError):
                pass
            if index is not None and index.d == self.gallery.dims and index.ntotal <= len(self.gallery):
                return index
            print(f"{path}: damaged; the index is built again", file=sys.stderr)
        return None
