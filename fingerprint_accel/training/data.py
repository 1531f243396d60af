"""Which prints a run trains on and validates on: from a dataset folder or from a synthetic source."""

from __future__ import annotations

import numpy as np
from accelerate import Accelerator

from fingerprint_accel.config import Config
from fingerprint_accel.data.loader import Subset, TrainingLoader, subset_of_fingers
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.data.shards import open_dataset, split_fingers
from fingerprint_accel.errors import UserError
from fingerprint_accel.synthesis.source import RenderLoader, SyntheticPrints, is_source, open_source

PrintSource = Subset | SyntheticPrints
PrintLoader = TrainingLoader | RenderLoader


def open_data(config: Config, accelerator: Accelerator) -> tuple[PrintSource, PrintSource | None]:
    """Training and validation prints: by finger, never by print.

    Raises:
        UserError: data that cannot be used, nothing left to train on, or no mated pair to validate on.
    """
    reading = config.reading
    apart = bool(reading.validation_data)
    share = 0.0 if apart else reading.validation_fraction
    train: PrintSource
    validation: PrintSource | None
    if is_source(config.data):
        train, validation = open_source(
            config.data,
            share,
            accelerator.device,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.gather,
        )
    else:
        train, validation = _split(config.data, share)
    if config.preprocess.enhance and train.info.enhanced:
        raise UserError(f"{config.data}: enhanced already; leave out --preprocess.enhance")
    if apart:
        validation = _all_of(reading.validation_data, train.info, config.data)
    if validation is not None:
        _check_validation(validation, reading.validation_data or config.data)
    if train.classes < 2:
        raise UserError(f"{config.data}: {train.classes} fingers to train on, needs two; lower the validation fraction")
    if note := _check_minutiae(train, config):
        accelerator.print(note)
    return train, validation


def _check_minutiae(train: PrintSource, config: Config) -> str:
    """A note where most training prints have no minutiae to learn from, else nothing.

    Raises:
        UserError: no training print has minutiae, but a branch would learn from nothing else what to look at.
    """
    model = config.model
    # a frozen trunk includes the map decoder, so the map loss would change nothing
    learns_maps = model.needs_minutia_maps and config.loss.minutia_map_weight > 0 and not model.trunk_frozen
    found, total = train.with_minutiae, len(train)
    if not learns_maps or 2 * found >= total:
        return ""
    if found or model.cells:
        return f"{config.data}: {found} of {total} training prints have minutiae; only these train the minutia map"
    texture = "LocTex" if model.variant.startswith("Loc") else "Tex"
    without = "--loss.minutia-map-weight 0" if model.init_from else f"--model.variant {texture}"
    raise UserError(
        f"{config.data}: none of the {total} training prints has minutiae, but {model.variant} learns from them; "
        "`import ... --minutiae FOLDER` reads mindtct's .xyt files and ISO templates, also beside the images; "
        f"{without} trains without minutiae"
    )


def _split(folder: str, held_out: float) -> tuple[Subset, Subset | None]:
    """A dataset's training fingers, and those that are held out."""
    shards = open_dataset(folder)
    out = np.zeros(len(shards.key_of_finger), bool)
    if held_out > 0:
        out = split_fingers(shards.key_of_finger, held_out)
    return subset_of_fingers(shards, ~out), subset_of_fingers(shards, out) if held_out > 0 else None


def _all_of(folder: str, trained: PrintInfo, trained_on: str) -> Subset:
    """Every print of a validation dataset that fits the training data."""
    shards = open_dataset(folder)
    for what in ("ppi", "canvas"):
        ours, theirs = getattr(trained, what), getattr(shards.info, what)
        if ours != theirs:
            option = "--dataset-ppi" if what == "ppi" else "--canvas"
            raise UserError(f"{folder}: {what} {theirs}, but {trained_on} has {ours}; `merge` it with {option} {ours}")
    if trained.enhanced != shards.info.enhanced:
        which, other = (trained_on, folder) if trained.enhanced else (folder, trained_on)
        raise UserError(f"{which}: enhanced, but {other} is not; `merge {other} --enhance` makes them alike")
    return subset_of_fingers(shards, np.ones(len(shards.key_of_finger), bool))


def sibling_labels(train: PrintSource, size: int, data: str) -> np.ndarray:
    """(families, size) labels of the fingers whose keys follow each other.

    Raises:
        UserError: a family is not whole, or fingers have more or fewer impressions than others.
    """
    if isinstance(train, SyntheticPrints):
        place = train.numbers.cpu().numpy()
    else:
        rank = np.argsort(np.argsort(np.array(train.shards.key_of_finger)))
        place = rank[np.unique(train.shards.fingers[train.rows])]
    order = np.argsort(place)
    whole = (np.unique(place // size, return_counts=True)[1] == size).all()
    if not whole or len(np.unique(np.bincount(train.labels))) > 1:
        raise UserError(
            f"{data}: siblings come together only where every family of {size} is whole and all fingers have as many "
            "impressions: hold no fingers out (--reading.validation-data FOLDER), or set --reading.siblings 1"
        )
    return order.reshape(-1, size)


def _check_validation(validation: PrintSource, data: str) -> None:
    prints_per_finger = np.bincount(validation.labels) if len(validation) else np.zeros(1)
    if len(prints_per_finger) < 2 or prints_per_finger.max() < 2:
        raise UserError(
            f"{data}: validation got {validation.classes} fingers, needs two, "
            "and two prints of one; raise --reading.validation-fraction, or set it to 0 to train without validation"
        )
