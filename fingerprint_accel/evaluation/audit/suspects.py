"""What an audit finds."""

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
        "the same picture under two fingers",
        "find out whose print it is, and take the file away from the other finger",
    ),
    "same-picture-one-finger": (
        "the same picture twice under one finger",
        "keep one of the files",
    ),
    "one-finger-two-keys": (
        "different fingers that are one",
        "look at the prints; if they are of one finger, give them one key",
    ),
    "wrong-finger": (
        "a print that belongs to another finger",
        "look at the prints; move the first one to the finger of the second",
    ),
    "two-fingers-one-key": (
        "one finger that is two",
        "look at the prints; give those named first another key, or leave them out",
    ),
    "template-off-ridges": (
        "minutiae on paper",
        "look whether the template is of another image, or its size or resolution is another",
    ),
    "template-against-flow": (
        "minutiae across the ridges",
        "look whether the template is of another image, or of another convention (import --xyt-kind)",
    ),
    "template-reused": (
        "one template for several prints",
        "find out whose template it is; import the others without, or with --find-minutiae mindtct",
    ),
}
"""What each kind of suspect is, and what to do about it."""


@dataclass(frozen=True)
class Suspect:
    """Prints with which something is wrong.

    Attributes:
        kind: what.
        rows: of the dataset.
        score: how sure it is, see `why`.
        why: the score in words.
        at_fault: so many of the first rows are to be acted on, the others are there to compare; 0: any of them may be.
    """

    kind: Kind
    rows: tuple[int, ...]
    score: float
    why: str
    at_fault: int = 0

    @property
    def badness(self) -> float:
        """Orders suspects of one kind: the worst have the highest."""
        low = ("two-fingers-one-key", "template-against-flow")
        return -self.score if self.kind in low else self.score

    def values(self, shards: Shards, quality: np.ndarray) -> dict[str, Any]:
        """For a line of JSON; `quality` is (N,) of all prints, 0 to 1."""
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
    """Numbers 0..count-1 that belong together, joined pair by pair (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, number: int) -> int:
        """The number that stands for a group."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def join(self, first: int, second: int) -> None:
        """Makes two groups one; the lower number stands for it."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[high] = low

    def of(self, numbers: Iterable[int]) -> list[list[int]]:
        """The given numbers by group."""
        found: dict[int, list[int]] = {}
        for number in numbers:
            found.setdefault(self.find(number), []).append(number)
        return list(found.values())
