"""Save the state of a run as a checkpoint, and restore it."""

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

# Each checkpoint contains this text, as documentation.
RNG_RULE = (
    "before optimizer step s, rank r seeds torch with a hash of (seed, s, r); order and augmentation are hashes too"
)


@dataclass
class Progress:
    """Counters and results that change during training. A checkpoint contains these values and tensors.

    Attributes:
        step: Number of optimizer steps done.
        position: Number of prints read from the stream of training prints, over all processes.
        best_eer: Lowest validation EER so far, or None before the first validation. If only the alignment network is
            trained, it is the lowest alignment error in mm.
        best_step: Step of the best validation.
        validations_without_gain: Number of validations since the best one, for early stopping.
        skipped: Number of updates that were skipped because a loss or gradient was not finite.
    """

    step: int = 0
    position: int = 0
    best_eer: float | None = None
    best_step: int = 0
    validations_without_gain: int = 0
    skipped: int = 0


def save(run: Run, progress: Progress, best: bool = False) -> None:
    """Save the state of a run as a checkpoint, and delete old checkpoints.

    All ranks must call this, because they contribute their slices of sharded tensors. Rank 0 writes the files.

    Args:
        run: The run.
        progress: Counters and results of the run.
        best: Whether this checkpoint is the best one so far. The name of the checkpoint is then written to `best.json`.
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
    """Return the values (data, seed, options) that determine which prints a run reads, and in which order.

    A run can resume from a checkpoint only if all these values are the same in the checkpoint.
    """
    return {
        "fingers": run.train.classes,
        "prints": len(run.train),
        **dataclasses.asdict(run.train.info),
        "seed": run.config.training.seed,
        "order": run.order.rule,
        "data": run.train.identity,
    }


def checkpoint_to_resume(config: Config) -> Path | None:
    """Return the checkpoint folder that the option `--resume` selects, or None to start a new run.

    Raises:
        UserError: If the run folder contains a run that would be overwritten, all its checkpoints are damaged, or the
            selected checkpoint does not exist.
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
    """Load a checkpoint into a run, and return the progress of the run.

    Training then continues bit-identically to a run that was never stopped.

    Args:
        run: The run, before its first step.
        folder: Checkpoint folder.

    Raises:
        UserError: If the checkpoint was made with other data, another model, or another number of prints per step.
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
        if run.ema is not None:  # without an average in the checkpoint, the average starts from the weights
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
        _name_best(run.folder, folder.name, progress)  # the run may have been killed before it wrote best.json
    return progress


def _check_batch(folder: Path, run: Run, state: dict[str, Any]) -> None:
    """Check that a run has the same number of prints per optimizer step as the run that wrote a checkpoint.

    The number of processes and the size of the micro-batches may differ.

    Args:
        folder: Checkpoint folder, for the error message.
        run: The run.
        state: Content of `state.json` of the checkpoint.

    Raises:
        UserError: If the number of prints per step differs.
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
    """Seed the random number generator of torch, which dropout uses, for one optimizer step of one rank.

    Each step has a seed of its own, so that checkpoints need not contain the state of a random number generator.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
    torch.manual_seed(mixed)
