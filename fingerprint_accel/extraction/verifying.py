"""Check files against the checksums that were stored when they were written, for `fingerprint-accel verify`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from fingerprint_accel.data.checksums import differing_files
from fingerprint_accel.data.shard_writing import CARD, INFO
from fingerprint_accel.durable import OTHER_FILES
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.embeddings_folder import CONFIG
from fingerprint_accel.extraction.gallery_files import INDEX_NAME, INDEXES, misses_parts, own_facts
from fingerprint_accel.extraction.gallery_parts import part_files
from fingerprint_accel.untrusted import Fields, read_json

REMEDY = "restore it from a copy"


def verify(folder: Path, progress: bool = True) -> tuple[int, int]:
    """Compare the files of a folder with their stored checksums. A card (README.md) that was edited causes only a note.

    Args:
        folder: dataset, gallery, folder of embeddings, exported model, checkpoint, or run folder with its checkpoints.
        progress: show a progress bar.

    Returns:
        Number of files that are as they were written, and their size in bytes.

    Raises:
        UserError: if a file is missing or differs from its checksum, or if the folder has no checksums.
    """
    expected = dict(_checksums(folder))
    require(
        bool(expected),
        f"{folder}: holds no checksums; give a dataset, gallery, folder of embeddings, model, checkpoint or run folder "
        "written by this version",
    )
    for path in expected:
        require(path.is_file(), f"{path}: missing; restore it from a copy, or make {folder} again")
    sizes = {path: path.stat().st_size for path in expected}
    changed = differing_files(expected, "verifying", progress)
    edited = [path for path in changed if path.name == CARD]  # the card of a dataset asks its owner to add the licence
    changed = [path for path in changed if path not in edited]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        remedy = f"restore it from a copy, or make {folder} again"
        if changed[0].suffix == ".faiss":
            remedy = "delete it; the next `search --index` builds it again"
        raise UserError(f"{changed[0]}: differs from its sha256{more}; {remedy}")
    for path in edited:
        print(f"note: {path}: differs from its sha256; restore it from a copy unless you edited it", file=sys.stderr)
    same = sizes.keys() - edited
    return len(same), sum(sizes[path] for path in same)


def _checksums(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield (path, checksum) for each file in a folder that has a stored checksum.

    The checksum is the SHA-256 in hexadecimal, or only its first 16 digits for the files of a gallery.

    Raises:
        UserError: if a description with checksums is damaged, or a file of a gallery is missing.
    """
    for name in (INFO, CONFIG, "state.json"):  # in a dataset; embeddings or an exported model; a checkpoint
        with contextlib.suppress(FileNotFoundError):
            fields = Fields(read_json(folder / name, REMEDY), folder / name, REMEDY)
            for key in ("sha256", OTHER_FILES):
                yield from ((folder / file, digest) for file, digest in fields.digests(key).items())
    misses_parts(folder, part_files(folder))  # raises an error if a file of a gallery is missing
    if parts := part_files(folder):
        own_facts(folder)  # raises an error if `gallery.json` is damaged
        indexes = [path for path in sorted(folder.glob(INDEXES)) if INDEX_NAME.fullmatch(path.name)]
        yield from ((path, path.stem[-16:]) for path in [*parts, *indexes])
    if (folder / "config.yaml").is_file():  # a run folder
        for inner in [*sorted(folder.glob("checkpoints/step-*")), folder / "model"]:
            yield from _checksums(inner)
