"""The prints of a run: training and validation prints, from a dataset folder or from a synthetic source."""

from __future__ import annotations

import numpy as np
from accelerate import Accelerator

from fingerprint_accel.config import Config
from fingerprint_accel.data.loader import Subset, TrainingLoader, subset_of_prints
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.splitting import split_prints
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.synthesis.source import RenderLoader, SyntheticPrints, is_source, open_source

PrintSource = Subset | SyntheticPrints
PrintLoader = TrainingLoader | RenderLoader


def open_data(config: Config, accelerator: Accelerator) -> tuple[PrintSource, PrintSource | None]:
    """Open the training prints, and the validation prints if there are any.

    Raises:
        UserError: If the data cannot be used, or too few prints are left for training or validation.
    """
    reading = config.reading
    train, validation, note = _opened(config, accelerator)
    if config.preprocess.enhance and train.info.enhanced:
        raise UserError(f"{config.data}: prints are enhanced already; leave out --preprocess.enhance")
    if reading.validation_data:
        validation = _all_of(reading.validation_data, train.info, config.data)
    if train.classes < 2:
        raise UserError(f"{config.data}: {train.classes} fingers to train on, needs two; add prints of other fingers")
    for line in filter(None, (note, _check_minutiae(train, config))):
        accelerator.print(line)
    return train, validation


def _opened(config: Config, accelerator: Accelerator) -> tuple[PrintSource, PrintSource | None, str]:
    """Open `config.data`: training prints, prints that are held out of it, and a note for the user."""
    reading, data = config.reading, config.data
    share = 0.0 if reading.validation_data else reading.validation_fraction
    if is_source(data):
        for name in ("split_by", "fold"):
            problem = f"{data}: each synthetic finger is a subject of its own: leave out reading.{name}"
            require(not getattr(reading, name), problem)
        rank, processes = accelerator.process_index, accelerator.num_processes
        return *open_source(data, share, accelerator.device, rank, processes, accelerator.gather), ""
    shards = open_dataset(data)
    split = split_prints(shards, reading)
    held_out = subset_of_prints(shards, split.validation) if split.held_out else None
    return subset_of_prints(shards, ~split.validation), held_out, split.note(reading.fold)


def _check_minutiae(train: PrintSource, config: Config) -> str:
    """Return a note if fewer than half of the training prints have minutiae, else "".

    Raises:
        UserError: If no training print has minutiae, but a branch has nothing else to learn its attention from.
    """
    model = config.model
    # a frozen trunk includes the map decoder, so the map loss would train nothing
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
        "`import ... --minutiae FOLDER` reads .xyt files of mindtct and ISO templates, also those beside the images; "
        f"{without} trains without minutiae"
    )


def _all_of(folder: str, trained: PrintInfo, trained_on: str) -> Subset:
    """Open all prints of a validation dataset.

    Raises:
        UserError: If the prints have another ppi, canvas or enhancement than the training prints, or no mated pair.
    """
    shards = open_dataset(folder)
    for what in ("ppi", "canvas"):
        ours, theirs = getattr(trained, what), getattr(shards.info, what)
        if ours != theirs:
            option = "--dataset-ppi" if what == "ppi" else "--canvas"
            raise UserError(f"{folder}: {what} {theirs}, but {trained_on} has {ours}; `merge` it with {option} {ours}")
    if trained.enhanced != shards.info.enhanced:
        which, other = (trained_on, folder) if trained.enhanced else (folder, trained_on)
        raise UserError(f"{which}: enhanced, but {other} is not; `merge {other} --enhance` enhances it")
    prints = np.bincount(shards.fingers)
    if len(prints) < 2 or prints.max() < 2:
        raise UserError(f"{folder}: validation needs two fingers, and two prints of one of them; import more prints")
    return subset_of_prints(shards, np.ones(len(shards), bool))


def sibling_labels(train: PrintSource, size: int, data: str) -> np.ndarray:
    """Return the labels (families, size) of the fingers with consecutive keys.

    Args:
        train: The training prints.
        size: Number of fingers in a family of siblings.
        data: Name of the training data, for messages.

    Raises:
        UserError: If a family is incomplete, or fingers have different numbers of impressions.
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
            f"{data}: --reading.siblings needs complete families of {size}, and as many impressions of each finger; do "
            "not hold fingers out (--reading.validation-data FOLDER), or set --reading.siblings 1"
        )
    return order.reshape(-1, size)
