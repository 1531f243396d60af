"""Import the prints of one shard, a file with a part of the prints of a dataset. Worker processes run this module."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from fingerprint_accel.data.minutiae_record import NO_MINUTIAE
from fingerprint_accel.data.pairing import OF_REJECTED
from fingerprint_accel.data.plausibility import outliers
from fingerprint_accel.data.print_file import ImageFile, Prepared, Reading, Target, prepare
from fingerprint_accel.data.shard_writing import Record, write_shard
from fingerprint_accel.errors import UserError
from fingerprint_accel.executors import exit_code_of
from fingerprint_accel.staging import Facts, state_of_files

PLACE = struct.Struct(">Q")  # content of the draft of a shard before it is written: place of the print that is read


def import_files(
    files: list[ImageFile], fatal: dict[str, str], reading: Reading, target: Target, encoding: str, path: Path
) -> Facts:
    """Read the prints of one shard from their files, and write the shard. Worker processes run this function.

    Args:
        files: prints to import.
        fatal: reasons of prints that must not be read, by their names.
        reading: options for reading the images.
        target: format of the prints in the dataset.
        encoding: encoding of the images, "raw" or "lz4".
        path: shard to write.

    Returns:
        Properties of the shard: the result of `write_shard`, rejected files, notes, ridge periods of prints, and a
        digest of the state of the files.
    """
    state = state_of(files)
    records, rejected, notes = [], [], []
    periods: dict[str, float] = {}
    for file, prepared in _read(files, fatal, reading, target, path):
        if prepared.minutiae_reason:
            rejected.append((str(file.minutiae or file.name), prepared.minutiae_reason, True))
        if prepared.image is None:
            rejected.append((file.name, prepared.reason, False))
            if file.minutiae is not None and not prepared.minutiae_reason:
                rejected.append((str(file.minutiae), OF_REJECTED, True))
        else:
            names = file.finger_key, file.impression, file.name
            record = Record(prepared.image, *names, prepared.minutiae, finger=file.finger, nfiq2=prepared.quality)
            records.append(record)
            notes += [(file.name, note) for note in prepared.notes]
            if prepared.pages > 1:
                rejected.append((file.name, f"further pages: only the first of {prepared.pages} is imported", False))
            if prepared.period == prepared.period:  # not NaN
                periods[file.name] = round(prepared.period, 3)
    notes += outliers(periods)
    unknown = [periods[file.name] for file in files if file.name in periods and not file.ppi and not file.record]
    facts = write_shard(path, records, target.canvas, encoding, nfiq2=target.nfiq2)
    return {**facts, "rejected": rejected, "notes": notes, "periods": unknown, "files": state}


def _read(
    files: list[ImageFile], fatal: dict[str, str], reading: Reading, target: Target, draft: Path
) -> Iterator[tuple[ImageFile, Prepared]]:
    """Read prints, and yield each with its result. The other arguments are those of `import_files`.

    Args:
        draft: file that tells which print is read, for the case that the print kills the process. See `read_place`.
    """
    with draft.open("wb", buffering=0) as mark:
        for place, file in enumerate(files):
            if file.name in fatal:
                yield file, Prepared(None, NO_MINUTIAE, fatal[file.name])
                continue
            mark.seek(0)
            mark.write(PLACE.pack(place))
            yield file, prepare(file, reading, target)


def state_of(files: Sequence[ImageFile]) -> str:
    """Return a digest of the state of the files of prints, see `staging.state_of_files`."""
    return state_of_files(path for file in files for path in (file.path, file.minutiae) if path is not None)


def read_place(draft: Path) -> int | None:
    """Return the place of the print that a worker was reading when it died.

    Args:
        draft: path that was given to `import_files`.

    Returns:
        Index of the print among the prints of the shard; None if the worker was not reading any.
    """
    found = draft.read_bytes() if draft.stat().st_size == PLACE.size else b""
    return int(PLACE.unpack(found)[0]) if found else None


def why_fatal(file: ImageFile, reading: Reading, target: Target) -> str:
    """Read a print in a process of its own, twice if the process dies.

    The arguments are those of `prepare`.

    Returns:
        The reason if the print crashes the process; empty if the process that read it before was killed from outside.

    Raises:
        UserError: if the process is killed (SIGKILL) twice.
    """
    code = 0
    for _ in range(2):
        code = exit_code_of(prepare, file, reading, target)
        if code >= 0:
            return ""
    if code == -signal.SIGKILL:
        raise UserError(
            f"{file.path}: the process that imports it was killed twice (SIGKILL), perhaps because memory ran out; "
            "free memory, and run the same command again to continue"
        )
    return f"damaged: it crashes the import ({signal.Signals(-code).name}); copy it again"
