"""Run the jobs of the commands `import`, `merge`, `synth` and `extract`: write a folder of shards in parallel.

A shard is a file with a part of the prints. Each shard is written to a staging folder beside the output folder. When a
shard is complete, a JSON file with its metadata (such as its checksum) is written to a subfolder. When the metadata of
all shards exist, the staging folder is renamed to the output folder. A command that was killed and is run again keeps
the finished shards. The bytes of the output do not depend on the number of workers and machines, or on interruptions.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from fingerprint_accel.durable import errors_naming, fsync_path
from fingerprint_accel.errors import UserError, write_errors
from fingerprint_accel.executors import WORKER_KILLED, check_workers, worker_died
from fingerprint_accel.outputs import RECORDS, FolderKind, check_folder, exclusive_lock, put_in_place, recover
from fingerprint_accel.privacy import private_files, umask
from fingerprint_accel.staging import (
    ARGUMENTS,
    Facts,
    begin,
    delete_records,
    discard_drafts,
    drafts_of,
    make_shard,
    record_of,
    staging_of,
    stored_facts,
)

IN_FLIGHT = 256  # number of shards that are submitted to an executor at a time
MOST_DEATHS = 3  # number of times that the workers of one shard may die, and that workers may die without a shard
WITHOUT_SHARD = -1  # in place of the index of a shard


class Job(Protocol):
    """Description of a folder to write: its shards, and functions that write a shard and the metadata.

    Attributes:
        label: Text in front of the progress bar.
        kind: Kind of the output folder.
        pattern: Format string of shard names. It is formatted with the index of the shard and the total number of
            shards.
        arguments: All values that the bytes of the output depend on, as JSON, including versions of libraries.
        sizes: Number of prints in each shard.
        bytes_per_print: Approximate disk space of one print, in bytes.
    """

    label: str
    kind: FolderKind
    pattern: str
    arguments: dict[str, Any]
    sizes: list[int]
    bytes_per_print: float

    @property
    def names(self) -> list[str]:
        """File names of all shards."""
        return [self.pattern.format(shard, len(self.sizes)) for shard in range(len(self.sizes))]

    def task(self, shard: int) -> Callable[[Path], Facts]:
        """Return a picklable function that writes shard `shard` to a given path and returns the shard's metadata."""
        ...

    def is_current(self, shard: int, facts: Facts) -> bool:
        """Return whether a finished shard can be kept, because its input files have not changed.

        This method does not check `arguments`; `run` does.

        Args:
            shard: Index of the shard.
            facts: Metadata that the function of `task` returned when the shard was written.
        """
        return True

    def find_fault(self, shard: int, draft: Path) -> None:
        """Find out which input has killed the worker that wrote shard `shard`, so that `task` leaves it out.

        Args:
            shard: Index of the shard.
            draft: Path that was given to the function of `task`.

        Raises:
            UserError: If no input is at fault, or this kind of job cannot find it out.
        """
        raise UserError(WORKER_KILLED)

    def publish(self, folder: Path, facts: list[Facts]) -> None:
        """Write the metadata of a folder in which all shards are finished.

        Args:
            folder: Folder that contains the shards.
            facts: Metadata of each shard, with the checksum of the shard file added under the key `sha256`.
        """
        ...


@private_files()
def run(job: Job, out: Path, executor: Executor, overwrite: bool = False, progress: bool = True) -> int:
    """Write the missing shards of a job and publish its folder.

    Args:
        job: The job.
        out: Output folder.
        executor: Executor that writes the shards, see `executors.open_workers`.
        overwrite: Whether to replace `out`, if it is a folder of the same kind. An unfinished output that another
            command has left for `out` is deleted too.
        progress: Whether to show a progress bar.

    Returns:
        Number of prints in the shards that this call has written.

    Raises:
        UserError: If `out` may not be written (see `outputs.check_folder`), another command is writing it or (without
            `overwrite`) has left finished shards for it, the disk is too small, a file cannot be written, or a task has
            failed. Finished shards are kept if a file cannot be written, for example because the disk is full.
        KeyboardInterrupt: After Ctrl-C. The message states how many shards are finished.
    """
    staging = staging_of(job.arguments, out)
    with (
        write_errors(lambda: _goes_on(job, staging)),
        exclusive_lock(
            out.with_name(f".{out.name}.lock"),
            f"{out}: another command is writing to it; wait until it ends, or stop it",
        ),
    ):
        recover(out)
        if stored_facts(out / RECORDS / ARGUMENTS) == job.arguments:  # an earlier call was killed after publishing
            delete_records(out, job.names)
            shutil.rmtree(staging, ignore_errors=True)  # the previous folder at `out`
            return 0
        if job.kind.recognises(out):
            delete_records(out, job.names)
        check_folder(out, job.kind, overwrite)
        begin(staging, job.arguments, out, overwrite)
        facts: dict[int, Facts] = {}
        try:
            with errors_naming(staging):
                made = _make_missing(job, staging, executor, progress, facts)
                discard_drafts(staging)
                job.publish(staging, [facts[shard] for shard in range(len(job.sizes))])
                for file in [*staging.iterdir(), staging]:
                    fsync_path(file)
        except UserError:
            if len(facts) in (0, len(job.sizes)):  # there is nothing to continue from, or nothing to publish
                shutil.rmtree(staging, ignore_errors=True)
            raise
        except OSError:
            if not _finished(job, staging):
                shutil.rmtree(staging, ignore_errors=True)
            raise
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_kept(len(_finished(job, staging)), len(job.sizes))) from None
        with errors_naming(out):
            put_in_place(staging, out, job.kind)
            discard_drafts(out)  # a worker of a cluster that has lost its client may have begun a shard again
            delete_records(out, job.names)
    return made


