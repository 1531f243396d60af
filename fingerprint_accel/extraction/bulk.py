"""Embeddings of a whole dataset: in one process or several, resumable, the same bytes either way.

The prints are cut into parts (`bulk_work.py`), which processes share out and write to a hidden folder beside the
output; the main process joins them once all are there (`bulk_result.py`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env

from fingerprint_accel.data.launch import ALONE, Launch, launched
from fingerprint_accel.data.part_folder import PartFolder, alone_at
from fingerprint_accel.extraction.bulk_result import ExtractionSummary, publish, summarise
from fingerprint_accel.extraction.bulk_work import Options, make_part, prepare_work
from fingerprint_accel.extraction.embeddings_folder import CONFIG, FOLDER
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.training.setup import use_all_cores

EVERYTHING = Options()


def extract_all(
    data: Path,
    out: Path,
    model: str = "small",
    ppi: int = 0,
    options: Options = EVERYTHING,
    overwrite: bool = False,
    progress: bool = True,
    launch: Launch = ALONE,
) -> ExtractionSummary | None:
    """Embeds every print of a dataset, or of a folder of images; goes on from what the same call has left.

    Args:
        data: dataset folder, or folder of images.
        out: folder to write.
        model: as of `FingerprintExtractor.from_pretrained`.
        ppi: of images, pixels per inch; a dataset knows its own.
        options: what is kept of a print.
        overwrite: replace `out` if it is a folder of embeddings, and parts that another call has left.
        progress: shows a progress bar.
        launch: the processes that share the work; each calls this, and `out` lies where all of them see it.

    Returns:
        The summary on the main process, None on others.

    Raises:
        UserError: anything the user can mend.
    """
    started = time.perf_counter()
    check_folder(out, FOLDER, inputs=[data, *([model] if Path(model).exists() else [])])
    device = _device(launch)
    use_all_cores(device.type, launch.size)
    work = prepare_work(data, model, ppi, options, device)
    total = len(work.prints.table)
    parts = PartFolder(
        out.with_name(f".{out.name}.parts"), work.arguments(data, ppi), -(-total // work.part_size), ".safetensors"
    )

    def begin() -> None:
        check_folder(out, FOLDER, overwrite)
        parts.begin(overwrite)

    with alone_at(out, launch):
        finished = launch.first(lambda: _finished(out, parts))
        missing = [] if finished else parts.shared(launch, begin, progress)
        to_make = sum(len(work.rows(part)) for part in missing)
        with launch.counting("extracting", total, total - to_make, progress) as made:
            for part in launch.share(missing):
                make_part(work, parts, part, made)
            if launch.main and not finished:
                launch.wait_for_all(parts.missing, parts.folder, lambda: made(0))
        if not launch.main:
            return None
        if not finished:
            publish(work, parts, out)
        parts.remove()
    return summarise(work, out, to_make, time.perf_counter() - started)


def _device(launch: Launch) -> torch.device:
    """A GPU of its own for each process of a machine, or the CPU, as accelerate decides."""
    if not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    device = torch.device("cuda", launch.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _finished(out: Path, parts: PartFolder) -> bool:
    """Whether a run of the same arguments was cut off at the very end: all there, parts not yet deleted."""
    try:
        return parts.stored() == parts.arguments == json.loads((out / CONFIG).read_text())["arguments"]
    except (OSError, ValueError, KeyError):
        return False


def extract_command(data: Path, model: str, out: Path, ppi: int, options: Options, overwrite: bool) -> None:
    """Extracts, and prints the summary on the main process.

    Raises:
        UserError: as of `extract_all`.
    """
    with launched() as launch:
        summary = extract_all(data, out, model, ppi, options, overwrite, launch=launch)
    if summary is not None:
        summary.show()
