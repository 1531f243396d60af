"""Prints whose finger keys are wrong, by what a model says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from fingerprint_accel.evaluation.audit.bars import Bars
from fingerprint_accel.evaluation.audit.suspects import Groups, Suspect
from fingerprint_accel.similarity import fused, mask_of, similarity

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


def split_fingers(
    prints: Prints, bars: Bars, picture: np.ndarray, reconsider: Reconsider, progress: bool = False
) -> list[Suspect]:
    """Fingers of which some impressions are unlike all others, while the others agree.

    Prints of low quality, and those that show another part of the finger, are not judged.

    Args:
        prints: the dataset.
        bars: what decides.
        picture: (N,) number of each picture; copies of one do not agree for that.
        reconsider: has the last word.
        progress: shows a progress bar.
    """
    found = []
    fingers = tqdm(prints.rows_of, desc="comparing within fingers", unit="finger", delay=2.0, disable=not progress)
    for finger, rows in enumerate(fingers):
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
                if best < bars.unlike:  # in poses, all prints look more alike
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


Hit = tuple[int, int, float]
"""Two rows of different fingers, and their similarity."""


def wrong_fingers(prints: Prints, bars: Bars, hits: list[Hit], split: list[Suspect]) -> list[Suspect]:
    """Prints that are unlike the others of their finger, and surely the same as one of another.

    Args:
        prints: the dataset.
        bars: what decides.
        hits: of prints that are alike.
        split: what `split_fingers` found.
    """
    found: dict[int, Suspect] = {}
    known = {row for suspect in split for row in suspect.rows[: suspect.at_fault]}
    for a, b, score in sorted(hits, key=lambda hit: -hit[2]):
        if score < bars.same or not prints.usable[[a, b]].all():
            continue
        for row, other in ((a, b), (b, a)):
            rows = prints.rows_of[prints.fingers[row]]
            if row in found or other in found or len(rows) < FEWEST_PRINTS:
                continue
            scores = prints.within(int(prints.fingers[row]))
            place = int(np.flatnonzero(rows == row)[0])
            rest = np.arange(len(rows)) != place
            own = float(scores[place, rest].max())
            agreed = float(scores[np.ix_(rest, rest)][~np.eye(rest.sum(), dtype=bool)].max())
            if row in known or (own < bars.unlike and agreed >= bars.agree):
                found[row] = _wrong(row, other, score, own)
    return list(found.values())


def _wrong(row: int, other: int, score: float, own: float) -> Suspect:
    why = f"similarity {score:.3f} with that finger, {own:.3f} at best with its own"
    return Suspect("wrong-finger", (row, other), score, why, 1)


def fingers_of_split(
    prints: Prints, bars: Bars, split: list[Suspect], references: np.ndarray, reference_of: np.ndarray
) -> list[Suspect]:
    """The prints at fault of `split` whose own finger is in the dataset under another key, as `wrong_fingers`.

    Args:
        prints: the dataset.
        bars: what decides.
        split: what `split_fingers` found.
        references: (R, D) float32 of unit length, a template for each finger that has one.
        reference_of: (R,) number of the finger.
    """
    found = []
    for suspect in split:
        for row in suspect.rows[: suspect.at_fault]:
            scores = similarity(prints.embeddings[row : row + 1], references, prints.cells)[0]
            scores[reference_of == prints.fingers[row]] = -1
            best = int(scores.argmax())
            if scores[best] >= bars.match:
                rows = prints.rows_of[reference_of[best]]
                alike = similarity(prints.embeddings[row : row + 1], prints.embeddings[rows], prints.cells)[0]
                found.append(_wrong(row, int(rows[alike.argmax()]), float(scores[best]), suspect.score))
    return found


def references_of(prints: Prints, left_out: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """One template for each finger, (R, D), of its usable prints but those `left_out`, and the finger (R,) of each."""
    fingers, found = [], []
    for finger, rows in enumerate(prints.rows_of):
        kept = [row for row in rows.tolist() if row not in left_out and prints.usable[row]]
        if kept:
            fingers.append(finger)
            found.append(fused(prints.embeddings[kept], prints.cells))
    none = np.empty((0, prints.embeddings.shape[1]), np.float32)
    return np.stack(found) if found else none, np.array(fingers, np.int64)


def joined_fingers(
    prints: Prints, bars: Bars, picture: np.ndarray, hits: list[Hit], outside: set[int], together: list[Hit]
) -> list[Suspect]:
    """Keys that are surely one finger, a suspect for each group of them.

    Args:
        prints: the dataset.
        bars: what decides.
        picture: (N,) number of each picture: a copy under another key does not tell that both fingers are one.
        hits: of prints that are alike.
        outside: rows that do not belong to their finger, or may not.
        together: a row of each of two fingers that are one by all their prints, and the similarity of these.
    """
    sure = [
        (a, b, score)
        for a, b, score in hits
        if score >= bars.same
        and prints.usable[[a, b]].all()
        and a not in outside
        and b not in outside
        and picture[a] != picture[b]
    ]
    groups, best = Groups(len(prints.rows_of)), {}
    for a, b, score in sorted([*sure, *together], key=lambda hit: hit[2]):
        first, second = sorted((int(prints.fingers[a]), int(prints.fingers[b])))
        groups.join(first, second)
        best[first, second] = (a, b, score)
    pairs: dict[int, list[Hit]] = {}
    for (finger, _), hit in best.items():
        pairs.setdefault(groups.find(finger), []).append(hit)
    found = []
    for of_group in pairs.values():
        of_group.sort(key=lambda hit: -hit[2])
        rows = tuple(dict.fromkeys(row for a, b, _ in of_group for row in (a, b)))
        keys = len(set(prints.fingers[list(rows)].tolist()))
        score = of_group[0][2]
        found.append(Suspect("one-finger-two-keys", rows, score, f"similarity {score:.3f} across {keys} keys"))
    return found
