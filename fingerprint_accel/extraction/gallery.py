"""A gallery: embeddings of known prints on disk, with names, searched exactly by blocked matrix products.

A gallery is a folder of Arrow files. Every file is one enrolment, whole or absent. Its name holds the beginning of its
SHA-256, and its schema what `gallery.json` says. So neither a kill nor a full disk nor two enrolments at once leave a
folder that cannot be used. Files are memory-mapped: opening costs nothing, and a gallery may be larger than memory.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from fingerprint_accel.durable import draft_of, file_sha256, fsync_path, write_file, write_json
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.gallery_files import FACTS, KIND, as_facts, part_files, read_facts, read_part
from fingerprint_accel.outputs import check_folder, exclusive_lock
from fingerprint_accel.similarity import masked_similarity

BLOCK = 65_536  # references compared at a time
CELL = 128  # references of which only the best is looked at first
PROBES = 256  # compared at a time
RESCORED = 1000  # candidates of a probe with several hypotheses that are compared with all of them
SAME = 0.9999  # similarity from which two embeddings are of one image: other hardware rounds otherwise
PATIENCE = 60.0  # seconds to wait for another enrolment to write its file


@dataclass(frozen=True)
class Hits:
    """References of each probe, best first: `similarity` (M, k) float32 and `row` (M, k) int64 in the gallery. Equal
    similarities come in any order."""

    similarity: np.ndarray
    row: np.ndarray


class Gallery:
    """Embeddings and names of a gallery folder.

    Args:
        folder: an existing gallery.

    Attributes:
        dims: length of an embedding.
        model: what made the embeddings, in words; probes must come from the same.
        cells: of dense templates, which are compared over the cells that both prints have; 0 for others.
        part_names: of its files, in the order of their rows; a name is that of its content.

    Raises:
        UserError: not a gallery, or a file of it is cut off.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        facts = read_facts(self.folder)
        if facts is None:
            raise UserError(f"{self.folder}: not a gallery folder; `fingerprint-accel enroll` makes one")
        self.dims, self.model, self.cells = facts["dims"], facts["model"], facts["cells"]
        self._facts = json.dumps(facts, indent=2) + "\n"
        self._open_parts()

    def _open_parts(self) -> None:
        """Opens the files that are there now."""
        files = part_files(self.folder)
        self.part_names, self._parts = [path.name for path in files], [read_part(path, self.dims) for path in files]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    @classmethod
    def create(cls, folder: Path | str, dims: int, model: str, cells: int = 0) -> Gallery:
        """Makes an empty gallery, by a rename: a kill leaves a gallery or nothing.

        Raises:
            UserError: the folder exists and is not empty.
        """
        folder = Path(folder)
        check_folder(folder, KIND)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".tmp", f".{folder.name}.", folder.parent) as staged:
            write_json(Path(staged) / FACTS, as_facts(dims, model, cells))
            try:
                Path(staged).rename(folder)  # takes the place of an empty folder, and of no other
            except OSError as error:
                if folder.exists():
                    raise UserError(f"{folder}: exists already; choose another folder") from error
                raise
        fsync_path(folder.parent)
        return cls(folder)

    @classmethod
    def open_or_create(cls, folder: Path | str, dims: int, model: str, cells: int = 0) -> Gallery:
        """Opens a gallery, or makes an empty one; raises UserError where the folder holds something else."""
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()):
            check_folder(folder, KIND)
            return cls(folder)
        return cls.create(folder, dims, model, cells)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def append(self, embeddings: np.ndarray, names: Sequence[str]) -> int:
        """Enrols prints in one new file: all of them, or none. Prints that are enrolled already, by name and embedding,
        are passed over, so that an enrolment can be repeated after a kill. Returns how many were new.

        Args:
            embeddings: (N, D) float32 of unit length.
            names: N, what a search answers with.

        Raises:
            UserError: another process has been writing to the gallery for a minute.
        """
        assert embeddings.shape == (len(names), self.dims), "one name and one embedding per print"
        with exclusive_lock(
            self.folder / ".lock", f"{self.folder}: another command is enrolling; try again later", PATIENCE
        ):
            self._open_parts()  # another enrolment may have come between
            new = self._are_new(embeddings, list(names))
            if new.any():
                self._write(embeddings[new], [name for name, is_new in zip(names, new, strict=True) if is_new])
            if not (self.folder / FACTS).is_file():
                write_file(self.folder / FACTS, self._facts)
        return int(new.sum())

    def _are_new(self, embeddings: np.ndarray, names: list[str]) -> np.ndarray:
        """(N,) bool: False where a print of that name and that embedding is enrolled."""
        new, wanted = np.ones(len(names), bool), pa.array(names, pa.string())
        for number, part in enumerate(self._parts):
            rows = np.flatnonzero(pc.is_in(part["name"], value_set=wanted).to_numpy(zero_copy_only=False))
            places: dict[str, list[int]] = {}
            for row, name in zip(rows.tolist(), part["name"].take(pa.array(rows)).to_pylist(), strict=True):
                places.setdefault(name, []).append(row)
            for place in np.flatnonzero(new).tolist() if places else ():
                enrolled = self._part(number)[places.get(names[place], [])]
                new[place] = not (enrolled @ embeddings[place] >= SAME).any()
        return new

    def _write(self, embeddings: np.ndarray, names: list[str]) -> None:
        """A new file of prints."""
        flat = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel())
        columns = [pa.FixedSizeListArray.from_arrays(flat, self.dims), pa.array(names, pa.string())]
        batch = pa.record_batch(columns, names=["embedding", "name"]).replace_schema_metadata({"gallery": self._facts})
        number = max((int(name[5:11]) for name in self.part_names), default=-1) + 1
        temporary = draft_of(self.folder / f"part-{number:06d}")
        try:
            with pa.ipc.new_file(str(temporary), batch.schema) as writer:
                writer.write_batch(batch)
            fsync_path(temporary)
            temporary.rename(self.folder / f"part-{number:06d}-{file_sha256(temporary)[:16]}.arrow")
            fsync_path(self.folder)
        finally:
            temporary.unlink(missing_ok=True)
        self._open_parts()

    def names(self, rows: np.ndarray) -> list[str]:
        """Name of each row."""
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        return [
            self._parts[part]["name"][int(row - self._starts[part])].as_py()
            for part, row in zip(parts, rows, strict=True)
        ]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """rows (n,) -> (n, D) float32, read from the files."""
        found = np.empty((len(rows), self.dims), np.float32)
        of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(of_row).tolist():
            here = of_row == number
            found[here] = self._part(number)[rows[here] - self._starts[number]]
        return found

    def _part(self, number: int) -> np.ndarray:
        """(n, D) float32, a view of the file."""
        return np.from_dlpack(self._parts[number]["embedding"].flatten()).reshape(-1, self.dims)

    def check_probes(self, probes: np.ndarray) -> None:
        """Raises UserError where probes are not (M, D) or (M, H, D)."""
        require(
            probes.ndim in (2, 3) and probes.shape[-1] == self.dims,
            f"{self.folder}: holds embeddings of {self.dims} numbers, the probes have {probes.shape[-1]}",
        )

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row, and (n, D) float32 view of the file, of some references at a time."""
        for number, start in enumerate(self._starts[:-1]):
            flat = self._part(number)
            for first in range(0, len(flat), BLOCK):
                yield int(start) + first, flat[first : first + BLOCK]

    @torch.inference_mode()
    def search(self, probes: np.ndarray, k: int = 10, device: torch.device | str = "cpu") -> Hits:
        """The k references most similar to each probe; exact.

        Args:
            probes: (M, D) float32 of unit length; or (M, H, D), hypotheses of each, as `extract` gives them for poses:
                the first finds `RESCORED` candidates, or k, which are compared with the best of all.
            k: how many, at most as many as there are references.
            device: where the products are computed.

        Raises:
            UserError: an empty gallery, or probes of another length.
        """
        require(len(self) > 0, f"{self.folder}: no print is enrolled yet")
        self.check_probes(probes)
        k = min(k, len(self))
        if probes.ndim == 3:
            return self.best(probes, self.search(probes[:, 0], max(k, RESCORED), device).row, k)
        parts = [self._search(part.to(device), k) for part in torch.from_numpy(probes).split(PROBES)]
        similarity, row = (torch.cat(values).cpu().numpy() for values in zip(*parts, strict=True))
        return Hits(similarity, row)

    def best(self, probes: np.ndarray, candidates: np.ndarray, k: int) -> Hits:
        """The k references most similar to each probe (M, H, D), the best of its hypotheses counting, among those rows
        that `candidates` (M, n) names, -1 for none. Where these are fewer than k, the last have row 0, similarity -1.
        """
        similarity, row = np.full((len(probes), k), -1, np.float32), np.zeros((len(probes), k), np.int64)
        for number, (hypotheses, rows) in enumerate(zip(probes, candidates, strict=True)):
            rows = np.sort(rows[rows >= 0])  # files are read in order
            scores = masked_similarity(self.vectors(rows), hypotheses, self.cells).max(axis=1)
            best = np.argsort(-scores, kind="stable")[:k]
            similarity[number, : len(best)], row[number, : len(best)] = scores[best], rows[best]
        return Hits(similarity, row)

    def _search(self, probes: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        best = probes.new_full((len(probes), k), -torch.inf)
        rows = torch.zeros((len(probes), k), dtype=torch.int64, device=probes.device)
        for start, references in self.blocks():
            scores = masked_similarity(probes, _tensor(references).to(probes.device), self.cells)
            found, place = _top(scores, min(k, scores.shape[1]))
            best, order = torch.cat([best, found], dim=1).topk(k, dim=1)
            rows = torch.cat([rows, place + start], dim=1).gather(1, order)
        return best, rows


def _top(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`scores.topk(k)` along the last dimension, faster: the k largest lie in the k cells with the largest maxima."""
    count = scores.shape[1]
    whole = count // CELL * CELL
    if k * CELL * 4 > whole:
        return scores.topk(k, dim=1)
    cells = scores[:, :whole].unflatten(1, (-1, CELL))
    chosen = cells.amax(dim=2).topk(k, dim=1).indices  # (M, k)
    index = (chosen[:, :, None] * CELL + torch.arange(CELL, device=scores.device)).flatten(1)
    rest = torch.arange(whole, count, device=scores.device).expand(len(scores), -1)
    index = torch.cat([index, rest], dim=1)
    found, place = scores.gather(1, index).topk(k, dim=1)
    return found, index.gather(1, place)


def _tensor(values: np.ndarray) -> torch.Tensor:
    """A view of a file that is only read; torch would warn that it could be written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)
