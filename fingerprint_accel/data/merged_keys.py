"""Finger keys and impressions of merged datasets: which fingers are taken, and what they are called."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError, require


def selected_rows(sources: Sequence[Shards], keep: str, drop: str) -> np.ndarray:
    """Return a mask (N,) of the rows to merge, over the rows of all sources in order.

    Args:
        sources: the datasets.
        keep: regular expression that the whole finger key must match; "" keeps every finger.
        drop: regular expression; fingers whose whole key matches are left out. "" drops none.

    Raises:
        UserError: an invalid expression, one that matches no finger, or no finger left.
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
    """The keys of each source; those that another source has too are prefixed with the source's name.

    Sources of one name are told apart by numbers: `db1/101`, `db1-2/101`.
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
    """(N,) int64 impressions in which those that an earlier source has taken go on behind the finger's highest.

    Args:
        finger, impression, origin: (N,) finger, impression, and number of the source of each print.
    """
    order = np.lexsort((impression, origin, finger))
    who, number = finger[order], impression[order].copy()
    claims = who << 16 | number
    _, first = np.unique(claims, return_index=True)  # the first of equal ones: that of the earliest source
    late = np.ones(len(order), bool)
    late[first] = False
    starts = np.flatnonzero(np.diff(who, prepend=-1))
    highest = np.repeat(np.maximum.reduceat(number, starts), np.diff(starts, append=len(who)))
    before = np.cumsum(late) - late  # late ones of all fingers before this print
    rank = before - np.repeat(before[starts], np.diff(starts, append=len(who)))
    number[late] = (highest + 1 + rank)[late]
    result = np.empty_like(impression)
    result[order] = number
    return result
