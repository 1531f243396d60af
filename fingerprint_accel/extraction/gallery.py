"""A gallery: embeddings of known prints on disk, with names, searched exactly by blocked matrix products.

A gallery is a folder of Arrow files. Every file is one enrolment, whole or absent. Its name holds the beginning of its
SHA-256, and its schema what `gallery.json` says. So neither a kill nor a full disk nor two enrolments at once leave a
folder that cannot be used. Files are memory-mapped: opening costs nothing, and a gallery may be larger than memory.
To delete a print, its file is written again without it.
"""

from __future__ import annotations

import json
import tempfile
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from fingerprint_accel.data.layouts import position_name
from fingerprint_accel.durable import fsync_path, write_file, write_json
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.gallery_files import (
    FACTS,
    KIND,
    Known,
    as_facts,
    change_parts,
    changing,
    delete_drafts,
    known_in,
    new_part,
    part_number,
    positions_in,
    read_facts,
    settled_parts,
)
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.similarity import masked_similarity

BLOCK = 65_536  # references compared at a time
CELL = 128  # references of which only the best is looked at first
PROBES = 256  # compared at a time
RESCORED = 1000  # candidates of a probe with several hypotheses that are compared with all of them
SAME = 0.9999  # similarity from which two embeddings are of one image: other hardware rounds otherwise


@dataclass(frozen=True)
class Hits:
    """References of each probe, best first: `similarity` (M, k) float32 and `row` (M, k) int64 in the gallery. Equal
    similarities come in any order."""

    similarity: np.ndarray
    row: np.ndarray


