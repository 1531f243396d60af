import math
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from fingerprint_accel.data.order import REPEATED, Permutation, SampleOrder, permutation, stream_key


def test_permutation_is_complete_and_pinned_to_its_numbers():
    order = permutation(1000, seed=3, epoch=7)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(order, permutation(1000, seed=3, epoch=8))
    assert not np.array_equal(order, permutation(1000, seed=4, epoch=7))
    assert permutation(10, seed=0, epoch=0).tolist() == [5, 4, 7, 8, 2, 9, 6, 1, 0, 3]


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


@pytest.mark.parametrize("count", [1, 2, 3, 4, 17, 1000, 4097])
def test_inverse_undoes_a_permutation(count):
    shuffled = Permutation(count, stream_key(3, count))
    values = shuffled(np.arange(count))
    assert np.array_equal(np.sort(values), np.arange(count))
    assert np.array_equal(shuffled.inverse(values), np.arange(count))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_small_permutations_are_uniform(count):
    """Every arrangement of the first three items is equally likely (chi-square, p = 0.001)."""
    epochs = 40 * math.perm(count, 3)
    draws = [tuple(permutation(count, 2, epoch)[:3].tolist()) for epoch in range(epochs)]
    seen = Counter(draws)
    expected = len(draws) / math.perm(count, 3)
    missing = math.perm(count, 3) - len(seen)
    statistic = sum((number - expected) ** 2 / expected for number in seen.values()) + missing * expected
    freedom = math.perm(count, 3) - 1
    assert statistic < freedom + 3.3 * math.sqrt(2 * freedom) + 8


def test_neighbours_in_the_file_do_not_stay_neighbours():
    """Distances in the order between rows that neighbour each other in the file are those of random places."""
    place = np.argsort(permutation(100_000, 5, 0))
    distance = np.abs(np.diff(place))
    assert abs(distance.mean() / (100_000 / 3) - 1) < 0.01
    assert abs((distance < 1000).mean() / 0.0199 - 1) < 0.05


