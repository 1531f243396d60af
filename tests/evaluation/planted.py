"""Datasets with known trouble: what an audit has to find."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageFilter
from shard_writer import ShardWriter

from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset

KINDS = 9  # of trouble, each of which takes two fingers


def compressed(image):
    """The same picture again: darker, and as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray((255 - 0.8 * (255 - image.astype(float))).astype(np.uint8)).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def smeared(image):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(3)))


def mirrored(minutiae, side):
    """As if y were counted from the bottom."""
    return (minutiae * (1, -1, -1, 1) + (0, side, 0, 0)).astype(np.float32)


@dataclass
class Plants:
    """`expected` names (kind, the prints at fault as "key/impression") of every suspect that must be found, `allowed`
    of those that may be too, because they are true."""

    expected: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    allowed: list[tuple[str, frozenset[str]]] = field(default_factory=list)


def records(folder):
    """Every print of a dataset, by finger and impression."""
    shards = open_dataset(folder)
    found = {}
    for row in range(len(shards)):
        points, counts = shards.minutiae(np.array([row]))
        key, impression = shards.key_of_finger[shards.fingers[row]], int(shards.impressions[row])
        found.setdefault(key, {})[impression] = Record(
            shards.image(row).copy(), key, impression, f"{key}/{impression}.png", points[0, : counts[0]].copy()
        )
    return found, shards.info


def plant(prints, out, times=1):
    """Writes the dataset `prints` to `out`, with every kind of trouble so many `times`."""
    known, info = records(prints)
    plants, keys, extra = Plants(), list(known), []
    for start in range(0, 2 * KINDS * times, 2 * KINDS):
        pairs = [keys[start + 2 * i : start + 2 * i + 2] for i in range(KINDS)]
        _pictures(known, pairs[:3], plants, extra)
        _labels(known, pairs[3:6], plants)
        _templates(known, pairs[6:], plants, info.canvas)
    with ShardWriter(out, info.ppi, info.canvas, overwrite=True) as writer:
        for record in [*(record for those in known.values() for record in those.values()), *extra]:
            writer.add(record)
    return plants


def _name(*names):
    return frozenset(f"{key}/{impression}" for key, impression in names)


def _change(known, key, impression, **values):
    known[key][impression] = replace(known[key][impression], **values)


def _pictures(known, pairs, plants, extra):
    for (a, b), change in zip(pairs[:2], (np.copy, compressed), strict=True):
        copied = known[a][0]
        image, nothing = change(copied.image), copied.minutiae[:0]
        extra.append(replace(copied, image=image, finger_key=b, impression=90, minutiae=nothing))
        plants.expected.append(("same-picture-two-fingers", _name((a, 0), (b, 90))))
        plants.allowed.append(("wrong-finger", _name((b, 90))))
    a, _ = pairs[2]
    again = known[a][1]
    extra.append(replace(again, image=compressed(again.image), impression=90))
    plants.expected.append(("same-picture-one-finger", _name((a, 1), (a, 90))))


def _labels(known, pairs, plants):
    one, _ = pairs[0]
    for impression in (2, 3):  # half of its prints under another key
        _change(known, one, impression, finger_key=f"{one}-again")
    plants.expected.append(("one-finger-two-keys", frozenset({one, f"{one}-again"})))
    a, b = pairs[1]
    moved = known[a].pop(3)
    known[b][91] = replace(moved, finger_key=b, impression=91)
    plants.expected.append(("wrong-finger", _name((b, 91))))
    a, b = pairs[2]
    known[b][92] = replace(known[a][3], finger_key=b, impression=92)
    known[a].clear()
    plants.expected.append(("two-fingers-one-key", _name((b, 92))))
    bad = pairs[0][1]  # not wrong
    _change(known, bad, 0, image=smeared(known[bad][0].image))


def _templates(known, pairs, plants, side):
    a, b = pairs[0]
    _change(known, a, 0, minutiae=mirrored(known[a][0].minutiae, side))
    plants.expected.append(("template-against-flow", _name((a, 0))))
    _change(known, b, 0, minutiae=known[b][0].minutiae * np.float32([0.25, 0.25, 1, 1]))
    plants.expected.append(("template-off-ridges", _name((b, 0))))
    given = known[pairs[1][0]][0].minutiae
    reused = [(pairs[1][0], 0), (pairs[1][1], 0), *((key, 1) for key in pairs[2])]
    for key, impression in reused:
        _change(known, key, impression, minutiae=given + np.float32([impression, 1, 0, 0]))
    plants.expected.append(("template-reused", _name(*reused)))
    for name in reused:
        plants.allowed += [(kind, _name(name)) for kind in ("template-against-flow", "template-off-ridges")]
