"""Write and read checkpoints, which are folders of safetensors and JSON files.

Writing is atomic. A checkpoint is written to a temporary folder, flushed to disk with fsync, and then renamed. Old
checkpoints are deleted after the renaming.
"""

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
        training: All other tensors by name. Names of identity heads and class centres begin with `loss.`, names of
            optimizer state with `optimizer.`.
        state: Numbers and strings: step, position in the training data, seed, best EER, state of the gradient scaler,
            and properties of the dataset.
        ema: State dict of the network with averaged weights, or None if the run keeps no moving average.
    """

    model: dict[str, torch.Tensor]
    training: dict[str, torch.Tensor]
    state: dict[str, Any]
    ema: dict[str, torch.Tensor] | None = None


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint to the folder `step-XXXXXXXX` in `run/checkpoints`, and return the name of this folder.

    The name contains the step. `run/latest.json` then names the checkpoint. If the process is killed at any moment, the
    previous checkpoints stay intact. The files are read back before the checkpoint gets its final name.

    Args:
        run: Run folder.
        checkpoint: Content of the checkpoint.

    Raises:
        UserError: If a file on disk does not contain the tensors that were written.
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
    if (folder / name).exists():  # the run was resumed from an older checkpoint and reaches this step again
        (folder / name).replace(folder / f".{name}.old.tmp")
    temporary.replace(folder / name)
    fsync_path(folder)
    write_json(run / "latest.json", {"checkpoint": name, "step": checkpoint.state["step"]})
    shutil.rmtree(folder / f".{name}.old.tmp", ignore_errors=True)
    return name


def _check_written(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Check that the names and shapes of the tensors in a safetensors file are those of the given tensors.

    Opening the file also checks its length.

    Raises:
        UserError: If the file cannot be read, or its tensors differ.
    """
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
    """Return the tensors on the CPU, each contiguous and in separate memory, as safetensors requires.

    A tensor that fulfils these conditions is not copied, because identity heads can be large.
    """
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
    """Delete old checkpoints from the folder of a run, and the leftovers of interrupted saves.

    The newest `keep` checkpoints and the best one are kept.
    """
    folder = run / "checkpoints"
    best = read_pointer(run / "best.json")
    names = checkpoint_names(run)
    for name in names[:-keep]:
        if name != best:
            # With this name, a checkpoint that is only partly deleted is not mistaken for a complete checkpoint.
            (folder / name).replace(folder / f".{name}.tmp")
    if folder.is_dir():
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def set_aside_damaged(run: Path, newest: Path) -> list[str]:
    """Rename damaged checkpoints of a run to `damaged-step-XXXXXXXX`.

    With their old names, `prune` would count them among the newest checkpoints and could delete intact ones.

    Args:
        run: Run folder.
        newest: Folder of the newest intact checkpoint. All newer checkpoints are damaged.

    Returns:
        A message for the user about each damaged checkpoint.
    """
    lines = []
    for name in checkpoint_names(run):
        if name > newest.name:
            folder = run / "checkpoints" / name
            lines.append(f"{folder}: {damage(folder)}; renamed to damaged-{name}, continuing from {newest.name}")
            aside = folder.with_name(f"damaged-{name}")
            shutil.rmtree(aside, ignore_errors=True)  # an earlier damaged checkpoint of the same step
            folder.rename(aside)
            if read_pointer(run / "best.json") == name:
                (run / "best.json").unlink()
    return lines


def load_checkpoint(folder: Path, rows: Mapping[str, slice] | None = None) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: Checkpoint folder, `RUN/checkpoints/step-XXXXXXXX`.
        rows: Dictionary from the name of each parameter that is sharded over processes to the rows to read. The same
            rows of the optimizer state of this parameter are read. All other tensors are read completely.

    Raises:
        UserError: If `folder` is not a checkpoint, a file is damaged, or its format version is not supported.
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
    """Read all tensors of a safetensors file. Of the parameters named in `rows`, read only the given rows."""
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (not a dictionary)
            wanted, stored = rows.get(parameter_of(key)), file.get_slice(key)
            whole = wanted is None or not stored.get_shape()  # optimizer state such as the step is a scalar
            tensors[key] = file.get_tensor(key) if whole else stored[wanted]
    return tensors


def parameter_of(key: str) -> str:
    """Return the name of the parameter to which a tensor of a checkpoint belongs.

    Args:
        key: Name of the tensor: the name of a parameter, or `optimizer.<parameter>.<entry>` for optimizer state.
    """
    return key.removeprefix("optimizer.").rpartition(".")[0] if key.startswith("optimizer.") else key


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """Return the state of an optimizer as a dictionary with keys such as `optimizer.<parameter>.<entry>`.

    Args:
        optimizer: The optimizer.
        names: Dictionary from `id(parameter)` to the name of the parameter. The state of parameters without a name is
            left out.
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
    """Load the state of an optimizer from tensors of a checkpoint.

    Args:
        optimizer: The optimizer.
        names: Dictionary from `id(parameter)` to the name of the parameter.
        tensors: Tensors with the names that `optimizer_tensors` creates. Tensors without the prefix `optimizer.` are
            ignored.
    """
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
    """Copy `value` to the device, memory layout and FSDP sharding of `parameter`, as fused optimizers need it."""
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(shard_like(value, parameter))
