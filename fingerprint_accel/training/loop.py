"""The training loop: train, validate, save checkpoints, and stop."""

from __future__ import annotations

import math
import sys
import time
from typing import NoReturn

from tqdm import tqdm

from fingerprint_accel.config import load_yaml, save_yaml
from fingerprint_accel.data.loader import Subset
from fingerprint_accel.data.watching import RUN_AGAIN, ShardWatcher
from fingerprint_accel.errors import Stopped, UserError, write_errors
from fingerprint_accel.privacy import private_files
from fingerprint_accel.training.agreement import one_error
from fingerprint_accel.training.heads import start_heads
from fingerprint_accel.training.memory import auto_micro_batch_size, explained
from fingerprint_accel.training.meters import Meters
from fingerprint_accel.training.module import StatisticsGuard
from fingerprint_accel.training.pace import forecast
from fingerprint_accel.training.preemption_monitor import PreemptionMonitor
from fingerprint_accel.training.reporting import Reporter, start_line
from fingerprint_accel.training.resume import resume
from fingerprint_accel.training.run_folder import resume_advice
from fingerprint_accel.training.saving import Progress, save
from fingerprint_accel.training.schedule import schedule_at
from fingerprint_accel.training.setup import Run
from fingerprint_accel.training.step import optimizer_step
from fingerprint_accel.training.validation import validate

# Training ends after this many skipped updates in a row. A gradient scaler skips 16 while its factor halves from 65,536
# to 1.
MAX_BAD_STEPS = 20


@private_files()
def train(run: Run) -> Progress:
    """Train until the last step, or until validation stops improving, and write the run folder.

    Returns:
        The last step, the position in the training data, and the result of the best validation.

    Raises:
        UserError: If the loss is NaN or infinite in many steps in a row, the run folder cannot be resumed, a file
            cannot be written, or a shard of the dataset is damaged, or changes while the run reads it.
        Stopped: If a rank received SIGTERM or SIGUSR1. The exception is raised after all ranks have finished the same
            step and a checkpoint has been saved.
        LostProcessError: If another rank has failed or was killed.
    """
    progress = _start(run)
    accelerator, training = run.accelerator, run.config.training
    # A pretrained network has meaningful error rates before the first step. They show what training changes.
    validates_start = run.config.model.init_from and progress.step == 0 and training.validate_every > 0
    rates_of_start = _measured(run)[0] if validates_start and run.validation is not None else {}
    guard = StatisticsGuard(run.bare, run.ema.module if run.ema is not None else None)
    meters = Meters(accelerator.device, progress.skipped)
    meters.restore(progress.meters, accelerator)
    loader = run.train.loader(
        run.order, training.batch_size, accelerator.process_index, accelerator.num_processes,
        accelerator.device, progress.position, truth=run.bare.learns_truth,
    )  # fmt: skip
    run.module.train()
    with (
        PreemptionMonitor(accelerator, training.timeout, run.folder, progress.step) as monitor,
        Reporter(run, progress) as reporter,
        _watched(run) as watcher,
        loader,
        tqdm(total=run.steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process) as bar,
    ):
        if rates_of_start:
            reporter.validation_record(rates_of_start)
        batches = iter(loader)
        while not _finished(run, progress):
            now = schedule_at(progress.step, run.steps, run.config)
            with explained(run, progress.step):
                bad = optimizer_step(run, batches, now, meters, progress)
            guard.step(bad)
            progress.step += 1
            if run.ema is not None:
                run.ema.update(run.bare.model, progress.step)
            progress.position += run.samples_per_step
            bar.update()
            watcher.check()
            reporter.after_step()
            last = progress.step == run.steps
            if last or progress.step % training.log_every == 0:
                reporter.training_record(meters, now, loader, bar)
                _stop_if_all_is_nan(run, progress, guard, meters, reporter)
            started = time.perf_counter()
            improved = False
            if last or _due(progress.step, training.validate_every):
                guard.average(accelerator.num_processes)
                improved = _validate(run, progress, reporter)
            stop = monitor.stop_here(progress.step) and not _finished(run, progress)
            planned = improved or _finished(run, progress) or _due(progress.step, training.save_every)
            if planned or stop:
                _save(run, progress, guard, meters, reporter, improved, planned)
            paused = time.perf_counter() - started
            meters.pause(paused)
            reporter.pace.pause(paused)
            if stop:
                _stop(run, progress, monitor.signal)
        bar.close()
        watcher.finish()
        reporter.final_table(meters)
    accelerator.wait_for_everyone()
    return progress


def _start(run: Run) -> Progress:
    """Prepare the first step: load a checkpoint if the run resumes, write `config.yaml`, and print what will be done.

    This also reduces the micro-batch size if a micro-batch does not fit into memory. In a run that starts from a
    trained network, it initialises the identity heads.

    Returns:
        The progress of the resumed run, or the initial progress of a new run, at step 0.
    """
    accelerator = run.accelerator
    resumed = resume(run)
    progress = resumed or Progress()
    if run.config.model.init_from and resumed is None:
        start_heads(run)
    auto_micro_batch_size(run, progress.step, progress.position)
    with one_error(accelerator), write_errors():
        if accelerator.is_main_process:
            _write_config(run)
    accelerator.print(start_line(run, progress))
    if estimate := forecast(run, progress.step, progress.position):
        accelerator.print(estimate)
    return progress


