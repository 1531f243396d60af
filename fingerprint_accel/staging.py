"""The staging folder of a job: the unfinished output of a command that writes shards, beside the output folder.

The folder contains the finished shards and, in a subfolder, a JSON file with the metadata of each of them. The command
that continues an interrupted one finds them there.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fingerprint_accel.durable import draft_of, errors_naming, file_sha256, fsync_path, json_text, write_json
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import RECORDS
from fingerprint_accel.privacy import follow_umask
from fingerprint_accel.untrusted import read_json

Facts = dict[str, Any]  # metadata of a finished shard, as JSON
ARGUMENTS = "arguments.json"  # file in the folder of the records; no shard has this name


def staging_of(arguments: Facts, out: Path) -> Path:
    """Return the path of the staging folder of a job with these arguments that writes the folder `out`.

    The name of the folder contains a digest of the job's arguments. If a cluster worker continues after its client has
    ended, it therefore does not write into the staging folder of another command.
    """
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:8]
    return out.with_name(f".{out.name}.{digest}.partial")


def begin(staging: Path, arguments: Facts, out: Path, overwrite: bool) -> None:
    """Create the staging folder of a job, unless an interrupted call has left it.

    Args:
        staging: Path of the staging folder, see `staging_of`.
        arguments: Arguments of the job.
        out: Output folder of the job.
        overwrite: Whether to delete the finished shards that another command has left for `out`.

    Raises:
        UserError: If another command has left finished shards for `out`, and `overwrite` is False.
    """
    for other in out.parent.glob(f".{glob.escape(out.name)}.????????.partial") if out.parent.is_dir() else ():
        if other != staging:
            _discard(other, arguments, overwrite)
    if stored_facts(staging / RECORDS / ARGUMENTS) != arguments:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / RECORDS).mkdir(parents=True)
        write_json(staging / RECORDS / ARGUMENTS, arguments)
    discard_drafts(staging)


def discard_drafts(folder: Path) -> None:
    """Delete the partly written files that killed or lost workers have left in a staging folder or a finished folder.

    Their names begin with a dot. Libraries name some of them.
    """
    for path in [*folder.glob(".*"), *(folder / RECORDS).glob(".*")]:
        path.unlink(missing_ok=True)


def delete_records(out: Path, names: Iterable[str]) -> None:
    """Delete the metadata of shards from a finished output folder, if it has any.

    The arguments of the job are deleted first. If the process is killed after that, the next call deletes the rest.

    Args:
        out: The output folder. A subfolder with other files than metadata is kept.
        names: File names of the shards.
    """
    known = {ARGUMENTS, *(f"{name}.json" for name in names)}
    if (out / RECORDS).is_dir() and known.issuperset(path.name for path in (out / RECORDS).iterdir()):
        (out / RECORDS / ARGUMENTS).unlink(missing_ok=True)
        shutil.rmtree(out / RECORDS)


def _discard(other: Path, arguments: Facts, overwrite: bool) -> None:
    """Delete `other`, the staging folder of another command for the same output folder.

    Raises:
        UserError: If the folder contains finished shards and `overwrite` is False.
    """
    stored = stored_facts(other / RECORDS / ARGUMENTS) or {}
    if stored and not overwrite and any(path.name != ARGUMENTS for path in (other / RECORDS).glob("*.json")):
        differing = ", ".join(
            f"{name} {stored.get(name)} there, {value} here"
            for name, value in arguments.items()
            if stored.get(name) != value
        )
        raise UserError(
            f"{other}: holds unfinished shards of another command ({differing}); "
            "stop that command, delete the folder, or add --overwrite"
        )
    shutil.rmtree(other)


def drafts_of(staging: Path, name: str) -> list[Path]:
    """Return the drafts (see `durable.draft_of`) of a shard that workers have left in a staging folder."""
    return list(staging.glob(f".*-{glob.escape(name)}.tmp"))


def make_shard(task: Callable[[Path], Facts], path: Path) -> Facts:
    """Write one shard and a JSON file with its metadata, and return the metadata. Workers run this function.

    Args:
        task: Function that writes the shard to a given path and returns the metadata of the shard.
        path: Path of the shard. The file exists at this path only when it is complete.

    Raises:
        UserError: If this machine cannot access the staging folder, or the task has failed.
        OSError: If the shard cannot be written. The error names `path`.
    """
    temporary = draft_of(path)
    if not path.parent.is_dir():
        raise UserError(
            f"{path.parent}: not found on {socket.gethostname()}; choose an OUT on a disk that all machines share"
        )
    try:
        with errors_naming(path):
            temporary.touch()  # if this process is killed, the draft tells which shard it was writing
            facts = task(temporary)
            follow_umask(temporary)
            fsync_path(temporary)
            facts["sha256"] = file_sha256(temporary)  # computed from the file as stored on disk
            temporary.replace(path)
            # The record is not flushed to the disk. If a crash of the machine loses it, the shard is written again.
            draft = path.parent / RECORDS / temporary.name
            draft.write_text(json_text(facts))
            draft.replace(record_of(path))
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return facts


def record_of(shard: Path) -> Path:
    """Return the path of the JSON file with the metadata of a shard in a staging folder."""
    return shard.parent / RECORDS / f"{shard.name}.json"


def stored_facts(path: Path) -> Facts | None:
    """Read a JSON file that this module has written; return None if it is missing or damaged."""
    with contextlib.suppress(OSError, UserError):
        return read_json(path, "")
    return None


def state_of_files(paths: Iterable[Path]) -> str:
    """Return a digest of the sizes and modification times of files, to find out later whether a file has changed."""
    state = hashlib.sha256()
    for path in paths:
        try:
            known = path.stat()
            state.update(f"{known.st_size} {known.st_mtime_ns}\n".encode())
        except OSError:
            state.update(b"unreadable\n")
    return state.hexdigest()
