"""Fingers and prints of a test set that a model was also trained on.

Error rates on fingers of the training data do not predict error rates on other fingers. A finger key is the name of a
finger in a dataset. An ancestor of a model is a model whose weights it was initialized from.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fingerprint_accel.config import Config, load_yaml
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.data.splitting import SESSION, split_prints
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.history import find_run
from fingerprint_accel.models.saved_model import BUNDLED, bundled_models
from fingerprint_accel.synthesis.skin import finger_name
from fingerprint_accel.synthesis.source import is_source, parse_source

BAND = 12  # height of the central band of an image that is compared first, pixels: about a page of memory
SLOW = 20_000  # number of prints from which a progress bar is shown
MOST_ANCESTORS = 10


@dataclass(frozen=True)
class Shared:
    """Fingers and prints that the test set shares with one training set.

    Attributes:
        training: dataset folder of the training set, or description of its synthetic fingers, as configured in the run.
        known: whether the training set could be opened.
        fingers: number of test fingers that have the same key as a finger of the training prints. Fingers that the run
            used only for validation are ignored.
        prints: number of test prints whose image is identical to the image of a training print. None if the images of
            the two sets differ in size, resolution or enhancement, or if the training set does not store images.
        by_session: whether the run held out recording sessions for validation, so that its training and validation sets
            share fingers.
    """

    training: str
    known: bool
    fingers: int = 0
    prints: int | None = None
    by_session: bool = False


@dataclass(frozen=True)
class Overlap:
    """Fingers and prints that the test set shares with the training sets of a model and of its ancestors.

    Attributes:
        sets: overlap with each training set. The training set of the model is first, then those of its known ancestors,
            from the newest to the oldest ancestor.
        complete: whether all ancestors are known, back to one that was initialized with random weights.
        test_fingers: number of fingers of the test set.
        test_prints: number of prints of the test set.
    """

    sets: list[Shared] = field(default_factory=list)
    complete: bool = False
    test_fingers: int = 0
    test_prints: int = 0

    @property
    def found(self) -> bool:
        """Whether the test set shares any finger or print with a training set."""
        return any(shared.fingers or shared.prints for shared in self.sets)

    @property
    def known(self) -> bool:
        """Whether all training sets are known and could be opened."""
        return self.complete and all(shared.known for shared in self.sets)

    def sentence(self) -> str:
        """Return the overlap as one line of text, which starts with "WARNING" if any finger or print is shared."""
        parts = []
        for shared in self.sets:
            if shared.prints:
                prints = f"the model was trained on {shared.prints:,} of {self.test_prints:,} prints"
                parts.append(f"{prints}, {shared.fingers:,} of {self.test_fingers:,} finger keys in common")
            elif shared.fingers:
                same = "no print in common" if shared.prints == 0 else "prints cannot be compared"
                parts.append(f"{shared.fingers:,} of {self.test_fingers:,} finger keys in common, {same}")
                parts[-1] += "; the run held out sessions, not fingers" if shared.by_session else ""
            else:
                parts.append("nothing in common" if shared.known else "training data not found")
            parts[-1] += f" ({shared.training})"
        if not self.complete:
            parts.append("training data not recorded" if not parts else "earlier training data not recorded")
        sentence = "; ".join(parts)
        return f"WARNING: {sentence}" if self.found else sentence if self.known else f"unknown: {sentence}"

    def values(self) -> dict[str, Any]:
        """Return the overlap as a dictionary, for `metrics.json`."""
        return {**asdict(self), "found": self.found, "known": self.known}


def training_overlap(model: Path | str, shards: Shards) -> Overlap:
    """Find the fingers and prints that a test set shares with the training sets of a model and of its ancestors.

    Training sets are read from the configurations in run folders. If the model does not lie in a run folder, the
    overlap is unknown.

    Args:
        model: bundled model, run folder, checkpoint folder or exported model folder.
        shards: the test set.
    """
    sets: list[Shared] = []
    complete = False
    place: Path | str = model
    for _ in range(MOST_ANCESTORS):
        run = find_run(Path(place))
        if run is None:
            break
        try:
            config = load_yaml(run / "config.yaml", stored=True)
        except UserError:
            break
        if config.data:
            sets.append(_compare(config, shards))
        if not config.model.init_from:
            complete = bool(config.data)
            break
        place = config.model.init_from
    name = Path(place).name
    if not complete and name in bundled_models() and (str(place) == name or Path(place).parent == BUNDLED):
        sets.append(Shared(f"bundled model {name}: see its model card", known=False))
        complete = True
    return Overlap(sets, complete, shards.info.fingers, len(shards))


def _compare(config: Config, shards: Shards) -> Shared:
    """Find the fingers and prints that the test set shares with the training set of one run.

    Args:
        config: configuration of the run.
        shards: the test set.
    """
    prints, by_session = None, False
    if is_source(config.data):  # synthetic fingers are named by their seed and number
        spec = parse_source(config.data)
        numbers = range(spec.first, spec.first + spec.fingers)
        family = spec.style.siblings
        keys = {finger_name(spec.seed, number, family, named) for number in numbers for named in (False, True)}
    else:
        try:
            training = open_dataset(config.data)
            split = split_prints(training, config.reading)
        except UserError:  # the dataset or the csv file of `split_by` no longer exists
            return Shared(config.data, known=False)
        trained = ~split.validation
        keys = {training.key_of_finger[finger] for finger in np.unique(training.fingers[trained])}
        prints = common_prints(training, trained, shards)
        by_session = split.unit == SESSION
    return Shared(config.data, True, sum(key in keys for key in shards.key_of_finger), prints, by_session)


def common_prints(training: Shards, trained: np.ndarray, shards: Shards) -> int | None:
    """Count the test prints whose image is byte-identical to the image of a training print.

    Each dataset is read once. A training image is read completely only if its central band equals the central band of a
    test image.

    Args:
        training: the training set.
        trained: (N,) bool, true for the rows of the training set that were trained on.
        shards: the test set.

    Returns:
        The count; None if the images of the datasets differ in size, resolution or enhancement.
    """
    ours, theirs = training.info, shards.info
    if (ours.canvas, ours.ppi, ours.enhanced) != (theirs.canvas, theirs.ppi, theirs.enhanced):
        return None
    band = slice((ours.canvas - BAND) // 2, (ours.canvas + BAND) // 2)
    rows_of: dict[bytes, list[int]] = {}
    for row in range(len(shards)):
        rows_of.setdefault(_hash(shards.image(row)[band]), []).append(row)
    whole = {row: _hash(shards.image(row)) for rows in rows_of.values() for row in rows}
    found: set[int] = set()
    rows = np.flatnonzero(trained).tolist()
    for row in tqdm(rows, desc="comparing with training prints", unit="print", disable=len(rows) < SLOW, leave=False):
        image = training.image(row)
        candidates = rows_of.get(_hash(image[band]))
        if candidates:
            digest = _hash(image)
            found.update(candidate for candidate in candidates if whole[candidate] == digest)
    return len(found)


def _hash(pixels: np.ndarray) -> bytes:
    """Return a 16-byte hash of the pixels of an image."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
