"""Suspects, which are the findings of an audit: kinds, prints and reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fingerprint_accel.data.shards import Shards

Kind = Literal[
    "same-picture-two-fingers",
    "same-picture-one-finger",
    "one-finger-two-keys",
    "wrong-finger",
    "two-fingers-one-key",
    "template-off-ridges",
    "template-against-flow",
    "template-reused",
]
KINDS: dict[Kind, tuple[str, str]] = {
    "same-picture-two-fingers": (
        "same picture under two fingers",
        "find out which finger it shows, and remove the file from the other finger",
    ),
    "same-picture-one-finger": (
        "same picture twice under one finger",
        "keep one of the files",
    ),
    "one-finger-two-keys": (
        "one finger under several keys",
        "look at the prints; if they show one finger, give them the same key",
    ),
    "wrong-finger": (
        "print of another finger",
        "look at the prints; move the first print to the finger of the second",
    ),
    "two-fingers-one-key": (
        "two fingers under one key",
        "look at the prints; give the first prints another key, or leave them out",
    ),
    "template-off-ridges": (
        "minutiae outside the print",
        "check whether the template belongs to another image, or has another size or resolution",
    ),
    "template-against-flow": (
        "minutiae across the ridges",
        "check whether the template belongs to another image, or has another convention (import --xyt-kind)",
    ),
    "template-reused": (
        "one minutia template for several prints",
        "find out which print it belongs to; import the others without it, or with --find-minutiae mindtct",
    ),
}
"""For each kind of suspect, a short description and advice for the user."""


@dataclass(frozen=True)
class Suspect:
    """One finding of an audit: one or several prints that are probably wrong.

    Attributes:
        kind: type of the finding, a key of `KINDS`.
        rows: rows of the prints in the dataset.
        score: value that led to the finding, such as a similarity; `why` explains it.
        why: reason of the finding, in words.
        at_fault: number of prints at the start of `rows` that are probably wrong. The other prints are only shown for
            comparison. 0 means that any of the prints may be wrong.
    """

    kind: Kind
    rows: tuple[int, ...]
    score: float
    why: str
    at_fault: int = 0

    @property
    def badness(self) -> float:
        """Sort key for suspects of one kind; the most suspicious one has the highest value."""
        low = ("two-fingers-one-key", "template-against-flow")
        return -self.score if self.kind in low else self.score

    def values(self, shards: Shards, quality: np.ndarray) -> dict[str, Any]:
        """Return the suspect as a dictionary, for one line of the JSON list.

        Args:
            shards: the dataset.
            quality: (N,) quality of all prints, from 0 to 1.
        """
        sources = shards.table["source"]
        prints = [
            {
                "finger_key": shards.key_of_finger[shards.fingers[row]],
                "impression": int(shards.impressions[row]),
                "source": sources[row].as_py(),
                "row": row,
                "quality": round(float(quality[row]), 3),
                "at_fault": place < (self.at_fault or len(self.rows)),
            }
            for place, row in enumerate(self.rows)
        ]
        known = {"kind": self.kind, "score": round(self.score, 4), "why": self.why, "do": KINDS[self.kind][1]}
        return {**known, "prints": prints}


class Groups:
    """Groups of the integers from 0 to count - 1, which are joined pair by pair (union-find).

    Initially each integer is a group of its own.
    """

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, number: int) -> int:
        """Return the lowest integer in the group of `number`, which identifies the group."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def join(self, first: int, second: int) -> None:
        """Join the groups of two integers into one group."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[high] = low

    def of(self, numbers: Iterable[int]) -> list[list[int]]:
        """Group the given integers; return one list of integers for each group."""
        found: dict[int, list[int]] = {}
        for number in numbers:
            found.setdefault(self.find(number), []).append(number)
        return list(found.values())