def test_a_hundred_million_prints_cost_as_much_as_a_hundred():
    order = SampleOrder(100_000_000, seed=1)
    samples, passes = order.take(7 * 10**14 + 123_456_789, 4096)
    assert len(set(samples.tolist())) == 4096
    assert (passes == 7_000_001).all()
    tracemalloc.start()
    started = time.process_time()
    for position in range(100):
        order.take(position * 999_983, 256)
    assert time.process_time() - started < 0.5, "100 batches of 256"
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_blocks_are_runs_from_all_over_the_data():
    order = SampleOrder(10_000, seed=2, block_size=2048)
    samples, _ = order.take(0, 10_000)
    assert np.array_equal(np.sort(samples), np.arange(10_000))
    together = []
    for epoch in range(2):
        samples, _ = order.take(epoch * 10_000, 10_000)
        runs = [set((samples[start : start + 2048] // 1024).tolist()) for start in range(0, 10_000, 2048)]
        assert all(len(block) <= 3 for block in runs), "two runs each, and a piece where the short run shifted them"
        together.append(sorted(map(sorted, runs)))
    assert together[0] != together[1], "other runs share a block in the next epoch"


def test_a_block_mixes_fingers_as_well_as_a_full_shuffle_does():
    """Mated pairs per batch of 256 where rows lie shuffled over fingers: 25,000 fingers of 8, as many as by chance."""
    labels = permutation(200_000, 9, 0) // 8
    chance = 256 * 255 / 2 * 7 / 199_999
    for block_size in (0, 16384):
        samples, _ = SampleOrder(200_000, 3, block_size).take(0, 199_936)
        batches = np.sort(labels[samples].reshape(-1, 256), axis=1)
        pairs = (np.diff(batches, axis=1) == 0).sum(axis=1).mean()
        assert abs(pairs - chance) < 4 * math.sqrt(chance / len(batches))


COUNTS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 1])  # impressions of each finger
LABELS = np.repeat(np.arange(10), COUNTS)[permutation(46, 1, 0)]


def grouped(per_finger, balanced=False):
    return SampleOrder(46, seed=5, labels=LABELS, per_finger=per_finger, balanced=balanced)


@pytest.mark.parametrize("per_finger", [2, 3, 4])
def test_groups_hold_different_impressions_of_one_finger(per_finger):
    order = grouped(per_finger)
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


def test_groups_are_drawn_anew_and_in_random_order():
    order = grouped(2)
    epochs = [order.take(epoch * order.length, order.length)[0].reshape(-1, 2) for epoch in range(2)]
    companions = [{frozenset(group) for group in groups.tolist() if group[0] != group[1]} for groups in epochs]
    assert len(companions[0] & companions[1]) < 0.5 * len(companions[0])
    assert not np.array_equal(LABELS[epochs[0][:, 0]], LABELS[epochs[1][:, 0]])
    assert not np.array_equal(LABELS[epochs[0][:, 0]], np.sort(LABELS[epochs[0][:, 0]]))
    partners = Counter(frozenset(group) for epoch in range(3000) for group in pairs_of_four(order, epoch))
    assert len(partners) == 6, "every pair of a finger's four impressions"
    assert max(partners.values()) < 1.15 * min(partners.values())


def pairs_of_four(order, epoch):
    """Pairs that the finger with four prints is divided into."""
    samples, _ = order.take(epoch * order.length, order.length)
    groups = samples.reshape(-1, 2)
    return groups[LABELS[groups[:, 0]] == 3].tolist()


@pytest.mark.parametrize("per_finger", [1, 2])
def test_balanced_shows_every_finger_equally_often(per_finger):
    order = grouped(per_finger, balanced=True)
    assert order.length == {1: 50, 2: 40}[per_finger], "46 prints of 10 fingers: 5 prints, or 2 pairs of each"
    seen = np.zeros(46, int)
    for epoch in range(200):
        samples, passes = order.take(epoch * order.length, order.length)
        assert (np.bincount(LABELS[samples]) == order.length // 10).all()
        assert len(set(zip(samples.tolist(), passes.tolist(), strict=True))) == order.length
        seen += np.bincount(samples, minlength=46)
    nine = seen[LABELS == 8]
    assert nine.sum() == 200 * order.length // 10
    assert nine.min() > 0.7 * nine.mean(), "which of a large finger's prints are left out changes with the epoch"


def test_one_impression_per_finger_is_the_plain_order():
    samples, passes = SampleOrder(46, 5, labels=LABELS, per_finger=1).take(0, 200)
    plain, plain_passes = SampleOrder(46, 5).take(0, 200)
    assert np.array_equal(samples, plain)
    assert np.array_equal(passes, plain_passes)


FAMILIES = np.repeat(np.arange(12), 4)  # 12 fingers, 4 prints each
SIBLINGS = np.random.default_rng(0).permutation(12).reshape(4, 3)


def test_siblings_come_one_after_the_other():
    """In every run of 3 groups all fingers of a family, each with two prints; every print once per epoch."""
    order = ORDERS["siblings"]()
    families = []
    for epoch in range(20):
        samples, passes = order.take(epoch * 48, 48)
        assert sorted(samples) == list(range(48)) and set(passes) == {epoch}
        fingers = FAMILIES[samples].reshape(8, 3, 2)
        assert (fingers[..., 0] == fingers[..., 1]).all()
        families.append([SIBLINGS.tolist().index(turn) for turn in fingers[..., 0].tolist()])
    firsts = np.bincount([family[0] for family in families], minlength=4)
    assert firsts.max() < 15, "another family comes first in other epochs"


ORDERS = {
    "permutation": lambda: SampleOrder(46, 5),
    "block": lambda: SampleOrder(46, 5, block_size=7),
    "groups": lambda: grouped(2),
    "balanced": lambda: grouped(2, balanced=True),
    "siblings": lambda: SampleOrder(48, 5, labels=FAMILIES, per_finger=2, siblings=SIBLINGS),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_global_batches_are_the_same_for_any_number_of_processes(kind):
    def global_batches(processes):
        order, batch = ORDERS[kind](), 48 // processes
        for micro in range(30):
            parts = [order.take((micro * processes + rank) * batch, batch) for rank in range(processes)]
            yield [np.concatenate(part).tolist() for part in zip(*parts, strict=True)]

    alone = list(global_batches(1))
    for processes in (2, 3, 8):
        assert list(global_batches(processes)) == alone


@pytest.mark.parametrize("kind", ORDERS)
def test_resumes_at_any_position(kind):
    samples, passes = ORDERS[kind]().take(0, 250)
    for start in range(150):
        again, again_passes = ORDERS[kind]().take(start, 70)
        assert np.array_equal(samples[start : start + 70], again)
        assert np.array_equal(passes[start : start + 70], again_passes)


def test_groups_of_a_million_prints_take_under_a_second():
    labels = (permutation(1_000_000, 0, 0) % 150_000).astype(np.int64)
    started = time.process_time()
    SampleOrder(1_000_000, 0, labels=labels, per_finger=4).take(0, 64)
    assert time.process_time() - started < 1
