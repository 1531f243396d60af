"""Choose the checkpoint from which a run resumes, and restore the state of the run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fingerprint_accel.config import Config
from fingerprint_accel.errors import UserError, require, write_errors
from fingerprint_accel.models.checkpoint_folder import (
    MOST_STEPS,
    STATE,
    checkpoint_names,
    damage,
    find_checkpoint,
    name_of_step,
    read_pointer,
    read_state,
)
from fingerprint_accel.training.agreement import from_main_process, one_error
from fingerprint_accel.training.checkpoint import (
    LATEST,
    delete_leftovers,
    load_checkpoint,
    name_newest,
    restore_optimizer,
    set_aside_damaged,
)
from fingerprint_accel.training.fsdp import load_whole
from fingerprint_accel.training.module import set_statistics
from fingerprint_accel.training.saving import STATISTICS, Progress, name_best, stream_of
from fingerprint_accel.training.setup import Run
from fingerprint_accel.untrusted import Fields


def resume(run: Run) -> Progress | None:
    """Load the checkpoint that the option `--resume` selects, or return None to start a new run.

    Rank 0 chooses the checkpoint and compares its files with their checksums. It then renames damaged newer
    checkpoints. All ranks must call this function.

    Raises:
        UserError: If no checkpoint can be resumed. All ranks raise an error.
    """
    accelerator, lost = run.accelerator, ""
    checkpoint: Path | None = None
    with one_error(accelerator):
        if accelerator.is_main_process:
            checkpoint = checkpoint_to_resume(run.config)
            with write_errors():
                if checkpoint is not None and checkpoint.parent.parent == run.folder:
                    for line in set_aside_damaged(run.folder, checkpoint):
                        print(line, file=sys.stderr)
                    lost = _lost_best(checkpoint)
                delete_leftovers(run.folder)
    checkpoint, lost = from_main_process(accelerator, (checkpoint, lost))
    if checkpoint is None:
        return None
    with one_error(accelerator):
        progress = restore(run, checkpoint)
        if lost:  # the checkpoint that is best from now on must exist
            progress.best_eer, progress.best_step, progress.validations_without_gain = None, 0, 0
            accelerator.print(f"{lost}; the best checkpoint of the following validations replaces it")
        if accelerator.is_main_process and checkpoint.parent.parent == run.folder:
            with write_errors():
                _name_best_again(run.folder, progress)
                _name_newest_again(run.folder, progress.step)
    return progress


def checkpoint_to_resume(config: Config) -> Path | None:
    """Return the checkpoint folder that the option `--resume` selects, or None to start a new run.

    Raises:
        UserError: If the run folder contains a run that would be overwritten, all its checkpoints are damaged, or the
            selected checkpoint does not exist or is damaged.
    """
    folder = Path(config.out)
    names = checkpoint_names(folder)
    if config.resume == "never":
        require(not names, f"{folder}: contains a run; add --resume auto to continue it, or choose another --out")
        return None
    newest = find_checkpoint(folder)
    if config.resume == "auto":
        if names and newest is None:
            wrong = damage(folder / "checkpoints" / names[-1])
            raise UserError(
                f"{folder}: no checkpoint is intact ({names[-1]}: {wrong}); restore one, or choose another --out"
            )
        return newest
    chosen = Path(config.resume)
    if not (chosen / STATE).is_file():
        raise UserError(f"--resume {chosen}: not a checkpoint folder; give RUN/checkpoints/step-XXXXXXXX, or auto")
    wrong = damage(chosen)
    if wrong is not None:
        intact = find_checkpoint(chosen.parent.parent)
        remedy = f"--resume {intact} is intact" if intact is not None else "no other checkpoint of this run is intact"
        raise UserError(f"--resume {chosen}: {wrong}; {remedy}")
    if names and (newest is None or chosen.resolve() != newest.resolve()):
        kept = names[-1] if newest is None else newest.name
        raise UserError(f"{folder}: contains {kept}, which would be lost; choose another --out")
    return newest or chosen


def _lost_best(checkpoint: Path) -> str:
    """Return a message if the best checkpoint up to a given one is damaged or was deleted, else ""."""
    progress = Progress.read(read_state(checkpoint))
    if progress.best_eer is None or progress.best_step == progress.step:
        return ""
    best = checkpoint.with_name(name_of_step(progress.best_step))
    wrong = damage(best, weights_only=True)
    return f"{best}: the best checkpoint cannot be used ({wrong})" if wrong is not None else ""


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
    state = Fields(checkpoint.state, folder / STATE, "--resume auto uses the newest intact checkpoint")
    progress = Progress.read(state)
    for what, value in stream_of(run).items():
        there = state.values.get(what)
        if there != value and (what != "data" or "data" in state.values):  # earlier versions did not store `data`
            raise UserError(
                f"{folder}: trained on {what} {_shown(there)}, this run has {value}; "
                "use the same data, seed and options of the group reading"
            )
    _check_batch(folder, run, progress)
    heads = {key.removeprefix("loss."): t for key, t in checkpoint.training.items() if key.startswith("loss.")}
    if run.config.loss.center_weight == 0:  # checkpoints of earlier versions contain unused centres
        heads = {name: tensor for name, tensor in heads.items() if not name.startswith("centers.")}
    try:
        load_whole(run.bare.model, checkpoint.model)
        load_whole(run.bare.loss, heads)
        if run.ema is not None:  # without an average in the checkpoint, the average starts from the weights
            load_whole(run.ema.module, checkpoint.ema or checkpoint.model)
        restore_optimizer(run.torch_optimizer, run.parameter_names, checkpoint.training)
        statistics = checkpoint.training.get(STATISTICS)
        if statistics is not None and statistics.shape[:1] == (run.accelerator.num_processes,):
            averaged = run.ema.module if run.ema is not None else None
            set_statistics(statistics[run.accelerator.process_index], run.bare, averaged)
    except RuntimeError as error:
        raise UserError(
            f"{folder}: contains another model than configured ({str(error).splitlines()[-1].strip()}); use the "
            "options of its config.yaml"
        ) from error
    if run.accelerator.scaler is not None and state.values.get("gradient_scaler") is not None:
        run.accelerator.scaler.load_state_dict(_scaler_state(state.part("gradient_scaler")))
    return progress


def _shown(value: Any) -> str:
    if value is None:
        return "of an earlier version"
    return str(value)[:80] if isinstance(value, (str, int, float)) else type(value).__name__


def _scaler_state(fields: Fields) -> dict[str, Any]:
    """Return the state of a gradient scaler, after checking its values."""
    return {
        "scale": fields.number("scale", 1e-30, 1e30),
        "growth_factor": fields.number("growth_factor", 1, 1e3),
        "backoff_factor": fields.number("backoff_factor", 1e-3, 1),
        "growth_interval": fields.integer("growth_interval", 1, MOST_STEPS),
        "_growth_tracker": fields.integer("_growth_tracker", 0, MOST_STEPS),
    }


def _check_batch(folder: Path, run: Run, progress: Progress) -> None:
    """Check that a run has the same number of prints per optimizer step as the run that wrote a checkpoint.

    The number of processes and the size of the micro-batches may differ.

    Args:
        folder: Checkpoint folder, for the error message.
        run: The run.
        progress: Progress of the run that wrote the checkpoint.

    Raises:
        UserError: If the number of prints per step differs.
    """
    here, training = run.samples_per_step, run.config.training
    before = progress.position // progress.step if progress.step else here
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


def _name_best_again(run: Path, progress: Progress) -> None:
    """Write `best.json` if it is damaged or names another checkpoint, which happens if a process is killed."""
    try:
        named = read_pointer(run / "best.json")
    except UserError:
        named = "damaged"
    best = name_of_step(progress.best_step) if progress.best_eer is not None else None
    if best is not None and named != best:
        name_best(run, best, progress)
    elif best is None:
        (run / "best.json").unlink(missing_ok=True)


def _name_newest_again(run: Path, step: int) -> None:
    """Write `latest.json` if it is damaged or names another checkpoint than the one from which the run resumes."""
    try:
        named = read_pointer(run / LATEST)
    except UserError:
        named = "damaged"
    if named != name_of_step(step):
        name_newest(run, step)
