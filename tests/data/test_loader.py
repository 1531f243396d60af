from pathlib import Path

import numpy as np
import pytest
import torch

from fingerprint_accel.data.loader import TrainingLoader, subset_of_fingers
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.data.shards import open_dataset


@pytest.fixture
def subset(prints):
    shards = open_dataset(prints)
    return subset_of_fingers(shards, np.arange(24) % 3 > 0)


def batches(subset, count, **options):
    with TrainingLoader(subset, SampleOrder(len(subset), seed=4), **options) as loader:
        return [
            (batch.index.tolist(), batch.epoch.tolist(), batch.finger.tolist(), batch.image.clone())
            for batch, _ in zip(loader, range(count), strict=False)
        ]


def test_subset_relabels_densely(subset):
    assert subset.classes == 16
    assert sorted(np.unique(subset.labels)) == list(range(16))
    assert len(subset) == 64


def test_batches_hold_the_right_prints(subset):
    for index, _, finger, image in batches(subset, 5, batch_size=12):
        for place, row in enumerate(index):
            np.testing.assert_array_equal(image[place].numpy(), subset.shards.image(row))
            assert finger[place] == subset.labels[np.flatnonzero(subset.rows == row)[0]]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_print_once_per_epoch(subset, processes):
    batch_size = 16 // processes
    seen = []
    for rank in range(processes):
        options = {"batch_size": batch_size, "rank": rank, "processes": processes}
        for index, epoch, _, _ in batches(subset, 12, **options):
            seen += list(zip(epoch, index, strict=True))
    assert sorted(seen) == [(epoch, row) for epoch in range(3) for row in sorted(subset.rows.tolist())]


@pytest.mark.parametrize("processes", [1, 2])
def test_fingers_come_in_groups(subset, processes):
    order = SampleOrder(len(subset), 4, labels=subset.labels, per_finger=2)
    options = {"batch_size": 16 // processes, "rank": processes - 1, "processes": processes}
    with TrainingLoader(subset, order, **options) as loader:
        for batch, _ in zip(loader, range(8), strict=False):
            assert len(np.unique(batch.index)) == len(batch)
            assert (np.unique(batch.finger, return_counts=True)[1] % 2 == 0).all()


def test_starts_anywhere_in_the_stream(subset):
    whole = batches(subset, 9, batch_size=12)
    rest = batches(subset, 4, batch_size=12, position=60)
    for (a, b, c, image), (d, e, f, again) in zip(whole[5:], rest, strict=True):
        assert (a, b, c) == (d, e, f)
        assert torch.equal(image, again)


def test_an_error_in_the_thread_reaches_the_consumer(subset, monkeypatch):
    monkeypatch.setattr(type(subset.shards), "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        batches(subset, 1, batch_size=4)


def own_memory():
    """Anonymous resident memory of this process, bytes: what is not a mapped file."""
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_reading_takes_constant_memory(prints):
    shards = open_dataset(prints)
    everything = subset_of_fingers(shards, np.ones(24, bool))
    with TrainingLoader(everything, SampleOrder(96, 0), batch_size=48) as loader:
        batches = iter(loader)
        for _ in range(20):
            next(batches)
        before = own_memory()
        for _ in range(400):  # 19,200 canvases, 1.9 GB
            next(batches)
        assert own_memory() - before < 8e6, "less than two batches of 4.9 MB"
