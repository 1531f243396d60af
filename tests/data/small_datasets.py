"""Small datasets for tests, and what is in them."""

import numpy as np
from shard_writer import ShardWriter

from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset

SIDE = 64
QUIET = {"workers": 1, "progress": False}


def picture(number, side=SIDE):
    """Half noise, half paper."""
    image = np.full((side, side), 255, np.uint8)
    image[: side // 2] = np.random.default_rng(number).integers(0, 256, (side // 2, side))
    return image


def dataset(folder, keys, impressions=2, first=0, side=SIDE, **options):
    with ShardWriter(folder, 300, side, rows_per_shard=7, **options) as writer:
        for number, key in enumerate(keys):
            for impression in range(impressions):
                points = np.full((number % 3, 4), number + 0.25, np.float32)
                name = f"{folder.name}/{key}_{impression}"
                row = first + number * impressions + impression
                writer.add(Record(picture(row, side), key, impression, name, points))
    return folder


def contents(folder):
    """Every print by (key, impression): its image, minutiae and source."""
    shards = open_dataset(folder)
    found = {}
    for row in range(len(shards)):
        minutiae, counts = shards.minutiae(np.array([row]))
        key = shards.key_of_finger[shards.fingers[row]]
        image = shards.image(row).copy()
        found[key, int(shards.impressions[row])] = (
            image,
            minutiae[0, : counts[0]].tolist(),
            shards.table["source"][row].as_py(),
        )
    assert len(found) == len(shards)
    return found


def assert_same_prints(ours, theirs):
    assert set(ours) == set(theirs)
    for key, (image, minutiae, source) in ours.items():
        np.testing.assert_array_equal(image, theirs[key][0])
        assert (minutiae, source) == theirs[key][1:]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ridges(phase, side=300):
    y, x = np.mgrid[:side, :side]
    inside = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.42 * side) ** 2
    return np.where(inside, 128 + 100 * np.cos(x / 1.5 + phase + y / 9), 255).astype(np.uint8)
