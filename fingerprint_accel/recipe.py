"""Functions for recipe scripts: read the options, train or cross-validate, and export the best checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fingerprint_accel.config import Config, parse
from fingerprint_accel.errors import Stopped, UserError, one_line_errors, require, write_errors
from fingerprint_accel.privacy import private_files
from fingerprint_accel.ranks import launched_rank_and_size

if TYPE_CHECKING:
    import torch

    from fingerprint_accel.synthesis.sensors import Style
    from fingerprint_accel.training.data import PrintSource
    from fingerprint_accel.training.setup import Run

INTERRUPTED = "interrupted"  # printed at Ctrl-C; `training.run_folder.holding` appends how to resume


def run_recipe(defaults: Config, description: str) -> None:
    """Run a recipe script: read the command line, then train a model, or cross-validate if `--folds` is given.

    After an error that the user can correct, the program prints one line and exits with code 2.

    Args:
        defaults: Configuration of the recipe. Options of the command line replace its values.
        description: Text at the top of `--help`.
    """
    with one_line_errors(INTERRUPTED), private_files():
        config = parse(defaults, description)
        (cross_validate if config.folds else run_training)(config)
        from accelerate import PartialState  # takes seconds, which --help does not need

        PartialState().destroy_process_group()


@private_files()
def run_training(config: Config) -> Run:
    """Train a model, and export its best checkpoint to the subfolder `model` of the run folder.

    The exported model is calibrated: it contains similarity thresholds from the validation prints.

    Raises:
        UserError: If the data, the options or the run folder cannot be used.
        Stopped: If training was stopped by a signal and has saved a checkpoint.
        LostProcessError: If another process of the run has failed or was killed.
    """
    # These imports take seconds. They are not at the top, so that --help is fast.
    from fingerprint_accel.training.agreement import one_error, said_once
    from fingerprint_accel.training.launch import with_answers
    from fingerprint_accel.training.loop import train
    from fingerprint_accel.training.run_folder import check_run_folder, holding, resume_advice
    from fingerprint_accel.training.setup import set_up

    require(
        config.folds == 0, "--folds: this recipe trains a single model; use recipes/finetune.py or a train_* recipe"
    )
    check_run_folder(config)
    config, notes = with_answers(config)
    if notes and launched_rank_and_size()[0] == 0:
        print("\n".join(notes), flush=True)
    with said_once():
        run = set_up(config)
    with holding(run.folder, run.accelerator):
        try:
            train(run)
        except Stopped:
            run.accelerator.state.destroy_process_group()
            raise
        with one_error(run.accelerator), write_errors(lambda: resume_advice(run.folder)):
            if run.accelerator.is_main_process:
                export(run)
    return run


def fold_configs(config: Config) -> list[Config]:
    """Return the training configuration of each fold of a cross-validation.

    The run folders are OUT/fold-1, OUT/fold-2, ... A fold validates at its last step only, and the checkpoint of that
    step is evaluated. If the best of several checkpoints were chosen on the held-out prints, the error rates on these
    prints would be too low.
    """
    training = dataclasses.replace(config.training, validate_every=0, patience=0)
    return [
        dataclasses.replace(
            config,
            folds=0,
            out=str(Path(config.out) / f"fold-{number}"),
            reading=dataclasses.replace(config.reading, fold=f"{number}/{config.folds}"),
            training=training,
        )
        for number in range(1, config.folds + 1)
    ]


def cross_validate(config: Config) -> None:
    """Train a model for each fold of a cross-validation, evaluate it on the held-out prints, and print error rates.

    With `resume="auto"`, finished folds are not trained again, and an interrupted fold continues.

    Raises:
        UserError: If the data, the options or a run folder cannot be used, or the dataset is too small for the folds.
        Stopped: If training was stopped by a signal and has saved a checkpoint.
        LostProcessError: If another process of the run has failed or was killed.
    """
    from accelerate import PartialState

    from fingerprint_accel.evaluation.cross_validation import FOLDER, RESULTS, held_out_prints, measure_folds
    from fingerprint_accel.outputs import check_folder
    from fingerprint_accel.synthesis.source import is_source
    from fingerprint_accel.training.run_folder import check_run_folder

    if not config.data or is_source(config.data):
        raise UserError(f"--folds {config.folds}: give --data a dataset folder (`fingerprint-accel import` makes one)")
    require(config.resume in ("never", "auto"), f"--folds {config.folds}: use --resume auto, not a checkpoint folder")
    check_run_folder(config)
    check_folder(config.out, FOLDER)
    folds = fold_configs(config)
    for fold in folds:  # check all folds before the first one is trained
        check_run_folder(fold)
        held_out_prints(fold)
    for fold in folds:
        run = run_training(fold)
        device = str(run.accelerator.device)
        run.accelerator.free_memory()
        del run  # frees the memory of the model before the next fold
    if PartialState().is_main_process:
        table = measure_folds(folds, Path(config.out), device)
        print(f"\n{table}\n\ncross-validation: {Path(config.out) / RESULTS}")


def export(run: Run) -> None:
    """Export the best checkpoint of a run to the subfolder `model` of its run folder.

    If the run has validation prints, the exported model contains similarity thresholds that were computed from
    these prints (a calibration).
    """
    from fingerprint_accel.evaluation.calibration import calibrate_export
    from fingerprint_accel.extraction.calibration import NOTE
    from fingerprint_accel.extraction.extractor import FingerprintExtractor
    from fingerprint_accel.extraction.minutiae_readout import UNTRAINED
    from fingerprint_accel.extraction.network import USUAL_NORM
    from fingerprint_accel.synthesis.source import is_source

    extractor = FingerprintExtractor.from_pretrained(run.folder).to(run.accelerator.device)
    extractor.notes["checkpoint"] = Path(extractor.origin).name
    if run.validation is not None:
        extractor.notes[USUAL_NORM] = extractor.usual_norm(some_of(run.validation))
        if NOTE not in extractor.notes:  # keep the calibration that a user may have made after an earlier export
            source = run.config.reading.validation_data or run.config.data
            name = source if is_source(source) else Path(source).resolve().name
            calibrate_export(extractor, run.validation, f"validation fingers of {name}")
    if run.bare.model.config.needs_minutia_maps and not learns_maps(run):
        extractor.notes[UNTRAINED] = True
    extractor.save_pretrained(run.folder / "model")


def learns_maps(run: Run) -> bool:
    """Return whether the network of a run has learned to predict minutia maps.

    Minutia maps are images of the positions and directions of minutiae. The network has learned to predict
    them if the run uses the minutia-map loss, or starts from a network that was trained with it.
    """
    if run.config.loss.minutia_map_weight > 0 and run.train.with_minutiae > 0:
        return True
    from fingerprint_accel.extraction.minutiae_readout import UNTRAINED
    from fingerprint_accel.models.saved_model import find_model

    start = run.config.model.init_from
    if not start:
        return False
    saved = find_model(start)
    return saved.model.needs_minutia_maps and UNTRAINED not in saved.notes


def some_of(prints: PrintSource) -> Iterator[torch.Tensor]:
    """Yield the images of the first 256 prints of a source, in up to 8 batches (B, canvas, canvas) uint8.

    `canvas` is the side of a stored print, in pixels.
    """
    import numpy as np

    for samples in np.array_split(np.arange(min(256, len(prints))), 8):
        if len(samples):
            yield prints.read(samples, np.zeros_like(samples)).image


def synthetic_prints(folder: Path, fingers: int, impressions: int, seed: int, style: Style) -> str:
    """Write a synthetic dataset, unless `folder` exists, and return `folder`. Only the main process writes.

    Args:
        folder: Dataset folder.
        fingers: Number of fingers.
        impressions: Number of impressions of each finger.
        seed: Seed of the fingers and impressions.
        style: Appearance of the prints.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from fingerprint_accel.synthesis.writing import CONTACT_SHEET, write_synthetic_dataset
    from fingerprint_accel.training.launch import check_answers, check_launch

    check_answers()
    # Without `cpu`, PartialState would not join several CPU processes into one group.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_launch(state.num_processes, state.device.type)
    with state.main_process_first():
        if not folder.exists():
            summary = write_synthetic_dataset(folder, fingers, impressions, seed, style, progress=state.is_main_process)
            made = f"{summary.info.prints:,} prints of {summary.info.fingers:,} fingers"
            print(f"{made} in {summary.seconds:.0f} s: {folder} (samples: {CONTACT_SHEET})", flush=True)
    return str(folder)
