"""Find prints with wrong finger keys, by the similarities that a model computes.

A finger key is the name of a finger in the dataset. The index of a finger is its position in the sorted list of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from fingerprint_accel.evaluation.audit.bars import Bars
from fingerprint_accel.evaluation.audit.suspects import Groups, Suspect
from fingerprint_accel.similarity import fused, mask_of, similarity

LOW_QUALITY = 0.3
"""Lowest quality, from 0 to 1, of prints that are judged. Prints of lower quality may match nothing."""
LEAST_SHARED = 0.5
"""Smallest overlap of two prints (see `Prints.overlap`) at which a low similarity means that the fingers differ."""
FEWEST_PRINTS = 3
"""Smallest number of prints of a finger that is judged. A print has a wrong key if two other prints of its finger match
each other, but not this print."""
MOST_TO_SHOW = 4
"""Largest number of correct prints that are shown beside the prints with a wrong key."""

Reconsider = Callable[[list[int], list[int]], np.ndarray]
"""Function of n rows and m rows of the dataset that returns their (n, m) similarities in the best of several poses."""


@dataclass(frozen=True)
class Prints:
    """Embeddings, fingers and qualities of N prints of a dataset.

    Attributes:
        embeddings: (N, D) float32 embeddings with unit norm.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.
        fingers: (N,) finger index of each print.
        quality: (N,) quality of each print, from 0 to 1.
        rows_of: for each finger index, the rows of the prints of this finger.
    """

    embeddings: np.ndarray
    cells: int
    fingers: np.ndarray
    quality: np.ndarray
    rows_of: list[np.ndarray]

    @property
    def usable(self) -> np.ndarray:
        """Boolean array (N,): whether the quality of each print is high enough for judging its finger key."""
        return self.quality >= LOW_QUALITY

    def within(self, finger: int) -> np.ndarray:
        """Return the (n, n) similarities between the n prints of the finger with the given index."""
        mine = self.embeddings[self.rows_of[finger]]
        return similarity(mine, mine, self.cells)

    def overlap(self, rows: np.ndarray) -> np.ndarray:
        """Return the overlap of each pair of the given prints: the part of the finger that both prints show.

        The overlap is the number of grid cells that both prints show, divided by the number of cells of the smaller
        print.

        Args:
            rows: (n,) rows of the prints.

        Returns:
            (n, n) overlaps from 0 to 1. All overlaps are 1 if the templates have no cells.
        """
        if not self.cells:
            return np.ones((len(rows), len(rows)))
        shown = mask_of(self.embeddings[rows], self.cells).astype(np.float32)
        area = shown.sum(axis=1)
        return (shown @ shown.T) / np.maximum(1, np.minimum(area[:, None], area[None]))


def split_fingers(
    prints: Prints, bars: Bars, picture: np.ndarray, reconsider: Reconsider, progress: bool = False
) -> list[Suspect]:
    """Find fingers whose impressions form groups that do not match each other, and so probably show different fingers.

    Prints of low quality, and prints that show another part of the finger than the other prints, are not judged.

    Args:
        prints: embeddings and fingers of the dataset.
        bars: thresholds.
        picture: (N,) identifier of the original image of each print; copies of one image have the same identifier. A
            match of two copies is ignored.
        reconsider: function that compares prints in several poses, as a final check.
        progress: show a progress bar.

    Returns:
        One suspect for each group of impressions that match each other but no other impression of the finger.
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
                if best < bars.unlike:  # similarities over several poses are higher, hence the higher threshold
                    shown = [*rows[part].tolist(), *rows[main][:MOST_TO_SHOW].tolist()]
                    why = f"highest similarity {best:.3f} to the {len(others)} other impressions"
                    found.append(Suspect("two-fingers-one-key", tuple(shown), best, why, len(part)))
    return found


def _parts(scores: np.ndarray, bar: float) -> list[list[int]]:
    """Group rows such that all similarities between different groups are below `bar`.

    Args:
        scores: (n, n) similarities of the rows.
        bar: threshold.
    """
    groups = Groups(len(scores))
    for i, j in np.argwhere(np.triu(scores >= bar, 1)).tolist():
        groups.join(i, j)
    return groups.of(range(len(scores)))


def _agreeing(scores: np.ndarray, part: list[int], picture: np.ndarray, bar: float) -> int:
    """Count the pairs of prints in a group that are similar and are not copies of one image.

    Args:
        scores: (n, n) similarities of the prints of a finger.
        part: positions of the prints of the group among the n prints.
        picture: (n,) identifier of the original image of each print; copies of one image have the same identifier.
        bar: lowest similarity of the pairs that are counted.
    """
    inner = scores[np.ix_(part, part)] >= bar
    return int(np.triu(inner & (picture[part, None] != picture[None, part]), 1).sum())


Hit = tuple[int, int, float]
"""Two rows of the dataset with prints of different fingers, and their similarity."""


def wrong_fingers(prints: Prints, bars: Bars, hits: list[Hit], split: list[Suspect]) -> list[Suspect]:
    """Find prints that do not match the other prints of their finger, but match a print of another finger.

    Args:
        prints: embeddings and fingers of the dataset.
        bars: thresholds.
        hits: pairs of similar prints of different fingers.
        split: result of `split_fingers`.

    Returns:
        One suspect for each such print.
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
    """Return the suspect for a print that shows another finger than its key states.

    Args:
        row: row of the print.
        other: row of the most similar print of the other finger.
        score: similarity of the print to the other finger.
        own: highest similarity of the print to the other prints of its own finger.
    """
    why = f"similarity {score:.3f} to that finger, at most {own:.3f} to its own finger"
    return Suspect("wrong-finger", (row, other), score, why, 1)


def fingers_of_split(
    prints: Prints, bars: Bars, split: list[Suspect], references: np.ndarray, reference_of: np.ndarray
) -> list[Suspect]:
    """Find the true finger of each print in `split`, by comparing the print with one template of every other finger.

    Args:
        prints: embeddings and fingers of the dataset.
        bars: thresholds.
        split: result of `split_fingers`: prints that do not match their own finger.
        references: (R, D) float32 templates with unit norm, each fused from the prints of one finger.
        reference_of: (R,) finger of each template.

    Returns:
        One suspect (finding of the audit) for each print that matches another finger, as in `wrong_fingers`.
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
    """Fuse the templates of all prints of each finger into one template, except for prints in `left_out`.

    Prints of low quality are also excluded.

    Args:
        prints: embeddings and fingers of the dataset.
        left_out: rows of the prints to exclude.

    Returns:
        Two arrays: (R, D) float32 templates of R fingers, and the (R,) finger index of each template. Fingers without a
            usable print have no template.
    """
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
    """Find groups of finger keys that probably stand for one finger.

    Args:
        prints: embeddings and fingers of the dataset.
        bars: thresholds.
        picture: (N,) identifier of the original image of each print; copies of one image have the same identifier.
            Copies with different keys do not show that the keys stand for one finger.
        hits: pairs of similar prints of different fingers.
        outside: rows of prints that may not belong to their finger. These prints are ignored.
        together: pairs of fingers whose fused templates match: one row of each finger, and the similarity.

    Returns:
        One suspect for each group.
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
        found.append(
            Suspect("one-finger-two-keys", rows, score, f"similarity {score:.3f} between prints of {keys} keys")
        )
    return found
