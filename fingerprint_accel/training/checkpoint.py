"""Checkpoints that are whole or absent: temporary folder, fsync, rename, then prune. safetensors and JSON only."""

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
    """One saved moment of training.

    Attributes:
        model: state dict of the network.
        training: every other tensor: heads and centres (`loss.`), optimizer (`optimizer.`), counters (`run.`).
        state: numbers and words: step, position, seed, best EER, gradient scaler, dataset facts.
        ema: state dict of the moving average of the network, if one is kept.
    """

    model: dict[str, torch.Tensor]
    training: dict[str, torch.Tensor]
    state: dict[str, Any]
    ema: dict[str, torch.Tensor] | None = None


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> str:
    """Writes `run/checkpoints/step-XXXXXXXX` and points `latest.json` at it; returns its name.

    A process killed at any moment leaves the previous checkpoints as they were. Files are read back before they count.

    Raises:
        UserError: what was written is not what is there.
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
    if (folder / name).exists():  # the same step, saved by a run that was then resumed from an earlier one
        (folder / name).replace(folder / f".{name}.old.tmp")
    temporary.replace(folder / name)
    fsync_path(folder)
    write_json(run / "latest.json", {"checkpoint": name, "step": checkpoint.state["step"]})
    shutil.rmtree(folder / f".{name}.old.tmp", ignore_errors=True)
    return name


def _check_written(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Compares names and shapes in a file with what was to be written; opening it compares its length."""
    try:
        there = shapes_in(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read back ({error}); the disk or another process changed it") from error
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if there != expected:
        raise UserError(
            f"{file}: holds {len(there)} tensors in place of {len(expected)} that were written; another process writes "
            "to this run folder"
        )


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In main memory, each in a storage of its own; copied only where that is not so, since heads can be large."""
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
    """Deletes all but the newest `keep` checkpoints and the best one, and leftovers of interrupted saves."""
    folder = run / "checkpoints"
    best = read_pointer(run / "best.json")
    names = checkpoint_names(run)
    for name in names[:-keep]:
        if name != best:
            (folder / name).replace(folder / f".{name}.tmp")  # never a half-deleted folder under a checkpoint's name
    if folder.is_dir():
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def set_aside_damaged(run: Path, newest: Path) -> list[str]:
    """Renames checkpoints that are newer than `newest`, the newest whole one: they would count when old ones are
    deleted. Returns a line to print about each."""
    lines = []
    for name in checkpoint_names(run):
        if name > newest.name:
            folder = run / "checkpoints" / name
            lines.append(f"{folder}: {damage(folder)}; renamed to damaged-{name}, going on from {newest.name}")
            aside = folder.with_name(f"damaged-{name}")
            shutil.rmtree(aside, ignore_errors=True)  # of an earlier time at the same step
            folder.rename(aside)
            if read_pointer(run / "best.json") == name:
                (run / "best.json").unlink()
    return lines


def load_checkpoint(folder: Path, rows: Mapping[str, slice] | None = None) -> Checkpoint:
    """Reads one checkpoint folder.

    Args:
        folder: `RUN/checkpoints/step-XXXXXXXX`.
        rows: of which parameters only so many rows are wanted, by name; what the optimizer remembers of them too.

    Raises:
        UserError: not a checkpoint folder, a damaged file, or one of another format version.
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
        raise UserError(f"{folder}: damaged checkpoint ({error}); --resume auto takes the newest whole one") from error
    if state.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder}: checkpoint format {state.get('format_version')}, this version reads {FORMAT_VERSION}"
        )
    return Checkpoint(model, training, state, ema)


def _load_rows(path: Path, rows: Mapping[str, slice]) -> dict[str, torch.Tensor]:
    """Tensors of a file; of those that `rows` names, those rows alone are read."""
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (it is no dictionary)
            wanted, stored = rows.get(parameter_of(key)), file.get_slice(key)
            whole = wanted is None or not stored.get_shape()  # a number that the optimizer keeps has no rows
            tensors[key] = file.get_tensor(key) if whole else stored[wanted]
    return tensors


def parameter_of(key: str) -> str:
    """The parameter that a tensor of a checkpoint is, or that it is remembered of."""
    return key.removeprefix("optimizer.").rpartition(".")[0] if key.startswith("optimizer.") else key


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """State of an optimizer as `optimizer.<parameter>.<entry>`; `names` maps id(parameter) to its name.

    Parameters without a name are left out.
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
    """Puts back what `optimizer_tensors` took; entries keep their device: `step` lives where the optimizer made it."""
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
    """`value` in the memory layout of `parameter`: fused optimizers walk both in step."""
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(shard_like(value, parameter))
