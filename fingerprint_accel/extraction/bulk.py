"""Embeddings of a whole dataset: in one process or several, resumable, the same bytes either way.

The prints are cut into parts (`bulk_work.py`), which processes share out and write to a hidden folder beside the
output; the main process joins them once all are there (`bulk_result.py`).
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm

from fingerprint_accel.data.part_folder import PartFolder
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.bulk_result import ExtractionSummary, publish, summarise
from fingerprint_accel.extraction.bulk_work import Options, Work, make_part, prepare_work
from fingerprint_accel.extraction.embeddings_folder import CONFIG, FAILED
from fingerprint_accel.training.setup import process_state, use_all_cores

LOOK_AGAIN = 0.2  # seconds, while other processes finish
EVERYTHING = Options()


def extract_all(
    data: Path,
    out: Path,
    model: str = "small",
    ppi: int = 0,
    options: Options = EVERYTHING,
    overwrite: bool = False,
    progress: bool = True,
) -> ExtractionSummary | None:
    """Embeds every print of a dataset, or of a folder of images; goes on from what the same call has left.

    Every process of a launch calls it. `out` must lie where all of them see it.

    Args:
        data: dataset folder, or folder of images.
        out: folder to write.
        model: as of `FingerprintExtractor.from_pretrained`.
        ppi: of images, pixels per inch; a dataset knows its own.
        options: what is kept of a print.
        overwrite: replace `out`, and parts that another call has left.
        progress: shows a progress bar.

    Returns:
        The summary on the main process, None on others.

    Raises:
        UserError: anything the user can mend.
    """
    started = time.perf_counter()
    state = process_state()
    use_all_cores(state)
    device = state.device if state.device.type == "cuda" else torch.device("cpu")
    work = prepare_work(data, model, ppi, options, device)
    count = -(-len(work.prints.table) // work.part_size)
    parts = PartFolder(out.with_name(f".{out.name}.parts"), work.arguments(data, ppi), count, ".safetensors")
    finished = False
    if state.is_main_process:
        finished = _finished(out, parts)
        if out.exists() and not (overwrite or finished):
            raise UserError(f"{out}: exists already; choose another folder, or add --overwrite")
        parts.begin(overwrite)
        parts.discard_unfinished()
    state.wait_for_everyone()
    missing = parts.missing()
    state.wait_for_everyone()  # nobody makes a part before all know what is missing
    _make(work, parts, missing, state, progress)
    if not state.is_main_process:
        return None
    if not finished:
        publish(work, parts, out)
    parts.remove()
    made = sum(len(work.rows(part)) for part in missing)
    return summarise(work, out, made, time.perf_counter() - started)


def _finished(out: Path, parts: PartFolder) -> bool:
    """Whether a run of the same arguments was cut off at the very end: all there, parts not yet deleted."""
    try:
        return parts.stored() == parts.arguments == json.loads((out / CONFIG).read_text())["arguments"]
    except (OSError, ValueError, KeyError):
        return False


def _make(work: Work, parts: PartFolder, missing: list[int], state: PartialState, progress: bool) -> None:
    """Makes this process's share of the missing parts; the main process waits for the others' as well."""
    total = len(work.prints.table)
    lock = threading.Lock()

    def to_make() -> int:
        return sum(len(work.rows(part)) for part in parts.missing())

    shown = progress and state.is_main_process
    with tqdm(total=total, initial=total - to_make(), desc="extracting", unit="print", disable=not shown) as bar:

        def done(prints: int) -> None:
            with lock:
                bar.update(prints)

        for part in missing[state.process_index :: state.num_processes]:
            make_part(work, parts, part, done)
            if shown and state.num_processes > 1:
                bar.update(max(0, total - to_make() - bar.n))
        while state.is_main_process and (left := to_make()):
            bar.update(max(0, total - left - bar.n))
            time.sleep(LOOK_AGAIN)
        bar.update(total - bar.n)


def extract_command(data: Path, model: str, out: Path, ppi: int, options: Options, overwrite: bool) -> None:
    """Extracts, and prints the summary on the main process.

    Raises:
        UserError: as of `extract_all`.
    """
    summary = extract_all(data, out, model, ppi, options, overwrite)
    if summary is not None:
        print(summary.table())
        if summary.failed:
            print(f"prints that failed and reasons: {out / FAILED}")
    PartialState().destroy_process_group()
