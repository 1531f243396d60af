"""Work that is cut into shards and published as one folder: `import`, `merge`, `synth` and `extract`.

A shard is written once, under its final name, in a staging folder beside the output. A record beside it, a small JSON
file, says that it is whole. When all records are there, the staging folder is renamed. A command that was killed
goes on from the records. The bytes do not depend on workers, machines or kills.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from fingerprint_accel.durable import draft_of, file_sha256, fsync_path, write_json
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import RECORDS, FolderKind, check_folder, exclusive_lock, put_in_place

Facts = dict[str, Any]  # of a finished shard, as JSON
IN_FLIGHT = 256  # shards that an executor has at a time
ARGUMENTS = "arguments.json"  # among the records; no shard is called that


class Job(Protocol):
    """Work that is made shard by shard.

    Attributes:
        label: of the progress bar.
        kind: of the folder that it makes.
        pattern: of the names of shards, with places for a shard's number and their count.
        arguments: all that the bytes depend on, as JSON has it, with the versions that make them.
        sizes: number of prints in each shard.
        bytes_per_print: room on the disk that a print will take, roughly.
    """

    label: str
    kind: FolderKind
    pattern: str
    arguments: dict[str, Any]
    sizes: list[int]
    bytes_per_print: float

    @property
    def names(self) -> list[str]:
        """File names of the shards."""
        return [self.pattern.format(shard, len(self.sizes)) for shard in range(len(self.sizes))]

    def task(self, shard: int) -> Callable[[Path], Facts]:
        """What makes a shard: a function that writes the given file and says what is in it. It travels to a worker."""
        ...

    def is_current(self, shard: int, facts: Facts) -> bool:
        """Whether a finished shard was made from the inputs as they are now, as far as `arguments` do not tell."""
        return True

    def publish(self, folder: Path, facts: list[Facts]) -> None:
        """Writes metadata beside the finished shards; `facts` of each also have its `sha256`."""
        ...


def run(job: Job, out: Path, executor: Executor, overwrite: bool = False, progress: bool = True) -> int:
    """Makes the shards that are missing and publishes the folder.

    Args:
        job: the work.
        out: folder to make.
        executor: makes the shards, see `executors.open_workers`.
        overwrite: replace `out` if it is a folder of the same kind, and shards that another command has left.
        progress: shows a progress bar.

    Returns:
        Number of prints in the shards that this call made.

    Raises:
        UserError: `out` may not be written (`outputs.check_folder`), another command is making it or has left shards
            beside it, the disk is too small, or whatever a task raises.
    """
    with exclusive_lock(
        out.with_name(f".{out.name}.lock"), f"{out}: another command is making it; wait for it, or end it"
    ):
        if _read_json(out / RECORDS / ARGUMENTS) == job.arguments:  # an earlier call was killed at the very end
            shutil.rmtree(out / RECORDS)
            return 0
        check_folder(out, job.kind, overwrite)
        staging = _begin(job, out, overwrite)
        facts: dict[int, Facts] = {}
        try:
            made = _make_missing(job, staging, executor, progress, facts)
            _discard_drafts(staging)
            job.publish(staging, [facts[shard] for shard in range(len(job.sizes))])
        except UserError:
            if len(facts) in (0, len(job.sizes)):  # nothing to go on from, or nothing that could be published
                shutil.rmtree(staging)
            raise
        for file in staging.iterdir():
            fsync_path(file)
        put_in_place(staging, out, job.kind)
        shutil.rmtree(out / RECORDS)
    return made


def _make_missing(job: Job, staging: Path, executor: Executor, progress: bool, facts: dict[int, Facts]) -> int:
    """Makes what is missing, fills in the `facts` of all shards by number, and returns how many prints it made."""
    facts.update(_finished(job, staging))
    missing = [shard for shard in range(len(job.sizes)) if shard not in facts]
    if facts and progress:
        print(f"going on: {len(facts)} of {len(job.sizes)} shards are there", file=sys.stderr)
    total, to_make = sum(job.sizes), sum(job.sizes[shard] for shard in missing)
    needed, free = to_make * job.bytes_per_print if missing else 0, shutil.disk_usage(staging).free
    if needed > free:
        raise UserError(
            f"{staging.parent}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB are free; make room, or choose "
            "another disk"
        )
    with tqdm(total=total, initial=total - to_make, desc=job.label, unit="print", disable=not progress) as bar:
        for shard, of_shard in _made(job, staging, missing, executor):
            facts[shard] = of_shard
            bar.update(job.sizes[shard])
    return to_make


def _begin(job: Job, out: Path, overwrite: bool) -> Path:
    """Makes the staging folder, or takes over the one that an interrupted call has left.

    Its name holds a digest of the arguments: a worker of a cluster that outlives its client may still write there.
    """
    digest = hashlib.sha256(json.dumps(job.arguments, sort_keys=True).encode()).hexdigest()[:8]
    staging = out.with_name(f".{out.name}.{digest}.partial")
    for other in out.parent.glob(f".{glob.escape(out.name)}.????????.partial") if out.parent.is_dir() else ():
        if other != staging:
            _discard(other, job, overwrite)
    if _read_json(staging / RECORDS / ARGUMENTS) != job.arguments:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / RECORDS).mkdir(parents=True)
        write_json(staging / RECORDS / ARGUMENTS, job.arguments)
    _discard_drafts(staging)
    return staging


def _discard_drafts(staging: Path) -> None:
    """Deletes what workers were writing when they were killed."""
    for path in [*staging.glob(".*.tmp"), *(staging / RECORDS).glob(".*.tmp")]:
        path.unlink(missing_ok=True)


def _discard(other: Path, job: Job, overwrite: bool) -> None:
    """Deletes what another command has left, where it is nothing or may be replaced."""
    stored = _read_json(other / RECORDS / ARGUMENTS) or {}
    if stored and not overwrite and any(path.name != ARGUMENTS for path in (other / RECORDS).glob("*.json")):
        differing = ", ".join(
            f"{name} {stored.get(name)} not {value}"
            for name, value in job.arguments.items()
            if stored.get(name) != value
        )
        raise UserError(
            f"{other}: unfinished shards of another command ({differing}); "
            "end that command, delete the folder, or add --overwrite"
        )
    shutil.rmtree(other)


def _finished(job: Job, staging: Path) -> dict[int, Facts]:
    """Facts of the shards that are whole, by number."""
    found = {}
    for shard, name in enumerate(job.names):
        facts = _read_json(_record(staging / name))
        if facts is not None and (staging / name).is_file() and job.is_current(shard, facts):
            found[shard] = facts
    return found


def _made(job: Job, staging: Path, shards: list[int], executor: Executor) -> Iterator[tuple[int, Facts]]:
    """Shard and facts as they are finished; a bounded number is in flight."""
    pending: dict[Future[Facts], int] = {}
    names = job.names
    for shard in shards:
        pending[executor.submit(make_shard, job.task(shard), staging / names[shard])] = shard
        while len(pending) >= IN_FLIGHT or any(future.done() for future in pending):
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    while pending:
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            yield pending.pop(future), future.result()


def make_shard(task: Callable[[Path], Facts], path: Path) -> Facts:
    """Makes one shard, in a worker; it is whole and on the disk once this returns.

    Raises:
        UserError: this machine does not see the staging folder, or whatever the task raises.
    """
    temporary = draft_of(path)
    if not path.parent.is_dir():
        raise UserError(
            f"{path.parent}: not seen by {socket.gethostname()}; choose an OUT on a disk that all machines share"
        )
    try:
        facts = task(temporary)
        fsync_path(temporary)
        facts["sha256"] = file_sha256(temporary)  # reads back what was written
        temporary.replace(path)
        # Not synced: after a crash a record that is lost, or stands without its shard, only has the shard made again.
        draft = path.parent / RECORDS / temporary.name
        draft.write_text(json.dumps(facts) + "\n")
        draft.replace(_record(path))
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return facts


def _record(shard: Path) -> Path:
    return shard.parent / RECORDS / f"{shard.name}.json"


def _read_json(path: Path) -> Facts | None:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def state_of_files(paths: Iterable[Path]) -> str:
    """Tells files of these sizes and times from the same files after a change."""
    state = hashlib.sha256()
    for path in paths:
        try:
            known = path.stat()
            state.update(f"{known.st_size} {known.st_mtime_ns}\n".encode())
        except OSError:
            state.update(b"unreadable\n")
    return state.hexdigest()