class Gallery:
    """Embeddings of a gallery folder, and what is known of each print.

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
        parts = settled_parts(self.folder, self.dims)
        self.part_names, self._parts = [name for name, _ in parts], [part for _, part in parts]
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
            gallery = cls(folder)
            gallery.check_model(model)
            return gallery
        return cls.create(folder, dims, model, cells)

    def check_model(self, identity: str) -> None:
        """Raise UserError where the embeddings come from another model than the one of this identity."""
        require(
            self.model == identity,
            f"{self.folder}: filled by another model ({self.model}, not {identity}); give the model that filled it "
            "(--model), or another gallery",
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def append(self, embeddings: np.ndarray, prints: Sequence[str | Known], replace: bool = False) -> int:
        """Enrols prints: all of them, or none. Prints that are enrolled already, by name and embedding, are passed
        over, so that an enrolment can be repeated after a kill. Returns how many were new or replaced others.

        Args:
            embeddings: (N, D) float32 of unit length.
            prints: N, what is known of each, or its name alone.
            replace: prints of other images, or of which other things are known, take the place of those of the same
                name.

        Raises:
            UserError: a print of another image has the name of one, and `replace` is not set; two of `prints` share a
                name; or another process has been writing to the gallery for a minute.
        """
        require(
            embeddings.shape == (len(prints), self.dims),
            f"{self.folder}: {len(prints)} names need embeddings ({len(prints)}, {self.dims}), not {embeddings.shape}",
        )
        known = [Known(each) if isinstance(each, str) else each for each in prints]
        with changing(self.folder):
            self._open_parts()  # another enrolment may have come between
            new = self._first_of_name(embeddings, known)
            replaced = self._meet(embeddings, known, new, replace)
            if replaced and not replace:
                name = known_in(self._parts[replaced[0][0]], replaced[0][1]).name
                raise UserError(
                    f"{name}: enrolled already, from another image; --replace puts this one in its place, "
                    f"`remove {self.folder} --name` deletes it"
                )
            if new.any():
                added = new_part(
                    embeddings[new], [each for each, is_new in zip(known, new, strict=True) if is_new], self._facts
                )
                self._change(self._masks(replaced), [added])
            if not (self.folder / FACTS).is_file():
                write_file(self.folder / FACTS, self._facts)
        return int(new.sum())

    def _first_of_name(self, embeddings: np.ndarray, known: list[Known]) -> np.ndarray:
        """(N,) bool: False for a print that is listed before; two prints of one name are a UserError."""
        first, new = dict[str, int](), np.ones(len(known), bool)
        for row, each in enumerate(known):
            before = first.setdefault(each.name, row)
            if before != row:
                same = bool(embeddings[before] @ embeddings[row] >= SAME)
                require(same, f"{each.name}: two prints of this name; enrol them by two commands, or rename one")
                new[row] = False
        return new

    def _meet(
        self, embeddings: np.ndarray, known: list[Known], new: np.ndarray, replace: bool
    ) -> list[tuple[int, int]]:
        """Clears `new` where a print of that name and that embedding is enrolled, with `replace` one of which the same
        is known; file and row of the prints that have the name of one that is new."""
        wanted = pa.array([each.name for each in known], pa.string())
        row_of = {known[row].name: row for row in np.flatnonzero(new).tolist()}
        met = []
        for number, part in enumerate(self._parts):
            rows = np.flatnonzero(pc.is_in(part["name"], value_set=wanted).to_numpy(zero_copy_only=False))
            vectors = self._part(number)
            for row, name in zip(rows.tolist(), part["name"].take(pa.array(rows)).to_pylist(), strict=True):
                place = row_of[name]
                met.append((number, row, place))
                is_same = vectors[row] @ embeddings[place] >= SAME
                if is_same and not (replace and known_in(part, row) != known[place]):
                    new[place] = False
        return [(number, row) for number, row, place in met if new[place]]

    def remove(self, person: str = "", names: Iterable[str] = ()) -> int:
        """Deletes all prints of a person, or the prints of some names, for good: files that hold them are written again
        without them, and indexes are deleted. A kill leaves all of them or none. Returns how many prints were deleted.

        Raises:
            UserError: no such person, or no print of one of the names; then nothing is deleted. Or another process has
                been writing to the gallery for a minute.
        """
        column = "person" if person else "name"
        wanted = {unicodedata.normalize("NFC", name) for name in ([person] if person else names)}
        with changing(self.folder):
            delete_drafts(self.folder)  # a killed enrolment may have left prints of this person
            self._open_parts()
            masks, found = [], set[str]()
            for part in self._parts:
                is_wanted = np.zeros(len(part), bool)
                if column in part.schema.names:
                    values = pc.utf8_normalize(part[column], form="NFC")
                    is_wanted = pc.is_in(values, value_set=pa.array(sorted(wanted), pa.string())).to_numpy(
                        zero_copy_only=False
                    )
                    found |= set(values.filter(pa.array(is_wanted)).to_pylist())
                masks.append(is_wanted)
            missing = sorted(wanted - found)
            require(not missing, f"{self.folder}: no print of {column} {', '.join(missing[:3])} is enrolled")
            self._change(masks, [])
        return sum(int(mask.sum()) for mask in masks)

    def _masks(self, rows: list[tuple[int, int]]) -> list[np.ndarray]:
        """File and row of some prints -> (n,) bool for each file."""
        masks = [np.zeros(len(part), bool) for part in self._parts]
        for number, row in rows:
            masks[number][row] = True
        return masks

    def _change(self, gone: list[np.ndarray], added: list[pa.RecordBatch]) -> None:
        """Adds files, and writes those again that hold prints that are gone; the lock is held."""
        touched = [number for number, mask in enumerate(gone) if mask.any()]
        new = []
        for number in touched:
            left = self._parts[number].filter(pa.array(~gone[number]))
            if len(left):
                new.append((part_number(self.part_names[number]), left))
        last = max((part_number(name) for name in self.part_names), default=-1)
        new += [(last + 1 + place, batch) for place, batch in enumerate(added)]
        change_parts(self.folder, new, [self.part_names[number] for number in touched])
        self._open_parts()

    def known(self, rows: np.ndarray) -> list[Known]:
        """What is known of the print of each row."""
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        return [
            known_in(self._parts[part], int(row - self._starts[part])) for part, row in zip(parts, rows, strict=True)
        ]

    def names(self, rows: np.ndarray) -> list[str]:
        """Name of each row."""
        return [known.name for known in self.known(rows)]

    def of_position(self, position: int) -> np.ndarray:
        """(N,) bool: prints of this finger position, and those whose position is not known.

        Raises:
            UserError: there is none.
        """
        known = np.concatenate([np.empty(0, np.int16), *(positions_in(part) for part in self._parts)])
        among = (known == position) | (known == 0)
        finger = f"finger position {position} ({position_name(position)})"
        require(bool(among.any()), f"{self.folder}: no print of {finger} is enrolled, and none of unknown position")
        return among

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
    def search(
        self, probes: np.ndarray, k: int = 10, device: torch.device | str = "cpu", among: np.ndarray | None = None
    ) -> Hits:
        """The k references most similar to each probe; exact.

        Args:
            probes: (M, D) float32 of unit length; or (M, H, D), hypotheses of each, as `extract` gives them for poses:
                the first finds `RESCORED` candidates, or k, which are compared with the best of all.
            k: how many, at most as many as there are references.
            device: where the products are computed.
            among: (N,) bool, the references to compare with; None for all.

        Raises:
            UserError: an empty gallery, or probes of another length.
        """
        require(len(self) > 0, f"{self.folder}: no print is enrolled yet")
        self.check_probes(probes)
        k = min(k, len(self) if among is None else int(among.sum()))
        if probes.ndim == 3:
            return self.best(probes, self.search(probes[:, 0], max(k, RESCORED), device, among).row, k)
        parts = [self._search(part.to(device), k, among) for part in torch.from_numpy(probes).split(PROBES)]
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

    def _search(self, probes: torch.Tensor, k: int, among: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
        best = probes.new_full((len(probes), k), -torch.inf)
        rows = torch.zeros((len(probes), k), dtype=torch.int64, device=probes.device)
        for start, references in self.blocks():
            numbers = torch.arange(start, start + len(references), device=probes.device)
            if among is not None:
                here = np.flatnonzero(among[start : start + len(references)])
                references, numbers = references[here], numbers[torch.from_numpy(here).to(probes.device)]
            scores = masked_similarity(probes, _tensor(references).to(probes.device), self.cells)
            found, place = _top(scores, min(k, scores.shape[1]))
            best, order = torch.cat([best, found], dim=1).topk(k, dim=1)
            rows = torch.cat([rows, numbers[place]], dim=1).gather(1, order)
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