def _make_missing(job: Job, staging: Path, executor: Executor, progress: bool, facts: dict[int, Facts]) -> int:
    """Write the missing shards of a job, and return the number of prints in them.

    The metadata of each finished shard is added to `facts`, a dictionary keyed by the index of the shard. `facts` is an
    argument, so that the caller has the metadata of the finished shards after an error too.
    """
    facts.update(_finished(job, staging))
    missing = [shard for shard in range(len(job.sizes)) if shard not in facts]
    if facts and progress:
        print(f"continuing: {len(facts)} of {len(job.sizes)} shards are finished", file=sys.stderr)
    total, to_make = sum(job.sizes), sum(job.sizes[shard] for shard in missing)
    needed, free = to_make * job.bytes_per_print if missing else 0, shutil.disk_usage(staging).free
    if needed > free:
        raise UserError(
            f"{staging.parent}: {needed / 1e9:.1f} GB needed, but only {free / 1e9:.1f} GB are free; free some space, "
            "or choose another disk"
        )
    with tqdm(total=total, initial=total - to_make, desc=job.label, unit="print", disable=not progress) as bar:
        for shard, of_shard in _made(job, staging, missing, executor):
            facts[shard] = of_shard
            bar.update(job.sizes[shard])
    return to_make


def _kept(finished: int, shards: int) -> str:
    """Return the message that is printed after Ctrl-C. It states how many of the shards are finished."""
    if not finished:
        return "nothing was saved yet: no shard is finished"
    return f"{finished} of {shards} shards are finished; run the same command again to continue"


def _goes_on(job: Job, staging: Path) -> str:
    """Return what to do after an error of the disk has been mended."""
    finished = len(_finished(job, staging))
    return _kept(finished, len(job.sizes)) if finished else "run the same command again"


def _finished(job: Job, staging: Path) -> dict[int, Facts]:
    """Return the metadata of the finished shards in a staging folder, keyed by shard index."""
    found = {}
    for shard, name in enumerate(job.names):
        facts = stored_facts(record_of(staging / name))
        if facts is not None and (staging / name).is_file() and job.is_current(shard, facts):
            found[shard] = facts
    return found


def _made(job: Job, staging: Path, shards: list[int], executor: Executor) -> Iterator[tuple[int, Facts]]:
    """Write shards with an executor, and yield the index and the metadata of each shard when it is finished.

    At most `IN_FLIGHT` shards are submitted to the executor at a time. If a worker process dies, the shards that the
    workers had begun are checked with `Job.find_fault`, and all unfinished shards are submitted again. A process can
    also die before it has begun a shard, or between two.
    """
    pending: dict[Future[Facts], int] = {}
    waiting, lost, names = deque(shards), list[int](), job.names
    deaths: Counter[int] = Counter()
    while waiting or pending:
        while waiting and len(pending) < IN_FLIGHT and not any(future.done() for future in pending):
            shard = waiting.popleft()
            path = (staging / names[shard]).absolute()  # a worker of a cluster may work in another folder
            pending[executor.submit(_make_privately, umask(), job.task(shard), path)] = shard
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            shard = pending.pop(future)
            try:
                facts = future.result()
            except Exception as error:
                if not worker_died(error):
                    raise
                lost.append(shard)
            else:
                yield shard, facts
        if lost and not pending:
            check_workers(executor)
            drafts = {shard: found for shard in lost if (found := drafts_of(staging, names[shard]))}
            deaths.update(drafts.keys() or [WITHOUT_SHARD])
            if max(deaths.values()) > MOST_DEATHS:
                raise UserError(WORKER_KILLED)
            for shard, found in drafts.items():
                job.find_fault(shard, max(found, key=lambda path: path.stat().st_mtime_ns))
                for draft in found:
                    draft.unlink(missing_ok=True)
            waiting.extendleft(reversed(lost))
            lost.clear()


def _make_privately(mask: int, task: Callable[[Path], Facts], path: Path) -> Facts:
    """Call `make_shard` in a worker with the umask of the command. The environment of the worker may state another."""
    with private_files(mask):
        return make_shard(task, path)
