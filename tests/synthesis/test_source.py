"""The endless source: what it says, what it gives, and that order, ranks and epochs behave as with shards."""

import numpy as np
import pytest
import torch

from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.errors import UserError
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters
from fingerprint_accel.synthesis.source import SourceSpec, open_source, parse_source

DATA = "synth:fingers=8,impressions=3,seed=5,first=100,quality=clean,sensors=optical+ink"


def test_parsing():
    style = Style(sensors=("optical", "ink"), quality="clean")
    assert parse_source(DATA) == SourceSpec(8, 3, 5, 100, style)
    assert parse_source("synth:fingers=20000") == SourceSpec(20000)
    assert parse_source("synth:fingers=9,partial=0.2").style == Style(partial=0.2)
    assert parse_source("synth:fingers=9,ppi=500,canvas=512").style == Style(ppi=500, canvas=512)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("synth:", "at least two fingers"),
        ("synth:fingers=1", "at least two fingers"),
        ("synth:fingers=9,impressions=1", "two impressions"),
        ("synth:fingers=many", "cannot read 'fingers=many'"),
        ("synth:fingers=9,colour=red", "cannot read 'colour=red'"),
        ("synth:fingers=9,partial=1.5", "partial 1.5: a share of the touches"),
        ("synth:fingers=9,quality=superb", "quality 'superb': unknown"),
    ],
)
def test_mistakes(data, message):
    with pytest.raises(UserError, match=message):
        parse_source(data)


@pytest.fixture(scope="module")
def opened():
    return open_source(DATA, 0.25, torch.device("cpu"))


def test_training_and_validation_fingers_are_different(opened):
    train, validation = opened
    assert (len(train), train.classes, len(validation), validation.classes) == (24, 8, 6, 2)
    assert train.numbers.tolist() == list(range(100, 108))
    assert validation.numbers.tolist() == [108, 109]
    assert np.bincount(train.labels).tolist() == [3] * 8


def test_prints_are_those_of_the_generator(opened):
    train, _ = opened
    batch = train.read(np.array([7, 23]), np.array([0, 2]))
    assert batch.finger.tolist() == [2, 7]
    masters = make_masters(5, torch.tensor([102, 107]))
    keys = impression_keys(5, torch.tensor([102, 107]), torch.tensor([1, 2 * 3 + 2]))
    prints = render(masters, torch.arange(2), keys, train.spec.style)
    assert torch.equal(batch.image, prints.image)
    for row in range(2):
        count = int(prints.count[row])
        assert batch.minutia_count[row] == count
        assert torch.equal(batch.minutiae[row, :count], prints.minutiae[row, :count])


def test_each_epoch_has_its_own_impressions(opened):
    train, _ = opened
    first, second = (train.read(np.array([4]), np.array([epoch])).image for epoch in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_share_a_batch(opened, processes):
    train, _ = opened
    order = SampleOrder(len(train), 9, labels=train.labels, per_finger=2)
    one = next(iter(train.loader(order, 6, position=12, truth=True)))
    size = 6 // processes
    loaders = [train.loader(order, size, rank, processes, position=12, truth=True) for rank in range(processes)]
    parts = [next(iter(loader)) for loader in loaders]
    assert torch.equal(torch.cat([part.pose for part in parts]), one.pose)
    assert torch.equal(torch.cat([part.contact for part in parts]), one.contact)
    assert torch.equal(torch.cat([part.image for part in parts]), one.image)
    assert torch.equal(torch.cat([part.index for part in parts]), one.index)
    assert torch.equal(torch.cat([part.epoch for part in parts]), one.epoch)


def test_goes_on_from_any_position(opened):
    train, _ = opened
    order = SampleOrder(len(train), 9)
    with train.loader(order, 4) as loader:
        batches = iter(loader)
        for _ in range(8):  # into the second epoch
            last = next(batches)
    resumed = next(iter(train.loader(order, 4, position=28)))
    assert torch.equal(last.image, resumed.image)
    assert set(last.epoch.tolist()) == {1}


def test_the_first_batch_is_not_waited_for(opened):
    train, _ = opened
    with train.loader(SampleOrder(len(train), 9), 4) as loader:
        batches = iter(loader)
        next(batches)
        assert loader.waited == 0
        next(batches)
        assert loader.waited > 0
        assert loader.seconds == {"render": loader.waited}
