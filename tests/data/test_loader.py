import contextlib
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_writer import ShardWriter

from fingerprint_accel.data.batch import BatchLayout
from fingerprint_accel.data.loader import ANNOUNCED, TrainingLoader, subset_of_fingers
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.training_loader import training_loader
from fingerprint_accel.errors import UserError


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


def test_global_batches_do_not_depend_on_the_number_of_processes(subset):
    def global_batches(processes):
        ranks = [
            batches(subset, 6, batch_size=24 // processes, rank=rank, processes=processes) for rank in range(processes)
        ]
        for parts in zip(*ranks, strict=True):
            yield sorted(
                (row, epoch) for index, epochs, _, _ in parts for row, epoch in zip(index, epochs, strict=True)
            )

    alone = list(global_batches(1))
    for processes in (2, 3, 8):
        assert list(global_batches(processes)) == alone


def test_a_loader_in_one_call(subset, prints):
    """Of a dataset or of some fingers, for any number of processes, from any position on."""

    def rows(data, count, **options):
        with training_loader(data, **options) as loader:
            return [sorted(batch.index.tolist()) for batch, _ in zip(loader, range(count), strict=False)]

    whole = open_dataset(prints)
    epoch = rows(whole, 4, batch_size=24, seed=4)
    assert sorted(row for index in epoch for row in index) == list(range(96))
    assert rows(whole, 4, batch_size=24, seed=5) != epoch
    assert rows(whole, 2, batch_size=24, seed=4, position=48) == epoch[2:]
    ranks = [rows(whole, 4, batch_size=12, seed=4, rank=rank, processes=2) for rank in (0, 1)]
    assert [sorted(first + second) for first, second in zip(*ranks, strict=True)] == epoch
    assert rows(subset, 3, batch_size=16, seed=4) == [sorted(index) for index, *_ in batches(subset, 3, batch_size=16)]
    with training_loader(whole, 8, samples_per_class=4, truth=True) as loader:
        batch = next(iter(loader))
        assert sorted(np.unique(batch.finger, return_counts=True)[1]) == [4, 4]
        assert batch.pose.shape == (8, 3)
    with pytest.raises(UserError, match="batch_size 6 is not a multiple of samples_per_class 4"):
        training_loader(whole, 6, samples_per_class=4)
    with pytest.raises(UserError, match="prints: no prints to train on; select some fingers"):
        training_loader(subset_of_fingers(whole, np.zeros(24, bool)), 6)


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


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


class EnoughError(Exception):
    pass


@pytest.mark.parametrize("reason", [None, EnoughError, KeyboardInterrupt])
@pytest.mark.parametrize("consumed", [0, 1, 7])
def test_no_thread_is_left_behind(subset, reason, consumed):
    """However the loop ends: by break, exception or Ctrl-C, before the first batch or later."""
    with contextlib.suppress(EnoughError, KeyboardInterrupt), TrainingLoader(subset, SampleOrder(64, 0), 8) as loader:
        assert len(reading_threads()) == 1
        for number, _ in enumerate(loader):
            if number == consumed:
                break
        if reason is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        elif reason is not None:
            raise reason
    assert reading_threads() == []


def test_a_fork_is_refused_and_ends_by_itself(subset):
    with TrainingLoader(subset, SampleOrder(64, 0), 8) as loader:
        batches = iter(loader)
        next(batches)
        child = os.fork()
        if child == 0:
            try:
                next(batches)
            except RuntimeError as error:
                os._exit(7 if "fork" in str(error) else 1)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        next(batches)


def test_outside_with_it_says_so(subset):
    with pytest.raises(RuntimeError, match="with loader"):
        next(iter(TrainingLoader(subset, SampleOrder(64, 0), 8)))


def test_minutiae_come_along_padded_to_one_width(subset):
    with TrainingLoader(subset, SampleOrder(64, 0), 8) as loader:
        for batch, _ in zip(loader, range(4), strict=False):
            assert batch.minutiae.shape == (8, max(1, subset.shards.most_minutiae), 4)
            expected, counts = subset.shards.minutiae(batch.index.numpy())
            np.testing.assert_array_equal(batch.minutiae[:, : expected.shape[1]].numpy(), expected)
            assert not batch.minutiae[:, expected.shape[1] :].any()
            assert batch.minutia_count.tolist() == counts.tolist()


def test_what_a_loop_holds_on_to_stays(subset):
    with TrainingLoader(subset, SampleOrder(64, 0), 8, prefetch=1) as loader:
        held = [(batch.finger, batch.index, batch.index.tolist()) for batch, _ in zip(loader, range(12), strict=False)]
    for finger, index, then in held:
        assert index.tolist() == then
        assert finger.tolist() == subset.labels[np.searchsorted(subset.rows, then)].tolist()


def test_a_batch_lies_in_one_piece():
    layout = BatchLayout(3, 5, 2)
    flat = layout.empty()
    batch = layout.view(flat)
    start, size = flat.untyped_storage().data_ptr(), flat.numel()
    for part in (batch.image, batch.finger, batch.minutiae, batch.minutia_count, batch.index, batch.epoch):
        assert part.untyped_storage().data_ptr() == start
        part.copy_(torch.arange(part.numel()).view(part.shape) % 7)
    assert size == 4 * 3 * 8 + 3 * 2 * 4 * 4 + 3 * 25
    again = layout.view(flat.clone())
    assert torch.equal(again.image, batch.image)
    assert torch.equal(again.epoch, torch.arange(3))
    assert torch.equal(again.minutiae.flatten(), torch.arange(24.0) % 7)


def test_data_larger_than_memory_is_announced_ahead(subset, monkeypatch):
    """The same batches, and the system hears of each before it is read."""
    plain = batches(subset, 6, batch_size=12)
    wanted, read = [], []
    shards = subset.shards
    monkeypatch.setattr(shards, "larger_than_memory", True)
    tell, fetch = shards.wanted, shards.read
    monkeypatch.setattr(shards, "wanted", lambda rows: (wanted.append(rows.tolist()), tell(rows)))
    monkeypatch.setattr(
        shards, "read", lambda rows, *rest: (read.append((rows.tolist(), len(wanted))), fetch(rows, *rest))
    )
    for (a, b, c, image), (d, e, f, again) in zip(plain, batches(subset, 6, batch_size=12), strict=True):
        assert (a, b, c) == (d, e, f)
        assert torch.equal(image, again)
    for number, (rows, told) in enumerate(read):
        assert wanted[number] == rows
        assert told == number + 1 + ANNOUNCED


def test_lz4_delivers_the_same_batches(subset, tmp_path):
    copies = {}
    for encoding in ("raw", "lz4"):
        with ShardWriter(tmp_path / encoding, 300, 320, encoding=encoding) as writer:
            for row in range(96):
                key = subset.shards.key_of_finger[subset.shards.fingers[row]]
                minutiae = subset.shards.minutiae(np.array([row]))[0][0]
                writer.add(Record(subset.shards.image(row), key, int(subset.shards.impressions[row]), "", minutiae))
        copies[encoding] = subset_of_fingers(open_dataset(tmp_path / encoding), np.arange(24) % 3 > 0)
    plain, packed = copies["raw"], copies["lz4"]
    for (a, b, c, image), (d, e, f, again) in zip(
        batches(plain, 5, batch_size=12), batches(packed, 5, batch_size=12), strict=True
    ):
        assert (a, b, c) == (d, e, f)
        assert torch.equal(image, again)
    with TrainingLoader(packed, SampleOrder(64, 0), 32) as loader:
        next(iter(loader))
    assert loader.seconds["decode"] > 0
    assert loader.seconds["disk"] > 0


def test_a_damaged_lz4_print_is_one_clear_line(tmp_path):
    with ShardWriter(tmp_path / "lz4", 300, 64, encoding="lz4") as writer:
        writer.add(Record(np.zeros((64, 64), np.uint8), "a", 0, "", np.zeros((0, 4), np.float32)))
    shards = open_dataset(tmp_path / "lz4")
    stored = shards.table["image"][0].as_buffer()
    file = next((tmp_path / "lz4").glob("*.arrow"))
    file.write_bytes(file.read_bytes().replace(stored.to_pybytes(), b"\xff" * stored.size))
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow: holds a damaged print"):
        open_dataset(tmp_path / "lz4").read(np.array([0]), np.empty((1, 64, 64), np.uint8))


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
