import numpy as np
import pytest

from fingerprint_accel.data.order import SampleOrder, block_permutation, permutation


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
