"""Choose the fingers to merge from several datasets, and assign their keys and impression numbers.

A finger key is the name of a finger in its dataset.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError, require


def selected_rows(sources: Sequence[Shards], keep: str, drop: str) -> np.ndarray:
    """Return an (N,) bool mask of the rows to merge, where N is the total number of rows in all source datasets.

    Args:
        sources: the datasets.
        keep: regular expression that the whole finger key must match; "" keeps every finger.
        drop: regular expression; fingers whose whole key matches are left out. "" drops none.

    Raises:
        UserError: if an expression is invalid or matches no finger, or if no finger is left.
    """
    mask = np.ones(sum(len(source) for source in sources), bool)
    for option, text, wanted in (("--keep", keep, True), ("--drop", drop, False)):
        if not text:
            continue
        pattern = _compiled(option, text)
        found = [np.array([bool(pattern.fullmatch(key)) for key in source.key_of_finger]) for source in sources]
        matching = np.concatenate([of_source[source.fingers] for source, of_source in zip(sources, found, strict=True)])
        example = sources[0].key_of_finger[0]
        require(
            bool(matching.any()),
            f"{option} {text!r}: no finger key matches; the expression must match a whole key, such as {example!r}",
        )
        mask &= matching == wanted
    require(bool(mask.any()), f"--keep {keep!r} --drop {drop!r}: no finger is left")
    return mask


def _compiled(option: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{option} {text!r}: not a regular expression ({error})") from error


def kept_apart(sources: Sequence[Shards]) -> list[list[str]]:
    """Return the finger keys of each dataset, changed so that no two datasets have a key in common.

    A key that occurs in several datasets is prefixed with the folder name of its dataset. If two folders have the
    same name, a suffix distinguishes them, for example `db1/101` and `db1-2/101`.
    """
    count = Counter(itertools.chain.from_iterable(source.key_of_finger for source in sources))
    prefixes: set[str] = set()
    result = []
    for source in sources:
        if all(count[key] == 1 for key in source.key_of_finger):
            result.append(source.key_of_finger)
            continue
        for number in itertools.count(1):
            prefix = source.folder.name if number == 1 else f"{source.folder.name}-{number}"
            keys = [key if count[key] == 1 else f"{prefix}/{key}" for key in source.key_of_finger]
            taken = any(count[key] > 1 and f"{prefix}/{key}" in count for key in source.key_of_finger)
            if prefix not in prefixes and not taken:
                break
        prefixes.add(prefix)
        result.append(keys)
    return result


def renumbered(finger: np.ndarray, impression: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Return impression numbers that are unique within each finger, after fingers of several datasets were joined.

    If several prints of a finger have the same number, the print of the earliest source keeps it. The other prints get
    the numbers after the highest number of the finger.

    Args:
        finger: (N,) int64 index of the finger of each print, from 0.
        impression: (N,) int64 impression number of each print.
        origin: (N,) index of the source dataset of each print.

    Returns:
        (N,) int64 impression numbers.

    Raises:
        UserError: if a new number does not fit into 64 bits.
    """
    order = np.lexsort((impression, origin, finger))
    who, number = finger[order], impression[order].copy()
    values = np.unique(number, return_inverse=True)[1]  # ranks fit into 32 bits, unlike impression numbers
    _, first = np.unique(who << 32 | values, return_index=True)  # first occurrence: the print of the earliest source
    late = np.ones(len(order), bool)  # True if an earlier print of the finger has the same number
    late[first] = False
    starts = np.flatnonzero(np.diff(who, prepend=-1))
    highest = np.repeat(np.maximum.reduceat(number, starts), np.diff(starts, append=len(who)))
    before = np.cumsum(late) - late  # number of late prints of all fingers before each print
    rank = before - np.repeat(before[starts], np.diff(starts, append=len(who)))
    number[late] = (highest + 1 + rank)[late]
    require(
        bool((number[late] > highest[late]).all()),  # false after an overflow
        f"impression {highest.max()}: no higher number is left for a joined finger; import with smaller numbers",
    )
    result = np.empty_like(impression)
    result[order] = number
    return result
