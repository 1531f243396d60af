"""The benchmark draws the maps that training would, and tells no two imports apart but by their minutiae."""

import numpy as np
import pytest
import torch

from fingerprint_accel.config import PreprocessConfig
from fingerprint_accel.data.batch import Batch
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.preprocess.pipeline import Preprocessor


def test_maps_are_those_that_training_learns(prints):
    import minutiae_worth

    shards, rows = open_dataset(prints), np.arange(6)
    table, counts = (torch.from_numpy(values) for values in shards.minutiae(rows))
    images = torch.from_numpy(np.stack([shards.image(row) for row in rows]))
    indices = torch.arange(len(rows))
    batch = Batch(images, indices, table, counts, indices, 0 * indices)
    preprocessor = Preprocessor(PreprocessConfig(crop=256, size=160), shards.info.canvas, ppi=shards.info.ppi)
    learned = preprocessor(batch, augment=False, maps=True)[1]
    drawn = minutiae_worth.maps_of(minutiae_worth.lists(shards, rows), shards.info.canvas, 256)
    assert float((drawn - learned).abs().max()) < 1e-3
    assert minutiae_worth.map_error(drawn, learned) < 1e-6 < minutiae_worth.map_error(0 * drawn, learned)


def test_imports_differ_in_their_minutiae_alone(tmp_path):
    pytest.importorskip("nbis")
    import minutiae_worth

    minutiae_worth.write_images(tmp_path / "made", 0, 2, 2, "clean")
    kinds = ("exact", "mindtct", "all", "none")
    sets = {kind: minutiae_worth.imported(tmp_path / "made", kind, workers=1) for kind in kinds}
    rows = np.arange(4)
    numbers = {kind: sets[kind].minutia_count.tolist() for kind in sets}
    assert numbers["none"] == [0] * 4
    assert all(0 < few < many for few, many in zip(numbers["mindtct"], numbers["all"], strict=True))
    for shards in sets.values():
        assert shards.table["source"].equals(sets["exact"].table["source"])
        assert all(np.array_equal(shards.image(row), sets["exact"].image(row)) for row in rows)
    agreed = minutiae_worth.agreement(sets["exact"], sets["all"])
    assert agreed["0"]["recall"] > 0.7
    assert agreed["0.3"]["precision"] > 0.8
