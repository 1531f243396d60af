"""Atomic checkpoints in safetensors and JSON: write a temporary folder, fsync, rename, then delete old ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fingerprint_accel.durable import file_sha256, fsync_path, write_json
from fingerprint_accel.errors import UserError
from fingerprint_accel.models.saved_model import (
    EMA_FILE,
    FILES,
    checkpoint_names,
    damage,
    read_pointer,
    shapes_in,
    todays_names,
)
from fingerprint_accel.training.fsdp import shard_like

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        model: State dict of the network.
        training: All other tensors: heads and centres (`loss.`), optimizer (`optimizer.`), counters (`run.`).
        state: Numbers and strings: step, position, seed, best EER, gradient scaler, facts about the dataset.
        ema: State dict of the moving average of the network, if one is kept.
    """

    model: dict[str, torch.Tensor]
    training: dict[str, torch.Tensor]
    state: dict[str, Any]
    ema: dict[str, torch.Tensor] | None = None


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> str:
    """Write `run/checkpoints/step-XXXXXXXX`, point `latest.json` to it, and return its name.

    A kill at any moment leaves the previous checkpoints intact. Files are read back before the checkpoint is renamed to
    its final name.

    Raises:
        UserError: If the files on disk differ from what was written.
    """
    folder = run / "checkpoints"
    name = f"step-{checkpoint.state['step']:08d}"
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files = {"model.safetensors": checkpoint.model, "training_state.safetensors": checkpoint.training}
    if checkpoint.ema is not None:
        files[EMA_FILE] = checkpoint.ema
    checksums = {}
    for file_name, tensors in files.items():
        save_file(_plain(tensors), temporary / file_name, metadata={"format": "pt"})
        fsync_path(temporary / file_name)
        _check_written(temporary / file_name, tensors)
        checksums[file_name] = file_sha256(temporary / file_name)
    state = {"format_version": FORMAT_VERSION, **checkpoint.state, "sha256": checksums}
    (temporary / "state.json").write_text(json.dumps(state, indent=2))
    fsync_path(temporary / "state.json")
    fsync_path(temporary)
    if (folder / name).exists():  # from a run that was then resumed from an earlier step
        (folder / name).replace(folder / f".{name}.old.tmp")
    temporary.replace(folder / name)
    fsync_path(folder)
    write_json(run / "latest.json", {"checkpoint": name, "step": checkpoint.state["step"]})
    shutil.rmtree(folder / f".{name}.old.tmp", ignore_errors=True)
    return name


def _check_written(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Compare names and shapes of the tensors in a file with those written. Opening it checks its length."""
    try:
        there = shapes_in(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: cannot be read back ({error}); check the disk, and end other runs in this folder"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if there != expected:
        raise UserError(
            f"{file}: contains {len(there)} tensors instead of the {len(expected)} that were written; end the other "
            "process that writes to this run folder"
        )


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in main memory, each in its own storage. Only others are copied, because heads can be large."""
    found: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        shared = storage.data_ptr() in storages or storage.nbytes() != plain.nbytes
        storages.add(storage.data_ptr())
        found[name] = plain.clone() if shared else plain
    return found


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, and leftovers of interrupted saves."""
    folder = run / "checkpoints"
    best = read_pointer(run / "best.json")
    names = checkpoint_names(run)
    for name in names[:-keep]:
        if name != best:
            (folder / name).replace(folder / f".{name}.tmp")  # so that a kill leaves no half-deleted checkpoint
    if folder.is_dir():
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def set_aside_damaged(run: Path, newest: Path) -> list[str]:
    """Rename damaged checkpoints, because they would count when old checkpoints are deleted.

    Args:
        run: The run folder.
        newest: The newest complete checkpoint; all newer ones are damaged.

    Returns:
        A line to print for each damaged checkpoint.
    """
    lines = []
    for name in checkpoint_names(run):
        if name > newest.name:
            folder = run / "checkpoints" / name
            lines.append(f"{folder}: {damage(folder)}; renamed to damaged-{name}, continuing from {newest.name}")
            aside = folder.with_name(f"damaged-{name}")
            shutil.rmtree(aside, ignore_errors=True)  # from earlier damage at the same step
            folder.rename(aside)
            if read_pointer(run / "best.json") == name:
                (run / "best.json").unlink()
    return lines


def load_checkpoint(folder: Path, rows: Mapping[str, slice] | None = None) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: `RUN/checkpoints/step-XXXXXXXX`.
        rows: Rows to read of some parameters, by name, and of their optimizer state. All others are read whole.

    Raises:
        UserError: If this is not a checkpoint folder, a file is damaged, or the format has another version.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a checkpoint folder (no {name})")
    try:
        state = json.loads((folder / "state.json").read_text())
        model = todays_names(load_file(folder / "model.safetensors"))
        training = todays_names(_load_rows(folder / "training_state.safetensors", rows or {}))
        ema = todays_names(load_file(folder / EMA_FILE)) if (folder / EMA_FILE).is_file() else None
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder}: damaged checkpoint ({error}); --resume auto uses the newest complete one"
        ) from error
    if state.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder}: checkpoint has format {state.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "resume it with the version that wrote it"
        )
    return Checkpoint(model, training, state, ema)


def _load_rows(path: Path, rows: Mapping[str, slice]) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, and only some rows of the parameters in `rows`."""
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (not a dictionary)
            wanted, stored = rows.get(parameter_of(key)), file.get_slice(key)
            whole = wanted is None or not stored.get_shape()  # optimizer state may be a scalar
            tensors[key] = file.get_tensor(key) if whole else stored[wanted]
    return tensors


def parameter_of(key: str) -> str:
    """Return the name of the parameter to which a tensor of a checkpoint belongs."""
    return key.removeprefix("optimizer.").rpartition(".")[0] if key.startswith("optimizer.") else key


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """Return the state of an optimizer as `optimizer.<parameter>.<entry>`.

    Args:
        optimizer: The optimizer.
        names: Names of the parameters by id(). Parameters without a name are left out.
    """
    return {
        f"optimizer.{names[id(parameter)]}.{entry}": torch.as_tensor(value)
        for parameter, entries in optimizer.state.items()
        if id(parameter) in names
        for entry, value in entries.items()
        if value is not None
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[int, str], tensors: dict[str, torch.Tensor]
) -> None:
    """Restore the state that `optimizer_tensors` has returned."""
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            parameter, _, entry = key.removeprefix("optimizer.").rpartition(".")
            by_name.setdefault(parameter, {})[entry] = tensor
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entries = by_name.get(names.get(id(parameter), ""))
            if entries is not None:
                optimizer.state[parameter] = {
                    entry: _like(parameter, value) if value.shape == parameter.shape else value.to(parameter.device)
                    for entry, value in entries.items()
                }


def _like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return `value` in the memory layout of `parameter`, which fused optimizers need."""
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(shard_like(value, parameter))
