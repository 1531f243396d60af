"""Write the folder of an evaluation: all files or none."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fingerprint_accel.durable import fsync_path, json_text, write_file
from fingerprint_accel.errors import write_errors
from fingerprint_accel.outputs import FolderKind, check_folder, exclusive_lock, json_with
from fingerprint_accel.privacy import private_files

METRICS = "metrics.json"
PICTURES = ("det", "roc", "cmc", "scores", "samples", "training", "sweep", "before_after", "recovered_pair")
FOLDER = FolderKind(
    "an evaluation folder",
    json_with(METRICS, "protocol", "eer", "definitions"),
    rf"metrics\.json|report\.html|({'|'.join(PICTURES)})\.png",
    whole=False,
)


@private_files()
def write_evaluation(out: Path, files: Mapping[str, bytes], values: dict[str, Any], overwrite: bool) -> None:
    """Write the files of an evaluation, and `metrics.json` with their SHA-256 checksums.

    All files are first written beside `out`. If `out` already contains an evaluation, its files are then replaced one
    by one, `metrics.json` last. If the process is killed in this moment, the checksums differ.

    Args:
        out: folder to write.
        files: contents of all files but `metrics.json`, by name.
        values: content of `metrics.json`. NaN and infinity are written as null.
        overwrite: whether to replace an existing evaluation in `out`.

    Raises:
        UserError: if `out` exists and must not be replaced, or a file cannot be written.
    """
    check_folder(out, FOLDER, overwrite)  # hours may have passed since the first check
    lock, staged = out.with_name(f".{out.name}.lock"), out.with_name(f".{out.name}.partial")
    with write_errors(), exclusive_lock(lock, f"{out}: another evaluation is writing to it; wait until it ends"):
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        try:
            digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            described = json_text({**_finite(values), "sha256": digests}).encode()
            contents = {**files, METRICS: described}
            for name, content in contents.items():
                write_file(staged / name, content)
            _put_in_place(staged, out, list(contents))
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _put_in_place(staged: Path, out: Path, names: list[str]) -> None:
    """Move the files of an evaluation to `out`, and delete the other files of an evaluation there."""
    if not out.exists():
        staged.rename(out)
    else:
        for name in [f"{picture}.png" for picture in PICTURES]:
            if name not in names:
                (out / name).unlink(missing_ok=True)
        for name in names:
            (staged / name).replace(out / name)
        fsync_path(out)
    fsync_path(out.parent)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None in nested dictionaries and lists."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
