"""Whether a model was trained on the fingers it is tested on: error rates on those say nothing about others."""

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

BAND = 12  # rows in the middle of a canvas that are looked at first: about a page of memory
SLOW = 20_000  # prints from which on progress is shown
MOST_ANCESTORS = 10


@dataclass(frozen=True)
class Shared:
    """What a training set has in common with the test set.

    Attributes:
        training: its dataset folder or source, as the run names it.
        known: whether it could be looked at.
        fingers: test fingers whose key a finger has that was trained on (held-out fingers do not count).
        prints: test prints that were trained on, by their exact image; None where canvases differ or none is stored.
        by_session: sessions were held out for validation, so that training and validation prints share fingers.
    """

    training: str
    known: bool
    fingers: int = 0
    prints: int | None = None
    by_session: bool = False


@dataclass(frozen=True)
class Overlap:
    """Of every training set in a model's history, newest first.

    Attributes:
        sets: as far as the history is known.
        complete: whether the history could be followed to random weights.
        test_fingers, test_prints: size of the test set.
    """

    sets: list[Shared] = field(default_factory=list)
    complete: bool = False
    test_fingers: int = 0
    test_prints: int = 0

    @property
    def found(self) -> bool:
        """Whether anything is in common."""
        return any(shared.fingers or shared.prints for shared in self.sets)

    @property
    def known(self) -> bool:
        """Whether every training set could be looked at."""
        return self.complete and all(shared.known for shared in self.sets)

    def sentence(self) -> str:
        """One line for the table and the page."""
        parts = []
        for shared in self.sets:
            if shared.prints:
                what = f"{shared.prints:,} of {self.test_prints:,} prints were trained on"
                parts.append(f"{what}, {shared.fingers:,} of {self.test_fingers:,} finger keys in common")
            elif shared.fingers:
                same = "and no print is the same" if shared.prints == 0 else "prints not comparable"
                parts.append(f"{shared.fingers:,} of {self.test_fingers:,} finger keys in common, {same}")
                parts[-1] += "; the run held out sessions, not fingers" if shared.by_session else ""
            else:
                parts.append("nothing in common" if shared.known else "not at hand")
            parts[-1] += f" ({shared.training})"
        if not self.complete:
            parts.append("not stated" if not parts else "earlier training not known")
        sentence = "; ".join(parts)
        return f"WARNING: {sentence}" if self.found else sentence if self.known else f"unknown: {sentence}"

    def values(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {**asdict(self), "found": self.found, "known": self.known}


def training_overlap(model: Path | str, shards: Shards) -> Overlap:
    """Looks up what a model was trained on, as far as its run and those it started from are there, and compares.

    Args:
        model: bundled model, run folder, checkpoint, or exported folder.
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
        sets.append(Shared(f"bundled model {name}; its card names the prints", known=False))
        complete = True
    return Overlap(sets, complete, shards.info.fingers, len(shards))


def _compare(config: Config, shards: Shards) -> Shared:
    """One training set with the test set."""
    prints, by_session = None, False
    if is_source(config.data):  # a synthetic finger has the same name wherever it is made
        spec = parse_source(config.data)
        numbers = range(spec.first, spec.first + spec.fingers)
        keys = {finger_name(spec.seed, number, spec.style.siblings) for number in numbers}
    else:
        try:
            training = open_dataset(config.data)
            split = split_prints(training, config.reading)
        except UserError:  # the dataset or the csv file of `split_by` is gone
            return Shared(config.data, known=False)
        trained = ~split.validation
        keys = {training.key_of_finger[finger] for finger in np.unique(training.fingers[trained])}
        prints = common_prints(training, trained, shards)
        by_session = split.unit == SESSION
    return Shared(config.data, True, sum(key in keys for key in shards.key_of_finger), prints, by_session)


def common_prints(training: Shards, trained: np.ndarray, shards: Shards) -> int | None:
    """Test prints that are, byte for byte, among the training prints; None where canvases are of different kinds.

    One pass over each: of every training print only a band is read, unless it equals that of a test print.

    Args:
        training: the training set.
        trained: (N,) bool, its rows that were trained on.
        shards: the test set.
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
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
