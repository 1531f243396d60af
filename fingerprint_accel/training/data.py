"""Open the training and validation prints of a run, from a dataset folder or from a synthetic source.

A synthetic source such as `synth:fingers=20000` renders prints during training.
"""

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
    """Open the training prints of a run, and its validation prints.

    Args:
        config: Configuration of the run.
        accelerator: Accelerator of the run. It also prints notes about the data on the main process.

    Returns:
        Training prints, and validation prints or None if the run has no validation.

    Raises:
        UserError: If the data does not suit the configuration, or too few prints are left for training or validation.
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
    """Open the training data `config.data`, and hold out a part of it for validation.

    Returns:
        Training prints, held-out prints or None, and a note for the user about the split or "".
    """
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
    """Check whether the training prints have the minutiae that the minutia-map loss needs.

    A minutia map is an image of the positions and directions of minutiae, which the network learns to predict.

    Returns:
        A note for the user if fewer than half of the prints have minutiae, else "".

    Raises:
        UserError: If no training print has minutiae, and the network has a minutia branch.
    """
    model = config.model
    # With a frozen trunk, the decoder of minutia maps is frozen too, and the loss would train nothing.
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
    """Open a validation dataset and return all its prints.

    Args:
        folder: Folder of the validation dataset.
        trained: Format of the training prints.
        trained_on: Name of the training data, for error messages.

    Raises:
        UserError: If the prints have another resolution (ppi), size (canvas) or enhancement than the training prints.
            Also if the dataset has only one finger, or no finger with two prints.
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
    """Group the training fingers into families of siblings, and return the class labels of each family.

    Siblings are synthetic fingers that differ only in their minutiae. A key is the name of a finger in a dataset. In
    the list of all keys of the dataset in sorted order, every `size` consecutive fingers are a family.

    Args:
        train: The training prints.
        size: Number of fingers in a family.
        data: Name of the training data, for error messages.

    Returns:
        (families, size) int64 class labels, a row for each family.

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
