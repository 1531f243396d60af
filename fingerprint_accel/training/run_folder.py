"""Check the run folder and the experiment trackers before training; lock the run folder during training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from fingerprint_accel.config import MOST_OPTIONS, Config
from fingerprint_accel.errors import UserError, require, write_errors
from fingerprint_accel.models.checkpoint_folder import checkpoint_names
from fingerprint_accel.models.saved_model import MODEL
from fingerprint_accel.outputs import FolderKind, check_folder, exclusive_lock
from fingerprint_accel.training.agreement import one_error
from fingerprint_accel.untrusted import read_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

SECTIONS = ("reading:", "preprocess:", "model:", "loss:", "training:")  # sections of config.yaml


def _is_run(folder: Path) -> bool:
    if checkpoint_names(folder):  # config.yaml may be damaged
        return True
    try:
        lines = read_bytes(folder / "config.yaml", MOST_OPTIONS).decode().splitlines()
    except (OSError, ValueError):
        return False
    return all(section in lines for section in SECTIONS)


RUN = FolderKind(
    "a run folder",
    _is_run,
    r"config\.yaml|metrics\.jsonl|(best|latest)\.json|checkpoints|tensorboard|model",
    whole=False,
)


def check_run_folder(config: Config) -> None:
    """Check the run folder (`--out`) and the experiment trackers (`--training.tracker`) before training.

    Raises:
        UserError: If no run folder is given, if the folder contains other files or is inside the training data, if its
            exported model is damaged, or if a tracker is unknown or not installed.
    """
    trackers(config)
    if not config.out:
        raise UserError("no run folder: give --out a new folder")
    out = Path(config.out)
    check_folder(out, RUN, inputs=[config.data] if config.data and Path(config.data).exists() else [])
    try:
        check_folder(out / "model", MODEL)
    except UserError as error:
        raise UserError(f"{error}, or move {out / 'model'} away: training writes it again") from error


def trackers(config: Config) -> list[str]:
    """Return the names in the comma-separated list of experiment trackers, `--training.tracker`.

    For the value `none`, the returned list is empty.

    Raises:
        UserError: If a tracker is unknown or not installed. Accelerate itself would only warn and ignore the tracker.
    """
    text = config.training.tracker
    if text == "none":
        return []
    names = [name.strip() for name in text.split(",")]
    known, installed = ["all", *sorted(LOGGER_TYPE_TO_CLASS)], [*map(str, get_available_trackers())]
    installed += ["all"] if installed else []
    for name in names:
        require(name in known, f"--training.tracker {text}: {name!r} is unknown; choose none, {', '.join(known)}")
    missing = [name for name in names if name not in installed]
    packages = " ".join(missing)
    require(not missing, f"--training.tracker {text}: not installed; pip install {packages}, or leave it out")
    return names


def start_trackers(accelerator: Accelerator, config: Config, options: dict[str, Any]) -> None:
    """Start the experiment trackers of a run, on its main process.

    Args:
        accelerator: Accelerator of the run.
        config: Configuration of the run.
        options: Options that the trackers record, by name.

    Raises:
        UserError: If a tracker cannot write a file, or does not start, for example because it needs a login. All
            processes raise this error.
    """
    with one_error(accelerator), write_errors(lambda: resume_advice(Path(config.out))):
        try:
            accelerator.init_trackers("fingerprint_accel", config=options)
        except Exception as error:  # each tracker raises errors of its own
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                raise
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            text = config.training.tracker
            raise UserError(
                f"--training.tracker {text}: does not start ({reason[0]}); correct this, or leave it out"
            ) from error


def resume_advice(folder: Path) -> str:
    """Return a message that explains how to resume a run, or states that the run has not saved a checkpoint."""
    names = checkpoint_names(folder)
    if not names:
        return "nothing was saved yet"
    return f"to resume from {names[-1]}, run the same command with --resume auto"


@contextlib.contextmanager
def holding(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Context manager that holds the lock of a run folder, so that no other run writes to this folder.

    The main process holds the lock for all processes of the run.

    Raises:
        UserError: If another run holds the lock. All processes raise this error.
        KeyboardInterrupt: If the user presses Ctrl-C in the `with` block. The message explains how to resume.
    """
    refusal = f"{folder}: another run is writing to it; wait until it ends, stop it, or choose another --out"
    with contextlib.ExitStack() as stack:
        with one_error(accelerator):
            if accelerator.is_main_process:
                with write_errors():
                    stack.enter_context(exclusive_lock(folder / "run.lock", refusal))
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(resume_advice(folder)) from None


class FolderWatch:
    """Checks that a run folder was not moved or deleted since training began. A save would create it a second time.

    Args:
        folder: The run folder, which must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The number of a deleted folder can be used again, but not while the folder is open.
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def check(self) -> None:
        """Raise `UserError` if the folder was moved or deleted."""
        try:
            there = os.path.samestat(self.folder.stat(), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            there = False
        require(
            there,
            f"{self.folder}: was moved or deleted during training; give its new place to --out, and add --resume auto",
        )

    def close(self) -> None:
        """Stop watching the folder."""
        os.close(self._descriptor)
