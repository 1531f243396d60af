"""Saves the state of a run as a checkpoint, and restores it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fingerprint_accel.config import Config
from fingerprint_accel.durable import write_json
from fingerprint_accel.errors import UserError
from fingerprint_accel.models.saved_model import checkpoint_names, damage, find_checkpoint
from fingerprint_accel.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    prune,
    restore_optimizer,
    save_checkpoint,
)
from fingerprint_accel.training.fsdp import load_whole
from fingerprint_accel.training.heads import whole_tensors
from fingerprint_accel.training.setup import Run

# Stored in checkpoints for readers.
RNG_RULE = (
    "before optimizer step s, rank r seeds torch with a hash of (seed, s, r); order and augmentation are hashes too"
)


@dataclass
class Progress:
    """Numbers that change during training, beside the tensors.

    Attributes:
        step: Number of optimizer steps done.
        position: Number of prints read from the stream, over all processes.
        best_eer: Lowest validation EER so far, or None before the first validation.
        best_step: Step of the best validation.
        validations_without_gain: Number of validations since then, for early stopping.
        skipped: Number of updates skipped because their loss was not finite.
    """

    step: int = 0
    position: int = 0
    best_eer: float | None = None
    best_step: int = 0
    validations_without_gain: int = 0
    skipped: int = 0


def save(run: Run, progress: Progress, best: bool = False) -> None:
    """Write a checkpoint on rank 0. All ranks call this, because they contribute their slices.

    Args:
        run: The run.
        progress: Its state.
        best: Also point `best.json` to the checkpoint.
    """
    scaler = run.accelerator.scaler
    tensors = {f"loss.{name}": tensor for name, tensor in run.bare.loss.state_dict().items()}
    tensors |= optimizer_tensors(run.torch_optimizer, run.parameter_names)
    tensors = whole_tensors(run.bare, tensors)
    model = whole_tensors(run.bare, run.bare.model.state_dict())
    ema = whole_tensors(run.bare, run.ema.module.state_dict()) if run.ema is not None else None
    if not run.accelerator.is_main_process:
        return
    state = {
        **dataclasses.asdict(progress),
        **_stream(run),
        "rng": RNG_RULE,
        "gradient_scaler": scaler.state_dict() if scaler is not None else None,
        "processes": run.accelerator.num_processes,
    }
    name = save_checkpoint(run.folder, Checkpoint(model, tensors, state, ema))
    if best:
        _name_best(run.folder, name, progress)
    prune(run.folder, run.config.training.save_total_limit)


def _stream(run: Run) -> dict[str, Any]:
    """Return what determines the stream of prints. A run can resume only if all of it is unchanged."""
    return {
        "fingers": run.train.classes,
        "prints": len(run.train),
        **dataclasses.asdict(run.train.info),
        "seed": run.config.training.seed,
        "order": run.order.rule,
        "data": run.train.identity,
    }


def checkpoint_to_resume(config: Config) -> Path | None:
    """Return the checkpoint that `--resume` names, or None to start a new run.

    Raises:
        UserError: If a run in the folder would be overwritten, no checkpoint is complete, or the named one is missing.
    """
    folder = Path(config.out)
    names, newest = checkpoint_names(folder), find_checkpoint(folder)
    if config.resume == "auto":
        if names and newest is None:
            wrong = damage(folder / "checkpoints" / names[-1])
            raise UserError(
                f"{folder}: no checkpoint is complete ({names[-1]}: {wrong}); restore one, or choose another --out"
            )
        return newest
    if config.resume == "never":
        if names:
            raise UserError(f"{folder}: contains a run; add --resume auto to continue it, or choose another --out")
        return None
    chosen = Path(config.resume)
    if not (chosen / "state.json").is_file():
        raise UserError(f"--resume {chosen}: not a checkpoint folder; give RUN/checkpoints/step-XXXXXXXX, or auto")
    if names and (newest is None or chosen.resolve() != newest.resolve()):
        raise UserError(f"{folder}: contains {names[-1]}, which would be lost; choose another --out")
    return chosen


def restore(run: Run, folder: Path) -> Progress:
    """Load a checkpoint into a run. Training then continues bit-identically to a run that was never stopped.

    Raises:
        UserError: If the checkpoint belongs to other data or to another model.
    """
    rows = {name: head.rows for name, head in run.bare.sharded_parameters.items()}
    checkpoint = load_checkpoint(folder, rows)
    state = checkpoint.state
    for what, value in _stream(run).items():
        if state.get(what) != value and (what != "data" or "data" in state):  # earlier versions did not store `data`
            raise UserError(
                f"{folder}: trained on {what} {state.get(what, 'of an earlier version')}, this run has {value}; "
                "use the same data, seed and options of the group reading"
            )
    _check_batch(folder, run, state)
    heads = {key.removeprefix("loss."): t for key, t in checkpoint.training.items() if key.startswith("loss.")}
    if run.config.loss.center_weight == 0:  # checkpoints of earlier versions contain unused centres
        heads = {name: tensor for name, tensor in heads.items() if not name.startswith("centers.")}
    try:
        load_whole(run.bare.model, checkpoint.model)
        load_whole(run.bare.loss, heads)
        if run.ema is not None:  # if the checkpoint has no average, start from its weights
            load_whole(run.ema.module, checkpoint.ema or checkpoint.model)
    except RuntimeError as error:
        raise UserError(
            f"{folder}: contains another model than configured ({str(error).splitlines()[-1].strip()}); use the "
            "options of its config.yaml"
        ) from error
    restore_optimizer(run.torch_optimizer, run.parameter_names, checkpoint.training)
    if run.accelerator.scaler is not None and state["gradient_scaler"]:
        run.accelerator.scaler.load_state_dict(state["gradient_scaler"])
    progress = Progress(**{knob.name: state[knob.name] for knob in dataclasses.fields(Progress)})
    if progress.best_step == progress.step and run.accelerator.is_main_process and folder.parent.parent == run.folder:
        _name_best(run.folder, folder.name, progress)  # a kill may have prevented the write of best.json
    return progress


def _check_batch(folder: Path, run: Run, state: dict[str, Any]) -> None:
    """Check that a step reads as many prints as before. They may be split over other processes and micro-batches.

    Raises:
        UserError: If the number of prints per step has changed.
    """
    here, training = run.samples_per_step, run.config.training
    before = state["position"] // state["step"] if state["step"] else here
    if before == here:
        return
    processes = run.accelerator.num_processes
    share, rest = divmod(before, training.batch_size * processes)
    fits = share > 0 and rest == 0
    remedy = f"--training.gradient-accumulation-steps {share}" if fits else "another --training.batch-size"
    raise UserError(
        f"{folder}: trained with {before} prints per step, this run has {here} (batch size {training.batch_size} x "
        f"accumulation {training.gradient_accumulation_steps} x {processes} processes); give {remedy} to "
        f"restore {before}"
    )


def _name_best(run: Path, name: str, progress: Progress) -> None:
    write_json(run / "best.json", {"checkpoint": name, "step": progress.best_step, "eer": progress.best_eer})


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout for one optimizer step, so that no RNG state needs to be saved. See `RNG_RULE`."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
    torch.manual_seed(mixed)
