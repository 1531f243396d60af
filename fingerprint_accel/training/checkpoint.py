"""Write and read checkpoints, which are folders of safetensors and JSON files.

Writing is atomic. A checkpoint is written to a temporary folder, flushed to disk with fsync, and then renamed. Old
checkpoints are deleted after the renaming.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fingerprint_accel.durable import file_sha256, fsync_path, write_json
from fingerprint_accel.errors import UserError
from fingerprint_accel.models.checkpoint_folder import (
    AVERAGE,
    FORMAT_VERSION,
    STATE,
    TRAINING,
    WEIGHTS,
    checkpoint_names,
    damage,
    name_of_step,
    read_state,
    todays_names,
    weights_file,
)
from fingerprint_accel.privacy import private_files
from fingerprint_accel.tensor_files import read_header, read_tensors, write_tensors
from fingerprint_accel.training.fsdp import shard_like
from fingerprint_accel.untrusted import DAMAGED, reason_of

LATEST = "latest.json"


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


@private_files()
def save_checkpoint(run: Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint to the folder `step-XXXXXXXX` in `run/checkpoints`, and return the name of this folder.

    The name contains the step. `run/latest.json` then names the checkpoint. If the process is killed or the disk is
    full at any moment, the previous checkpoints stay intact. The files are read back before the checkpoint gets its
    final name.

    Args:
        run: Run folder, which must exist.
        checkpoint: Content of the checkpoint.

    Raises:
        OSError: If a file cannot be written. No part of the checkpoint is then left.
        UserError: If a file on disk does not contain the tensors that were written.
    """
    folder = run / "checkpoints"
    name = name_of_step(checkpoint.state["step"])
    folder.mkdir(exist_ok=True)
    files = {WEIGHTS: checkpoint.model, TRAINING: checkpoint.training}
    if checkpoint.ema is not None:
        files[AVERAGE] = checkpoint.ema
    with _temporary(folder / f".{name}.tmp") as temporary:
        checksums = {}
        for file_name, tensors in files.items():
            write_tensors(temporary / file_name, _plain(tensors))
            fsync_path(temporary / file_name)
            _check_written(temporary / file_name, tensors)
            checksums[file_name] = file_sha256(temporary / file_name)
        state = {"format_version": FORMAT_VERSION, **checkpoint.state, "sha256": checksums}
        write_json(temporary / STATE, state)
        if (folder / name).exists():  # the run was resumed from an older checkpoint and reaches this step again
            (folder / name).replace(folder / f".{name}.old.tmp")
        temporary.replace(folder / name)
    fsync_path(folder)
    shutil.rmtree(folder / f".{name}.old.tmp", ignore_errors=True)
    name_newest(run, checkpoint.state["step"])
    return name


def name_newest(run: Path, step: int) -> None:
    """Write the name of the newest checkpoint to `latest.json`."""
    write_json(run / LATEST, {"checkpoint": name_of_step(step), "step": step})


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """Create an empty folder, and delete it after an error. It could otherwise keep the disk full."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_written(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Check that the names and shapes of the tensors in a safetensors file are those of the given tensors.

    Opening the file also checks its length.

    Raises:
        UserError: If the file cannot be read, or its tensors differ.
    """
    try:
        there = {name: info.shape for name, info in read_header(file).items()}
    except (OSError, *DAMAGED) as error:
        raise UserError(
            f"{file}: cannot be read back ({reason_of(error)}); check the disk, and end other runs in this folder"
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


def prune(run: Path, keep: int, best: str | None = None) -> None:
    """Delete old checkpoints from the folder of a run, and the leftovers of interrupted saves.

    Args:
        run: Run folder.
        keep: Number of the newest checkpoints to keep.
        best: Name of the best checkpoint, which is kept too.
    """
    folder = run / "checkpoints"
    for name in checkpoint_names(run)[:-keep]:
        if name != best:
            # With this name, a checkpoint that is only partly deleted is not mistaken for a complete checkpoint.
            (folder / name).replace(folder / f".{name}.tmp")
    delete_leftovers(run)


def delete_leftovers(run: Path) -> None:
    """Delete what interrupted saves have left in the folder of a run. It could otherwise keep the disk full."""
    for leftover in (run / "checkpoints").glob(".step-*.tmp"):
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
    names = checkpoint_names(run)
    for name in names[names.index(newest.name) + 1 :]:
        folder = run / "checkpoints" / name
        lines.append(f"{folder}: {damage(folder)}; renamed to damaged-{name}, continuing from {newest.name}")
        aside = folder.with_name(f"damaged-{name}")
        shutil.rmtree(aside, ignore_errors=True)  # an earlier damaged checkpoint of the same step
        folder.rename(aside)
    return lines


def load_checkpoint(folder: Path, rows: Mapping[str, slice] | None = None) -> Checkpoint:
    """Read a checkpoint folder. The checksums of its files are not compared, see `damage`.

    Args:
        folder: Checkpoint folder, `RUN/checkpoints/step-XXXXXXXX`.
        rows: Dictionary from the name of each parameter that is sharded over processes to the rows to read. The same
            rows of the optimizer state of this parameter are read. All other tensors are read completely.

    Raises:
        UserError: If `folder` is not a checkpoint, a file is damaged, or its format version is not supported.
    """
    missing = next((name for name in (STATE, WEIGHTS, TRAINING) if not (folder / name).is_file()), None)
    if missing is not None:
        raise UserError(f"{folder}: not a checkpoint folder (no {missing})")
    state = read_state(folder)
    averaged = weights_file(folder, state.digests("sha256")) == AVERAGE
    try:
        model = todays_names(read_tensors(folder / WEIGHTS))
        training = read_tensors(folder / TRAINING, lambda name: (rows or {}).get(parameter_of(name)))
        ema = todays_names(read_tensors(folder / AVERAGE)) if averaged else None
    except (OSError, *DAMAGED) as error:
        raise UserError(
            f"{folder}: damaged checkpoint ({reason_of(error)}); --resume auto uses the newest intact one"
        ) from error
    return Checkpoint(model, todays_names(training), state.values, ema)


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

    Raises:
        RuntimeError: If a tensor has neither the shape of its parameter nor a single element, or is no float.
    """
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            parameter, _, entry = key.removeprefix("optimizer.").rpartition(".")
            by_name.setdefault(parameter, {})[entry] = tensor
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter), "")
            entries = by_name.get(name)
            if entries is not None:
                optimizer.state[parameter] = {
                    entry: _state_tensor(parameter, value, f"optimizer.{name}.{entry}")
                    for entry, value in entries.items()
                }


def _state_tensor(parameter: torch.Tensor, value: torch.Tensor, name: str) -> torch.Tensor:
    """Copy `value` to the device, memory layout and FSDP sharding of `parameter`, as fused optimizers need it.

    Fused optimizers do not check shapes and number formats themselves.
    """
    if not value.is_floating_point() or (value.shape != parameter.shape and value.numel() != 1):
        raise RuntimeError(f"{name} has the shape {tuple(value.shape)} and the type {value.dtype}")
    if value.shape != parameter.shape:
        return value.clone().to(parameter.device)  # the file is mapped into memory, and would stay on the disk
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(shard_like(value, parameter))
