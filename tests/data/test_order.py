import time

import numpy as np
import pytest

from fingerprint_accel.data.order import REPEATED, SampleOrder, block_permutation, permutation


def test_permutation_is_complete_and_pinned_to_its_numbers():
    order = permutation(1000, seed=3, epoch=7)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(order, permutation(1000, seed=3, epoch=8))
    assert not np.array_equal(order, permutation(1000, seed=4, epoch=7))
    assert permutation(10, seed=0, epoch=0).tolist() == [2, 1, 9, 5, 7, 0, 8, 3, 4, 6]


def test_permutation_is_uniform():
    """Where print 0 lands over many epochs fits a uniform draw (chi-square, 19 degrees of freedom, p = 0.001)."""
    landings = np.array([int(np.flatnonzero(permutation(20, 1, epoch) == 0)[0]) for epoch in range(4000)])
    observed = np.bincount(landings, minlength=20)
    assert ((observed - 200) ** 2 / 200).sum() < 43.8


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("block_size", [0, 7])
def test_every_print_once_per_epoch_for_any_number_of_processes(processes, block_size):
    order = SampleOrder(count=37, seed=5, block_size=block_size)
    batch = 12 // processes
    seen = []
    for micro in range(37):  # 37 global batches of 12 are exactly 12 epochs
        for rank in range(processes):
            samples, epochs = order.take((micro * processes + rank) * batch, batch)
            seen += list(zip(epochs.tolist(), samples.tolist(), strict=True))
    assert sorted(seen) == [(epoch, sample) for epoch in range(12) for sample in range(37)]


def test_take_from_the_middle_equals_taking_all():
    order = SampleOrder(count=11, seed=0)
    samples, epochs = order.take(0, 40)
    again, again_epochs = SampleOrder(count=11, seed=0).take(17, 9)
    assert np.array_equal(samples[17:26], again)
    assert np.array_equal(epochs[17:26], again_epochs)


def test_block_permutation_stays_inside_its_blocks():
    order = block_permutation(1000, seed=2, epoch=0, block_size=64)
    assert np.array_equal(np.sort(order), np.arange(1000))
    blocks = order // 64
    assert (np.diff(blocks) != 0).sum() == 15, "each of the 16 blocks is one run"
    assert not np.array_equal(order, block_permutation(1000, seed=2, epoch=1, block_size=64))


COUNTS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 1])  # impressions of each finger
LABELS = np.repeat(np.arange(10), COUNTS)[permutation(46, 1, 0)]


def grouped(per_finger, block_size=0):
    return SampleOrder(46, seed=5, block_size=block_size, labels=LABELS, per_finger=per_finger)


@pytest.mark.parametrize("block_size", [0, 7])
@pytest.mark.parametrize("per_finger", [2, 3, 4])
def test_groups_hold_different_impressions_of_one_finger(per_finger, block_size):
    order = grouped(per_finger, block_size)
    needed = -(-COUNTS // per_finger) * per_finger
    assert order.length == needed.sum()
    for epoch in range(3):
        samples, passes = order.take(epoch * order.length, order.length)
        groups = samples.reshape(-1, per_finger)
        assert (LABELS[groups] == LABELS[groups[:, :1]]).all()
        for group in groups:
            assert len(set(group.tolist())) == min(per_finger, COUNTS[LABELS[group[0]]])
        assert set(samples.tolist()) == set(range(46)), "every print at least once"
        assert np.array_equal(np.bincount(LABELS[samples]), needed), "no finger more than it needs to fill its groups"
        pairs = list(zip(samples.tolist(), passes.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs), "a repeated print is in another pass, so it is augmented otherwise"
        assert (passes % REPEATED == epoch).all()
        assert (passes < REPEATED).sum() == 46


@pytest.mark.parametrize("block_size", [0, 7])
def test_groups_are_drawn_anew_and_in_random_order(block_size):
    order = grouped(2, block_size)
    epochs = [order.take(epoch * order.length, order.length)[0].reshape(-1, 2) for epoch in range(2)]
    companions = [{frozenset(group) for group in groups.tolist() if group[0] != group[1]} for groups in epochs]
    assert len(companions[0] & companions[1]) < 0.5 * len(companions[0])
    assert not np.array_equal(LABELS[epochs[0][:, 0]], LABELS[epochs[1][:, 0]])
    assert not np.array_equal(LABELS[epochs[0][:, 0]], np.sort(LABELS[epochs[0][:, 0]]))
    if block_size:
        assert (np.diff(epochs[0][:, 0] // 7) != 0).sum() < 7, "groups follow the blocks of their first prints"


def test_one_impression_per_finger_is_the_plain_order():
    samples, passes = SampleOrder(46, 5, labels=LABELS, per_finger=1).take(0, 200)
    plain, plain_passes = SampleOrder(46, 5).take(0, 200)
    assert np.array_equal(samples, plain)
    assert np.array_equal(passes, plain_passes)


@pytest.mark.parametrize("block_size", [0, 7])
def test_global_batches_are_the_same_for_any_number_of_processes(block_size):
    def global_batches(processes):
        order, batch = grouped(2, block_size), 12 // processes
        for micro in range(30):
            parts = [order.take((micro * processes + rank) * batch, batch) for rank in range(processes)]
            yield [np.concatenate(part).tolist() for part in zip(*parts, strict=True)]

    assert list(global_batches(1)) == list(global_batches(2)) == list(global_batches(3))


def test_groups_resume_at_any_position():
    samples, passes = grouped(3).take(0, 250)
    for start in range(150):
        again, again_passes = grouped(3).take(start, 70)
        assert np.array_equal(samples[start : start + 70], again)
        assert np.array_equal(passes[start : start + 70], again_passes)


def test_groups_of_a_million_prints_take_under_a_second():
    labels = (permutation(1_000_000, 0, 0) % 150_000).astype(np.int64)
    started = time.process_time()
    SampleOrder(1_000_000, 0, 16384, labels, per_finger=4).take(0, 64)
    assert time.process_time() - started < 1
