"""Choose the prints of a dataset to hold out for validation: all prints of some fingers, subjects or sessions.

These fingers, subjects or sessions are called groups. The choice depends on the names of the groups alone. It is the
same for any order of shards, number of processes and training seed. If data is added, each existing group stays in the
training set or in the validation set.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fingerprint_accel.config_prints import ReadingConfig
from fingerprint_accel.data.csv_file import DAMAGED_CSV, open_csv
from fingerprint_accel.data.order import mix64
from fingerprint_accel.data.persons import WITH_POSITION
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.untrusted import printable, reason_of

FINGER, SUBJECT, SESSION = "finger", "subject", "session"
NAMED_BY = {SUBJECT: "finger_key", SESSION: "source"}  # column of the dataset that identifies the group of a print
FEWEST = 2  # minimum number of fingers with two prints each in the validation set, and of fingers in the training set


@dataclass(frozen=True)
class Split:
    """Training and validation prints of a dataset.

    Attributes:
        unit: Kind of the groups that are held out as a whole: `finger`, `subject` or `session`.
        validation: (N,) bool for the N rows of the dataset, True for the rows that are held out.
        groups: Number of groups (fingers, subjects or sessions) in the dataset.
        held_out: Number of groups that are held out.
        fingers: Number of fingers with prints that are held out.
        also_trained: Number of fingers with held-out prints and training prints; 0 unless sessions are held out.
        extended: Whether more groups are held out than requested, because the requested share is too small to measure
            error rates.
    """

    unit: str
    validation: np.ndarray
    groups: int
    held_out: int
    fingers: int
    also_trained: int
    extended: bool

    def note(self, fold: str = "") -> str:
        """Return a line of text that describes the split to the user, or "" for a split by single fingers.

        Args:
            fold: Fold of a cross-validation, `reading.fold`.
        """
        if self.unit == FINGER and not fold and not self.extended:
            return ""
        prints = int(self.validation.sum())
        parts = f"{prints} prints" if self.unit == FINGER else f"{self.fingers} fingers, {prints} prints"
        who = f"fold {fold}" if fold else "validation"
        line = f"{who} holds out {self.held_out} of {self.groups} {self.unit}s ({parts})"
        if self.extended:
            line += ", more than the share asked for: error rates need two fingers with two prints each"
        if self.unit == SESSION:
            line += (
                f"; {self.also_trained} of these fingers have training prints from other sessions, so error rates are "
                "those of known fingers in new sessions"
            )
        return line


def split_prints(shards: Shards, reading: ReadingConfig) -> Split:
    """Choose the prints to hold out for validation.

    Args:
        shards: The dataset.
        reading: `validation_fraction` or `fold` determines how many groups are held out, and `split_by` determines the
            kind of the groups. No prints are held out if `validation_data` is given, or if the fraction is 0.

    Raises:
        UserError: If `split_by` does not fit the dataset, or too few prints are left for training or validation.
    """
    unit, names, codes = _groups(shards, reading.split_by)
    hashes, useful = _hashes(names), _useful(shards.fingers, codes, len(names))
    share = 0.0 if reading.validation_data else reading.validation_fraction
    extended = False
    if reading.fold:
        number, folds = map(int, reading.fold.split("/"))
        rank = np.empty(len(names), np.int64)
        rank[np.lexsort((hashes, ~useful))] = np.arange(len(names))  # each fold gets an equal part of the useful groups
        held_out = rank % folds == number - 1
    else:
        asked = hashes < np.uint64(min(2**64 - 1, int(share * 2**64)))
        held_out = _enough(asked, hashes, useful, shards.fingers, codes) if share > 0 else asked
        extended = bool((held_out != asked).any())
    validation = held_out[codes]
    inside, outside = (
        np.bincount(shards.fingers[rows], minlength=shards.info.fingers) for rows in (validation, ~validation)
    )
    if (reading.fold or share > 0) and min((inside >= 2).sum(), (outside > 0).sum()) < FEWEST:
        counts = _counted(len(names), unit) + (f", {_counted(len(inside), FINGER)}" if unit != FINGER else "")
        paired = _counted((inside + outside >= 2).sum(), FINGER)
        remedy = "lower --reading.validation-fraction, or set it to 0 to train without validation"
        by = f", split by {reading.split_by}" if unit != FINGER else ""
        raise UserError(
            f"{shards.folder}{by}: {counts}, {paired} with two prints or more: too few to train on two fingers and to "
            f"hold out two with two prints each; add prints, or {'use fewer --folds' if reading.fold else remedy}"
        )
    shared = (inside > 0) & (outside > 0)
    held = int(held_out.sum())
    return Split(unit, validation, len(names), held, int((inside > 0).sum()), int(shared.sum()), extended)


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" + ("s" if number != 1 else "")


def _hashes(names: Sequence[str]) -> np.ndarray:
    """Return a (G,) uint64 array with a hash of each of G names. The hashes are uniformly distributed."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return mix64(np.frombuffer(digests, np.uint64))


