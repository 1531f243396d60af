"""Import image files from a folder or csv into a dataset folder, with parallel workers. Interrupted imports resume."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fingerprint_accel import __version__
from fingerprint_accel.data.captures import join_name
from fingerprint_accel.data.dataset_card import origin_of, write_dataset_card
from fingerprint_accel.data.encoding import check_encoding
from fingerprint_accel.data.import_shard import import_files, read_place, state_of, why_fatal
from fingerprint_accel.data.import_summary import ImportSummary, kind_of
from fingerprint_accel.data.listing import finger_codes, list_files
from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.pairing import Pairing
from fingerprint_accel.data.plausibility import about_ridges
from fingerprint_accel.data.print_file import IMAGE_PPI, Enhance, ImageFile, Reading, Target
from fingerprint_accel.data.print_info import HIGHEST_PPI, LARGEST_CANVAS, LOWEST_PPI
from fingerprint_accel.data.shard_writing import (
    DATASET,
    MINUTIAE_BYTES,
    NOTES,
    REJECTED,
    SHARD_NAMES,
    publish_dataset,
    rows_per_shard,
    seal_dataset,
)
from fingerprint_accel.durable import write_file
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.executors import open_workers
from fingerprint_accel.jobs import Job, run
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.staging import Facts


def import_dataset(
    source: Path,
    out: Path,
    layout: str = "",
    ppi: int = IMAGE_PPI,
    *,
    names: str = "",
    key: Sequence[str] = (),
    reading: Reading | None = None,
    find_minutiae: str = "",
    nfiq2: bool = False,
    dataset_ppi: int = 300,
    canvas: int = 320,
    minutiae: Path | None = None,
    encoding: str = "raw",
    enhance: Enhance | None = None,
    workers: int = 0,
    cluster: str = "",
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> ImportSummary:
    """Import image files into a dataset folder.

    If a call was interrupted, a call with the same arguments continues it. The result does not depend on the number of
    workers or on interruptions.

    Args:
        source: folder of images, or a csv file if `layout` is "csv".
        out: dataset folder to create.
        layout: convention of the file names, one of `layouts.NAMES`.
        ppi: resolution of the images, pixels per inch. A resolution in a file name, csv column or image record takes
            precedence.
        names: regular expression for file names, which replaces the layout (see `layouts.NamePattern`).
        key: identifiers of the ANSI/NIST fields that identify the subject, for example `2.018`.
        reading: options for reading the images. The attribute `ppi` is replaced by the argument `ppi`.
        find_minutiae: "mindtct" to find minutiae in prints without a minutiae file; empty for none.
        nfiq2: whether to store the NFIQ 2 score of every print.
        dataset_ppi: resolution of the dataset, pixels per inch.
        canvas: side of a print in the dataset, pixels.
        minutiae: folder of minutiae files. Their relative paths must be those of the images, except for the suffix. A
            file directly in the folder may also have the name of an image, if no other image has this name. By default,
            minutiae files lie beside the images.
        encoding: encoding of the images in the dataset, "raw" or "lz4".
        enhance: function that enhances the ridges of each canvas (the square image of a print in the dataset), usually
            `preprocess.enhance.enhance_canvas`; None for no enhancement.
        workers: number of CPU processes; 0 for one per core, 1 for the calling process. With several processes a script
            needs `if __name__ == "__main__":` around the call.
        cluster: address or file of a Dask scheduler. If given, its workers are used instead of CPU processes.
        seed: random seed of the order in which prints are written.
        overwrite: replace `out` if it is a dataset folder, and discard unfinished shards of a call with different
            arguments.
        progress: show a progress bar.

    Raises:
        UserError: if an argument is invalid, there is nothing to import, no image could be used, the disk has too
            little space, `out` must not be written, or there are unfinished shards of a call with
            different arguments.
    """
    started = time.perf_counter()
    check_folder(out, DATASET, inputs=[source, *([minutiae] if minutiae else [])])
    require(50 <= ppi <= 5000, f"--ppi {ppi}: must lie between 50 and 5000")
    check_canvas("--dataset-ppi", dataset_ppi, canvas)
    require(minutiae is None or minutiae.is_dir(), f"--minutiae {minutiae}: no such folder")
    check_encoding(encoding)
    if find_minutiae or nfiq2:
        from fingerprint_accel.data.nbis import import_nbis

        import_nbis()  # raises an error before the import starts if the package is not installed
    reading = dataclasses.replace(reading or Reading(), ppi=ppi)
    target = Target(dataset_ppi, canvas, enhance, find_minutiae, nfiq2)
    job = ImportJob(source, layout, names, key, reading, minutiae, target, encoding, seed)
    with open_workers(workers, cluster) as team:
        run(job, out, team.executor, overwrite, progress)
    return ImportSummary.of(out, time.perf_counter() - started)


class ImportJob(Job):
    """Job that imports images and writes them to shards, the files of a dataset.

    The arguments are those of `import_dataset`, which checks them. `target` holds the options for the prints in the
    dataset.
    """

    label, kind, pattern = "importing", DATASET, SHARD_NAMES

    def __init__(
        self,
        source: Path,
        layout: str,
        names: str,
        key: Sequence[str],
        reading: Reading,
        minutiae: Path | None,
        target: Target,
        encoding: str,
        seed: int,
    ) -> None:
        self.source, self.target, self.encoding = source, target, encoding
        self.listing = list_files(source, layout, names=names, key=key, raw_size=reading.raw_size)
        self._pairing = Pairing(self.listing, minutiae)
        self.reading = self._pairing.with_xyt_kind(reading)
        digest = hashlib.sha256()
        for batch in self.listing.table.to_batches():
            digest.update(batch.serialize())
        rows = len(self.listing.table)
        self.arguments = {
            "source": str(source.resolve()),
            "layout": names or layout,
            "key": list(key),
            "prints": rows,
            "names": digest.hexdigest()[:16],
            **dataclasses.asdict(self.reading),
            "find_minutiae": target.find_minutiae,
            "nfiq2": target.nfiq2,
            "dataset_ppi": target.ppi,
            "canvas": target.canvas,
            "minutiae": str(minutiae.resolve()) if minutiae else None,
            "encoding": encoding,
            "enhance": target.enhance is not None,
            "seed": seed,
            **versions(target.enhance is not None),
            "nbis-py": version("nbis-py") if target.find_minutiae or target.nfiq2 else "",
        }
        # the size of lz4 images is not known in advance
        self.bytes_per_print = target.canvas**2 + MINUTIAE_BYTES if encoding == "raw" else 0
        order = _shuffled(self.listing.table, seed)  # fingers are spread over shards
        per_shard = rows_per_shard(rows, target.canvas)
        self._rows = np.split(order, range(per_shard, rows, per_shard))  # rows of the listing in each shard
        self.sizes = [len(of_shard) for of_shard in self._rows]
        self._fingers = finger_codes(self.listing.table)
        self._table = self.listing.table.combine_chunks()
        self._fatal: dict[str, str] = {}  # reason of each print that has killed a worker, by its name

    def task(self, shard: int) -> Callable[[Path], Facts]:
        """Return a function that imports the prints of one shard, see `Job.task`."""
        files = self._files(shard)
        fatal = {file.name: self._fatal[file.name] for file in files if file.name in self._fatal}
        return functools.partial(import_files, files, fatal, self.reading, self.target, self.encoding)

    def find_fault(self, shard: int, draft: Path) -> None:
        """Read the print alone that a worker read when it died. If this kills a process too, leave the print out.

        See `Job.find_fault`.
        """
        files, place = self._files(shard), read_place(draft)
        if place is None:
            return  # the worker was killed before it read the first print, or while it wrote the shard
        reason = why_fatal(files[place], self.reading, self.target)
        if reason:
            self._fatal[files[place].name] = reason

    def _files(self, shard: int) -> list[ImageFile]:
        numbers = self._rows[shard]
        return [
            ImageFile(
                self.listing.root / row["path"],
                row["ppi"],
                *self._pairing.of(number),
                row["record"],
                row["cut"],
                row["slap"],
                row["position"],
                join_name(row["path"], row["record"], row["cut"]),
                row["finger_key"],
                row["impression"],
                int(self._fingers[number]),
            )
            for number, row in zip(numbers.tolist(), self._table.take(pa.array(numbers)).to_pylist(), strict=True)
        ]

    def is_current(self, shard: int, facts: Facts) -> bool:
        """Return whether the files of the prints in a finished shard are unchanged, see `Job.is_current`."""
        return bool(facts["files"] == state_of(self._files(shard)))

    def publish(self, folder: Path, facts: list[Facts]) -> None:
        """Write the description of the dataset, the lists of rejected files and notes, and the dataset card.

        See `Job.publish`.
        """
        rejected, listed = [*self.listing.rejected, *self._pairing.unused], set()
        for path, reason, of_minutiae in itertools.chain.from_iterable(known["rejected"] for known in facts):
            if not of_minutiae or path not in listed:  # one minutiae file may belong to several prints
                rejected.append((path, reason))
                listed.add(path)
        if not any(known["rows"] for known in facts):
            common = Counter(kind_of(reason) for _, reason in rejected).most_common(3)
            alone = len(common) == 1  # a single kind of reason is shown in full, with its remedy
            reasons = "; ".join(f"{number} x {rejected[0][1] if alone else reason}" for reason, number in common)
            raise UserError(f"{self.source}: none of {len(self._table)} images could be used ({reasons})")
        lines = (json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in rejected)
        write_file(folder / REJECTED, "".join(lines))
        notes = [
            *self._pairing.notes(self.reading),
            *about_ridges(list(itertools.chain.from_iterable(known["periods"] for known in facts)), self.reading.ppi),
        ]
        notes += itertools.chain.from_iterable(known["notes"] for known in facts)
        if notes:
            lines = (json.dumps({"path": path, "note": note}) + "\n" for path, note in notes)
            write_file(folder / NOTES, "".join(lines))
        target = self.target
        enhanced = target.enhance is not None
        publish_dataset(
            folder, self.names, facts, target.ppi, target.canvas, self.encoding, enhanced, nfiq2=target.nfiq2
        )
        hidden = ("source", "prints", "names")  # folders of the user, and entries that are no options
        options = {name: value for name, value in self.arguments.items() if name not in hidden}
        options["minutiae"] = Path(options["minutiae"]).name if options["minutiae"] else None
        origin = origin_of("import", options, [*versions(enhanced), "nbis-py"], [self.source.resolve().name])
        write_dataset_card(folder, origin, nfiq2=target.nfiq2)
        seal_dataset(folder)


def _shuffled(table: pa.Table, seed: int) -> np.ndarray:
    """Return the row indices of a listing with N rows in random order, as an (N,) int64 array.

    The fingers of a slap (an image of several fingers) stay together, so that the slap is decoded only once.
    """
    cut, record = (table[name].to_numpy() for name in ("cut", "record"))
    path = table["path"].combine_chunks().dictionary_encode().indices.to_numpy()
    follows = np.zeros(len(table), bool)
    follows[1:] = (cut[1:] > 0) & (record[1:] == record[:-1]) & (path[1:] == path[:-1])
    starts = np.flatnonzero(~follows)
    order = permutation(len(starts), seed, epoch=0, level=2)
    if len(starts) == len(table):
        return order
    groups = np.split(np.arange(len(table)), starts[1:])
    return np.concatenate([groups[number] for number in order.tolist()])


def versions(enhance: bool) -> dict[str, Any]:
    """Return the versions of all packages that affect the bytes of imported prints, as a dictionary keyed by package.

    Args:
        enhance: whether ridges are enhanced, which needs torch.
    """
    return {
        "fingerprint_accel": __version__,
        "pyarrow": version("pyarrow"),
        "pillow": version("pillow"),
        "torch": version("torch") if enhance else "",
    }


def check_canvas(option: str, ppi: int, canvas: int) -> None:
    """Check the resolution and the canvas size of a dataset.

    Args:
        option: name of the resolution option, for the error message.
        ppi: resolution, pixels per inch.
        canvas: side of the canvas, pixels.

    Raises:
        UserError: if the resolution or the canvas size is out of range.
    """
    require(LOWEST_PPI <= ppi <= HIGHEST_PPI, f"{option} {ppi}: must lie between {LOWEST_PPI} and {HIGHEST_PPI}")
    require(64 <= canvas <= LARGEST_CANVAS, f"--canvas {canvas}: must lie between 64 and {LARGEST_CANVAS}")