def _watched(run: Run) -> ShardWatcher:
    """Return the watcher of the shards that this machine reads. It is idle on all but one process of the machine."""
    datasets = {
        prints.shards.folder: prints.shards for prints in (run.train, run.validation) if isinstance(prints, Subset)
    }
    remedy = f"{RUN_AGAIN} with --resume auto, or with --resume CHECKPOINT to go on from before the change"
    return ShardWatcher(datasets.values() if run.accelerator.is_local_main_process else (), remedy)


def _write_config(run: Run) -> None:
    """Write `config.yaml`, and tell the user if this replaces a damaged file."""
    file = run.folder / "config.yaml"
    try:
        if file.exists():
            load_yaml(file, stored=True)
    except UserError as error:
        print(f"{error}; the options of this command replace it", file=sys.stderr)
    save_yaml(run.config, file)


def _finished(run: Run, progress: Progress) -> bool:
    patience = run.config.training.patience
    return progress.step >= run.steps or 0 < patience <= progress.validations_without_gain


def _stop(run: Run, progress: Progress, name: str) -> NoReturn:
    # If a rank ended earlier, the launcher would end rank 0, which may still save the checkpoint.
    run.accelerator.wait_for_everyone()
    line = f"stopped by {name} after step {progress.step} of {run.steps} and saved"
    raise Stopped(f"{line}; {resume_advice(run.folder)}" if run.accelerator.is_main_process else "")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _validate(run: Run, progress: Progress, reporter: Reporter) -> bool:
    """Validate on all ranks, record the error rates, and return whether the result is the best one so far.

    Results are compared by EER, or by alignment error if only the alignment network is trained. If the run keeps a
    moving average of the weights, the result of the averaged weights is compared. Without validation prints, this
    function does nothing and returns False.
    """
    if run.validation is None:
        return False
    metrics, score = _measured(run)
    improved = math.isfinite(score) and (progress.best_eer is None or score < progress.best_eer)
    if improved:
        progress.best_eer, progress.best_step = score, progress.step
        progress.validations_without_gain = 0
    else:
        progress.validations_without_gain += 1
    reporter.validation_record(metrics)
    return improved


def _measured(run: Run) -> tuple[dict[str, float], float]:
    """Compute error rates on the validation prints.

    Returns:
        Error rates by name, and the value that decides which checkpoint is best: the EER, or the alignment error if
        only the alignment network is trained. If the run keeps a moving average of the weights, the value is computed
        with the averaged weights.
    """
    assert run.validation is not None
    how = run.preprocessor, run.validation, run.config.training.batch_size, run.config.model.cells
    metrics = validate(run.accelerator, run.bare, *how)
    chosen_by = "eer" if run.bare.loss.describes else "alignment_mm"
    score = metrics.get(chosen_by, math.inf)
    if run.ema is not None:  # the average is exported, so it decides
        average = validate(run.accelerator, run.ema.module, *how)
        metrics |= {f"ema_{name}": value for name, value in average.items()}
        score = average.get(chosen_by, math.inf)
    if not run.bare.loss.describes:
        metrics = {name: value for name, value in metrics.items() if "alignment" in name}
    return metrics, score


def _save(
    run: Run,
    progress: Progress,
    guard: StatisticsGuard,
    meters: Meters,
    reporter: Reporter,
    best: bool = False,
    planned: bool = True,
) -> None:
    """Save a checkpoint. All ranks must call this function. See `saving.save`.

    Args:
        run: The run.
        progress: Counters and results of the run.
        guard: Running statistics of batch normalisation. Their mean over all ranks is saved.
        meters: Measurements since the last record.
        reporter: Writer of `metrics.jsonl`.
        best: Whether this checkpoint is the best one so far.
        planned: Whether a run without a signal saves a checkpoint at this step too.
    """
    # An undisturbed run takes no mean here, so the resumed run must continue without it, see `saving.save`.
    differ = run.accelerator.num_processes > 1 and bool(guard.live)
    statistics = guard.of_ranks(run.accelerator) if differ and not planned else None
    guard.average(run.accelerator.num_processes)
    progress.skipped, progress.meters = meters.skipped(), meters.state(run.accelerator)
    with write_errors(lambda: resume_advice(run.folder)):
        reporter.before_save()
        save(run, progress, best, statistics)


def _stop_if_all_is_nan(
    run: Run, progress: Progress, guard: StatisticsGuard, meters: Meters, reporter: Reporter
) -> None:
    if int(meters.longest) < MAX_BAD_STEPS:
        return
    _save(run, progress, guard, meters, reporter)
    with one_error(run.accelerator):
        raise UserError(
            f"{run.folder}: loss was NaN or infinite in {int(meters.longest)} steps in a row before step "
            f"{progress.step}; lower --training.learning-rate, raise --training.warmup-steps, or use "
            "--training.precision bf16 or no"
        )
