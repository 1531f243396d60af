"""What every recipe does: read the knobs, train, export the best model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fingerprint_accel.config import Config, parse
from fingerprint_accel.errors import Stopped, one_line_errors

if TYPE_CHECKING:
    import torch

    from fingerprint_accel.synthesis.sensors import Style
    from fingerprint_accel.training.data import PrintSource
    from fingerprint_accel.training.setup import Run

INTERRUPTED = "interrupted; the same command with --resume auto goes on from the last checkpoint"


def run_recipe(defaults: Config, description: str) -> None:
    """Entry point of a recipe script: command line in, run folder out. User errors end in one line, exit code 2."""
    with one_line_errors(INTERRUPTED):
        run = run_training(parse(defaults, description))
        run.accelerator.state.destroy_process_group()


def run_training(config: Config) -> Run:
    """Trains as configured and exports the best checkpoint to `<out>/model`, calibrated on the validation fingers.

    Raises:
        UserError: anything the user can mend.
        Stopped, LostProcessError: see `training.loop.train`.
    """
    # imported here, so that --help answers at once and a broken installation ends in one line
    from fingerprint_accel.training.loop import train
    from fingerprint_accel.training.run_folder import check_run_folder, holding
    from fingerprint_accel.training.setup import set_up

    check_run_folder(config)
    run = set_up(config)
    with holding(run.folder, run.accelerator):
        try:
            train(run)
        except Stopped:
            run.accelerator.state.destroy_process_group()
            raise
        if run.accelerator.is_main_process:
            export(run)
        run.accelerator.wait_for_everyone()
    return run


def export(run: Run) -> None:
    """Writes the best checkpoint of a run to `<out>/model`, calibrated on the validation fingers."""
    from fingerprint_accel.evaluation.calibration import calibrate_export
    from fingerprint_accel.extraction.calibration import NOTE
    from fingerprint_accel.extraction.extractor import FingerprintExtractor
    from fingerprint_accel.extraction.minutiae_readout import UNTRAINED
    from fingerprint_accel.synthesis.source import is_source

    extractor = FingerprintExtractor.from_pretrained(run.folder).to(run.accelerator.device)
    extractor.notes["checkpoint"] = Path(extractor.origin).name
    if run.validation is not None:
        extractor.notes["usual_norm"] = extractor.usual_norm(some_of(run.validation))
        if NOTE not in extractor.notes:  # an earlier export of this checkpoint may have been calibrated since
            source = run.config.reading.validation_data or run.config.data
            name = source if is_source(source) else Path(source).resolve().name
            calibrate_export(extractor, run.validation, f"validation fingers of {name}")
    if run.bare.model.config.needs_minutia_maps and not learns_maps(run):
        extractor.notes[UNTRAINED] = True
    extractor.save_pretrained(run.folder / "model")


def learns_maps(run: Run) -> bool:
    """Whether the network learns to draw minutia maps, or starts from one that did."""
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
    """The first 256 canvases, or as many as there are, (B, canvas, canvas) uint8 each."""
    import numpy as np

    for samples in np.array_split(np.arange(min(256, len(prints))), 8):
        if len(samples):
            yield prints.read(samples, np.zeros_like(samples)).image


def synthetic_prints(folder: Path, fingers: int, impressions: int, seed: int, style: Style) -> str:
    """Makes a dataset folder on one process of the launch, unless it is there; returns its path."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from fingerprint_accel.synthesis.writing import CONTACT_SHEET, write_synthetic_dataset
    from fingerprint_accel.training.run_folder import check_launch

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # else several processes on CPUs stay apart
    check_launch(state.num_processes)
    with state.main_process_first():
        if not folder.exists():
            summary = write_synthetic_dataset(folder, fingers, impressions, seed, style, progress=state.is_main_process)
            made = f"{summary.info.prints:,} prints of {summary.info.fingers:,} fingers"
            print(f"{made} in {summary.seconds:.0f} s: {folder} (samples: {CONTACT_SHEET})", flush=True)
    return str(folder)
