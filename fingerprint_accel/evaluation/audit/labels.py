"""Prints whose finger keys are wrong, by what a model says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.evaluation.audit.bars import Bars
from fingerprint_accel.evaluation.audit.suspects import Groups, Suspect
from fingerprint_accel.similarity import mask_of, similarity

LOW_QUALITY = 0.3  # of a print, 0 to 1, below which it may be unlike all others for that alone
LEAST_SHARED = 0.5  # of the cells of a print that another one must show too, for them to be called unlike
FEWEST_PRINTS = 3  # of a finger, so that two can agree against a third
MOST_TO_SHOW = 4  # prints of each side of a finger that is two

Reconsider = Callable[[list[int], list[int]], np.ndarray]
"""Rows (n) and rows (m) -> (n, m) similarity, best over poses: more work than comparing prints as they are."""


@dataclass(frozen=True)
class Prints:
    """What is known of N prints.

    Attributes:
        embeddings: (N, D) float32 of unit length.
        cells: of dense templates, else 0.
        fingers: (N,) numbers.
        quality: (N,) 0 to 1.
        rows_of: rows of each finger.
    """

    embeddings: np.ndarray
    cells: int
    fingers: np.ndarray
    quality: np.ndarray
    rows_of: list[np.ndarray]

    @property
    def usable(self) -> np.ndarray:
        """(N,) bool: of enough quality to be judged."""
        return self.quality >= LOW_QUALITY

    def within(self, finger: int) -> np.ndarray:
        """(n, n) similarity of the prints of a finger."""
        mine = self.embeddings[self.rows_of[finger]]
        return similarity(mine, mine, self.cells)

    def overlap(self, rows: np.ndarray) -> np.ndarray:
        """(n, n) share of the cells of the smaller of two prints that the other one shows too; 1 without cells."""
        if not self.cells:
            return np.ones((len(rows), len(rows)))
        shown = mask_of(self.embeddings[rows], self.cells).astype(np.float32)
        area = shown.sum(axis=1)
        return (shown @ shown.T) / np.maximum(1, np.minimum(area[:, None], area[None]))


def split_fingers(prints: Prints, bars: Bars, picture: np.ndarray, reconsider: Reconsider) -> list[Suspect]:
    """Fingers of which some impressions are unlike all others, while the others agree.

    Prints of low quality, and those that show another part of the finger, are not judged.

    Args:
        prints: the dataset.
        bars: what decides.
        picture: (N,) number of each picture; copies of one do not agree for that.
        reconsider: has the last word.
    """
    found = []
    for finger, rows in enumerate(prints.rows_of):
        if len(rows) < FEWEST_PRINTS:
            continue
        scores = prints.within(finger)
        parts = _parts(scores, bars.apart)
        main = max(parts, key=lambda part: (_agreeing(scores, part, picture[rows], bars.agree), len(part)))
        if len(parts) == 1 or not _agreeing(scores, main, picture[rows], bars.agree):
            continue
        overlap = prints.overlap(rows)
        for part in parts:
            usable = part is not main and prints.usable[rows[part]].all()
            if usable and (overlap[np.ix_(part, main)].max(axis=1) >= LEAST_SHARED).all():
                others = sorted(set(range(len(rows))) - set(part))
                best = float(reconsider(rows[part].tolist(), rows[others].tolist()).max())
                if best < bars.apart:
                    shown = [*rows[part].tolist(), *rows[main][:MOST_TO_SHOW].tolist()]
                    why = f"similarity {best:.3f} at best with the {len(others)} other impressions"
                    found.append(Suspect("two-fingers-one-key", tuple(shown), best, why, len(part)))
    return found


def _parts(scores: np.ndarray, bar: float) -> list[list[int]]:
    """(n, n) similarities -> rows in groups, between which no similarity reaches the bar."""
    groups = Groups(len(scores))
    for i, j in np.argwhere(np.triu(scores >= bar, 1)).tolist():
        groups.join(i, j)
    return groups.of(range(len(scores)))


def _agreeing(scores: np.ndarray, part: list[int], picture: np.ndarray, bar: float) -> int:
    """How many pairs of a part are similar, and not copies of one picture."""
    inner = scores[np.ix_(part, part)] >= bar
    return int(np.triu(inner & (picture[part, None] != picture[None, part]), 1).sum())


def joined_fingers(
    prints: Prints, bars: Bars, picture: np.ndarray, hits: list[tuple[int, int, float]], split: list[Suspect]
) -> tuple[list[Suspect], list[Suspect]]:
    """Prints of two keys that are surely of one finger.

    Args:
        prints: the dataset.
        bars: what decides.
        picture: (N,) number of each picture: a copy under another key does not tell that both fingers are one.
        hits: two rows of different fingers, and their similarity, of all that are alike.
        split: what `split_fingers` found.

    Returns:
        Fingers that are one, a suspect for each group of them; and `split`, where what belongs to another finger is
        named as such.
    """
    sure = [hit for hit in hits if hit[2] >= bars.same and prints.usable[[hit[0], hit[1]]].all()]
    outside: dict[int, int] = {}  # row that does not belong to its finger -> the suspect that says so
    for number, suspect in enumerate(split):
        outside.update(dict.fromkeys(suspect.rows[: suspect.at_fault], number))
    groups, best = Groups(len(prints.rows_of)), {}
    told = list(split)
    for a, b, score in sorted(sure, key=lambda hit: hit[2]):
        for row, other in ((a, b), (b, a)):
            if row in outside and other not in outside:
                why = (
                    f"similarity {score:.3f} with a print of that finger; {split[outside[row]].score:.3f} with its own"
                )
                told[outside[row]] = Suspect("wrong-finger", (row, other), score, why, 1)
        if a not in outside and b not in outside and picture[a] != picture[b]:
            first, second = int(prints.fingers[a]), int(prints.fingers[b])
            groups.join(first, second)
            best[min(first, second), max(first, second)] = (a, b, score)
    pairs: dict[int, list[tuple[int, int, float]]] = {}
    for (finger, _), hit in best.items():
        pairs.setdefault(groups.find(finger), []).append(hit)
    found = []
    for of_group in pairs.values():
        of_group.sort(key=lambda hit: -hit[2])
        rows = tuple(dict.fromkeys(row for a, b, _ in of_group for row in (a, b)))
        keys = len(set(prints.fingers[list(rows)].tolist()))
        score = of_group[0][2]
        found.append(Suspect("one-finger-two-keys", rows, score, f"similarity {score:.3f} across {keys} keys"))
    return found, told
