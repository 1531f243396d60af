"""Checkpoints on disk: which there are, which is the best, and whether one is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open

from fingerprint_accel.errors import UserError

T = TypeVar("T")
EMA_FILE = "ema.safetensors"
RENAMED = {  # parts of the names of tensors before 0.1.0
    "localization.localization.": "alignment.features.",
    "localization.fc_loc.": "alignment.head.",
}
FILES = ("state.json", "model.safetensors", "training_state.safetensors")
_NAME = re.compile(r"step-(\d{8})")


def checkpoint_names(run: Path) -> list[str]:
    """Names of the complete checkpoints of a run folder, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if _NAME.fullmatch(entry.name))


def read_pointer(path: Path) -> str | None:
    """The checkpoint that `best.json` or `latest.json` names, or None without such a file."""
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text())["checkpoint"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged; delete it to fall back on the newest checkpoint") from error


def find_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run folder that is not damaged, or None. Its name, not `latest.json`, decides: the
    rename that completes a checkpoint comes before the pointer."""
    folders = (run / "checkpoints" / name for name in reversed(checkpoint_names(run)))
    return next((folder for folder in folders if damage(folder) is None), None)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, as far as names, lengths and headers of its files tell; None if nothing.

    A number that has changed inside a tensor is not found.
    """
    name = next((name for name in FILES if not (folder / name).is_file()), None)
    if name is not None:
        return f"no {name}"
    try:
        step = json.loads((folder / "state.json").read_text())["step"]
        shapes = shapes_in(folder / "model.safetensors")
        shapes_in(folder / "training_state.safetensors")
        if (folder / EMA_FILE).is_file():
            shapes_in(folder / EMA_FILE)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"damaged: {str(error)[:80] or type(error).__name__}"
    if not shapes:
        return "model.safetensors holds no tensor"
    return None if folder.name == f"step-{step:08d}" else f"state.json is of step {step}"


def todays_names(tensors: dict[str, T]) -> dict[str, T]:
    """Tensors by name, as an earlier version may have stored them -> the same by today's names."""
    for old, new in RENAMED.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file by name, from its header."""
    with safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
