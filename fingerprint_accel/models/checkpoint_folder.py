"""Find intact checkpoints in a run folder, and read their descriptions.

A checkpoint is a folder with tensors in safetensors files and a description, `state.json`. The description contains the
SHA-256 checksums of the other files, and its own checksum.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

from fingerprint_accel.durable import file_sha256
from fingerprint_accel.errors import UserError
from fingerprint_accel.tensor_files import read_header
from fingerprint_accel.untrusted import DAMAGED, Fields, parse_json, read_bytes, read_json, reason_of

T = TypeVar("T")
STATE, WEIGHTS, TRAINING, AVERAGE = "state.json", "model.safetensors", "training_state.safetensors", "ema.safetensors"
MOST_STATE = 2**22  # bytes; the description of a run with 1,000 processes has about 1 MB
MOST_STEPS = 10**12
FORMAT_VERSION = 1
RENAMED = {  # parts of tensor names in files from before version 0.1.0, and their current names
    "localization.localization.": "alignment.features.",
    "localization.fc_loc.": "alignment.head.",
}
_NAME = re.compile(r"step-(\d{8,12})")
_OTHER = "--resume auto uses the newest intact checkpoint"


def todays_names(tensors: dict[str, T]) -> dict[str, T]:
    """Return all tensors keyed by current names, replacing names that earlier versions of the package used."""
    for old, new in RENAMED.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def name_of_step(step: int) -> str:
    """Return the name of the folder of the checkpoint that is saved after a step."""
    return f"step-{step:08d}"


def checkpoint_names(run: Path) -> list[str]:
    """Return the names of the complete checkpoints of a run folder, oldest first.

    A checkpoint folder gets this name when all its files are written. They may have been damaged later, see `damage`.
    """
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    found = ((int(match[1]), entry.name) for entry in folder.iterdir() if (match := _NAME.fullmatch(entry.name)))
    return [name for _, name in sorted(found)]


def read_pointer(path: Path) -> str | None:
    """Read the name of a checkpoint from `path`, which is `best.json` or `latest.json` of a run.

    If the file does not exist, the result is None.

    Raises:
        UserError: If the file is damaged.
    """
    remedy = "delete it to use the newest checkpoint"
    try:
        fields = Fields(read_json(path, remedy, MOST_STATE), path, remedy)
    except FileNotFoundError:
        return None
    name = fields.text("checkpoint")
    match = _NAME.fullmatch(name)
    step = int(match[1]) if match else -1
    if name != name_of_step(step) or fields.integer("step", 0, MOST_STEPS, default=step) != step:
        raise UserError(f"{path}: damaged (names {name[:40]!r}); {remedy}")
    return name


def read_state(folder: Path) -> Fields:
    """Read the description of a checkpoint.

    Raises:
        UserError: If `folder` is not a checkpoint, or its description is damaged or of an unknown format.
    """
    try:
        fields = Fields(read_json(folder / STATE, _OTHER, MOST_STATE), folder / STATE, _OTHER)
    except FileNotFoundError:
        raise UserError(f"{folder}: not a checkpoint folder (no {STATE})") from None
    version = fields.values.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder}: checkpoint has format {str(version)[:40]}, this version reads {FORMAT_VERSION}; "
            "resume it with the version that wrote it"
        )
    return fields


def weights_file(folder: Path, digests: dict[str, str]) -> str:
    """Return the name of the file with the weights to use: their moving average if it was stored.

    Args:
        folder: The checkpoint.
        digests: Checksums of its files by name. Checkpoints of early versions have none.
    """
    stored = AVERAGE in digests if digests else (folder / AVERAGE).is_file()
    return AVERAGE if stored else WEIGHTS


def find_checkpoint(run: Path, weights_only: bool = False) -> Path | None:
    """Return the newest intact checkpoint of a run folder, or None.

    The names of the folders determine the newest checkpoint, not `latest.json`, which is written after the folder gets
    its name.

    Args:
        run: Run folder.
        weights_only: Whether only the weights must be intact.
    """
    folders = (run / "checkpoints" / name for name in reversed(checkpoint_names(run)))
    return next((folder for folder in folders if damage(folder, weights_only) is None), None)


def damage(folder: Path, weights_only: bool = False) -> str | None:
    """Return a description of what is wrong with the files of a checkpoint, or None if they are intact.

    The function compares all files with their checksums. A gigabyte takes about half a second.

    Args:
        folder: Checkpoint folder.
        weights_only: Whether to check only the description and the weights.
    """
    missing = next((name for name in (STATE, WEIGHTS, TRAINING) if not (folder / name).is_file()), None)
    if missing is not None and not (weights_only and missing == TRAINING):
        return f"no {missing}"
    try:
        state = Fields(parse_json(read_bytes(folder / STATE, MOST_STATE)), STATE, "")
        step = state.integer("step", 0, MOST_STEPS)
        digests = state.digests("sha256", "|".join(map(re.escape, (WEIGHTS, TRAINING, AVERAGE))))
        average = weights_file(folder, digests) == AVERAGE
        needed = [WEIGHTS, TRAINING, *([AVERAGE] if average else [])]
        if weights_only:
            needed = [needed[-1] if average else WEIGHTS]
        headers = {name: read_header(folder / name) for name in needed}  # bounds the size before the file is read
        changed = [name for name in needed if name in digests and file_sha256(folder / name) != digests[name]]
    except (OSError, *DAMAGED) as error:
        return f"damaged: {reason_of(error)}"
    if not headers.get(WEIGHTS, True):
        return f"{WEIGHTS} holds no tensor"
    if folder.name != name_of_step(step) and _NAME.fullmatch(folder.name):
        return f"{STATE} is of step {step}"
    missing = next((name for name in needed if digests and name not in digests), None)
    if missing is not None:
        return f"damaged: {STATE} has no checksum of {missing}"
    return f"damaged: {changed[0]} differs from its sha256" if changed else None