def _useful(fingers: np.ndarray, codes: np.ndarray, groups: int) -> np.ndarray:
    """Return a (G,) bool mask of the groups that contain a print of a finger with at least two prints.

    Args:
        fingers: (N,) finger index of each print.
        codes: (N,) group index of each print.
        groups: Number of groups, G.
    """
    useful = np.zeros(groups, bool)
    useful[codes[np.bincount(fingers)[fingers] >= 2]] = True
    return useful


def _enough(
    held_out: np.ndarray, hashes: np.ndarray, useful: np.ndarray, fingers: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """Add groups to the held-out groups, in order of their hashes, until two fingers have two held-out prints each.

    Args:
        held_out: (G,) bool, groups that are already held out.
        hashes: (G,) hash of each group.
        useful: (G,) bool, result of `_useful`. Other groups are not added.
        fingers: (N,) finger index of each print.
        codes: (N,) group index of each print.

    Returns:
        (G,) bool, groups to hold out.
    """
    counts = np.bincount(fingers[held_out[codes]], minlength=int(fingers.max()) + 1)
    with_pairs = int((counts >= 2).sum())
    if with_pairs >= FEWEST:
        return held_out
    held_out = held_out.copy()
    rows = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(hashes)))
    for group in np.argsort(hashes, kind="stable"):
        if held_out[group] or not useful[group]:
            continue
        held_out[group] = True
        here, more = np.unique(fingers[rows[ends[group - 1] if group else 0 : ends[group]]], return_counts=True)
        before = counts[here]
        counts[here] += more
        with_pairs += int(((before < 2) & (counts[here] >= 2)).sum())
        if with_pairs >= FEWEST:
            break
    return held_out


def _groups(shards: Shards, split_by: str) -> tuple[str, list[str], np.ndarray]:
    """Return the unit of the groups (see `Split`), the names of the groups, and an (N,) group index of each print."""
    if not split_by:
        return FINGER, shards.key_of_finger, shards.fingers
    unit, group_of = (_table if split_by.lower().endswith(".csv") else _pattern)(split_by)
    if unit == SUBJECT:
        names, rows = shards.key_of_finger, shards.fingers
    else:
        encoded = shards.table["source"].combine_chunks().dictionary_encode()
        names, rows = encoded.dictionary.to_pylist(), np.from_dlpack(encoded.indices)
    groups = [group_of(name) or "" for name in names]
    if "" in groups:
        what = "finger keys" if unit == SUBJECT else "sources"
        raise UserError(
            f"--reading.split-by {split_by}: no {unit} for {groups.count('')} of {len(names)} {what} of "
            f"{shards.folder}, as {names[groups.index('')]}; give a regular expression with a group (?P<{unit}>...), "
            f"or a file FILE.csv with the columns {NAMED_BY[unit]},{unit}"
        )
    number = {group: place for place, group in enumerate(sorted(set(groups)))}
    return unit, list(number), np.array([number[group] for group in groups])[rows]


def _pattern(text: str) -> tuple[str, Callable[[str], str | None]]:
    """Return the unit of the groups in a regular expression, and a function that returns the group of a name.

    Args:
        text: Regular expression with a group `subject` or `session`. The text `subject` stands for `WITH_POSITION`.
    """
    option = f"--reading.split-by {text}"
    try:
        pattern = re.compile(WITH_POSITION if text == SUBJECT else text)
    except re.error as error:
        raise UserError(f"{option}: not a regular expression ({error})") from error
    units = [unit for unit in NAMED_BY if unit in pattern.groupindex]
    if len(units) != 1:
        raise UserError(
            f"{option}: give subject, a regular expression with a group (?P<subject>...) or (?P<session>...), or a "
            "file FILE.csv"
        )

    def find(name: str) -> str | None:
        match = pattern.search(name)
        return match[units[0]] if match else None

    return units[0], find


def _table(file: str) -> tuple[str, Callable[[str], str | None]]:
    """Return the unit of the groups in a csv file, and a function that looks up the group of a name.

    The columns of the file are `finger_key,subject` or `source,session`.
    """
    option = f"--reading.split-by {file}"
    groups: dict[str, str] = {}
    try:
        with open_csv(Path(file)) as reader:
            columns = reader.fieldnames or []
            units = [unit for unit, column in NAMED_BY.items() if unit in columns and column in columns]
            require(len(units) == 1, f"{option}: give it the columns finger_key,subject or source,session")
            for line in reader:
                name, group = line[NAMED_BY[units[0]]], line[units[0]]
                if groups.setdefault(name, group) != group:
                    who, *two = (printable(text or "", 40) for text in (name, groups[name], group))
                    raise UserError(f"{option}: {who} has the {units[0]}s {' and '.join(two)}; keep one of the lines")
    except OSError as error:
        raise UserError(f"{option}: cannot be read ({error.strerror}); give an existing file") from error
    except DAMAGED_CSV as error:
        raise UserError(f"{option}: not a csv file in UTF-8 ({reason_of(error)}); save it as one") from error
    return units[0], groups.get
