import dataclasses
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fingerprint_accel.data.loader import Subset
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training.advice import Adviser, Situation, advice, situation
from fingerprint_accel.training.meters import GpuMonitor
from fingerprint_accel.training.setup import set_up

READING = {"order": 0.1, "disk": 7.0, "decode": 0.4}


@pytest.mark.parametrize(
    ("wait", "stages", "source", "expected"),
    [
        (0.04, READING, "shards", []),
        (0.30, READING, "shards", ["30%", "reading from disk", "--reading.order block", "--encoding lz4"]),
        (0.06, {"disk": 1.0, "decode": 6.0}, "shards", ["6%", "decoding lz4", "--encoding raw"]),
        (0.50, {"disk": 1.0, "order": 6.0}, "shards", ["computing the order", "--training.batch-size"]),
        (0.20, {"disk": 1.0, "order": 0.5}, "shards", ["busy only 15%", "two cores"]),
        (0.51, {"render": 5.1}, "synthetic", ["51%", "`fingerprint-accel synth`"]),
    ],
)
def test_advice_names_stage_and_remedy(wait, stages, source, expected):
    line = advice({"data_wait_share": wait}, stages, 10.0, Situation(source))
    assert bool(line) == bool(expected)
    for words in expected:
        assert words in line


def test_an_idle_gpu_that_does_not_wait_wants_more_at_once():
    line = advice({"data_wait_share": 0.01, "gpu_utilisation": 0.4}, READING, 10.0, Situation())
    assert "busy 40%" in line
    assert "--training.batch-size" in line
    assert advice({"data_wait_share": 0.01, "gpu_utilisation": 0.95}, READING, 10.0, Situation()) == ""


def test_advice_does_not_ask_for_what_is_set_or_refused():
    slow, idle = {"data_wait_share": 0.3}, {"data_wait_share": 0.0, "gpu_utilisation": 0.4}
    line = advice(slow, READING, 10.0, Situation(lz4=True))
    assert "--reading.order block" in line
    assert "lz4" not in line
    line = advice(slow, READING, 10.0, Situation(may_read_blocks=False))
    assert "--reading.order" not in line
    assert "--encoding lz4" in line
    assert advice(slow, READING, 10.0, Situation(lz4=True, may_read_blocks=False)).endswith("to a local disk")
    assert "--training.compile reduce-overhead)" in advice(idle, {}, 10.0, Situation())
    assert advice(idle, {}, 10.0, Situation(may_replay=False)).endswith("(a larger --training.batch-size)")


@pytest.mark.parametrize(
    ("reading", "training", "expected"),
    [
        ({}, {}, Situation()),
        ({"samples_per_class": 2}, {"compile": "default"}, Situation(may_read_blocks=False)),
        ({"balanced": True}, {}, Situation(may_read_blocks=False)),
        ({"order": "block"}, {"compile": "max-autotune"}, Situation(may_read_blocks=False, may_replay=False)),
    ],
)
def test_the_situation_is_that_of_the_run(tiny, reading, training, expected):
    config = dataclasses.replace(
        tiny,
        reading=dataclasses.replace(tiny.reading, **reading),
        training=dataclasses.replace(tiny.training, **training),
    )
    assert situation(set_up(config)) == expected


def test_a_gpu_that_warms_up_gets_no_advice():
    adviser = Adviser(Situation())
    idle = {"data_wait_share": 0.0, "gpu_utilisation": 0.2}
    assert [bool(adviser.window(idle, {}, 10.0)) for _ in range(3)] == [False, True, False]
    assert Adviser(Situation()).window({"data_wait_share": 0.5}, {"disk": 9.0}, 10.0), "waiting is spoken of at once"


def test_advice_is_not_repeated_at_every_record_and_looks_at_the_window_alone():
    adviser = Adviser(Situation(), every=3)
    slow = {"data_wait_share": 0.5}
    said = [bool(adviser.window(slow, {"disk": 10.0 * record}, 10.0)) for record in range(1, 9)]
    assert said == [True, False, False, False, True, False, False, False]
    adviser = Adviser(Situation())
    adviser.window({"data_wait_share": 0.0}, {"disk": 1000.0, "decode": 0.0}, 10.0)
    assert "decoding" in adviser.window(slow, {"disk": 1000.1, "decode": 9.0}, 10.0)


def test_a_slow_disk_is_reported_by_training(tiny, capsys, monkeypatch):
    read = Subset.read

    def slowly(subset, samples, epochs, buffer=None, seconds=None, truth=False):
        time.sleep(0.8 if seconds is not None else 0)
        if seconds is not None:
            seconds["disk"] += 0.8
        return read(subset, samples, epochs, buffer, seconds, truth)

    monkeypatch.setattr(Subset, "read", slowly)
    run_training(tiny)
    said = capsys.readouterr()
    assert (said.out + said.err).count("reading from disk is the slow stage") == 2, "once in training, once at the end"


class Error(Exception):
    pass


def library(utilisation, memory, asked):
    """What pynvml offers of this: readings come one after the other."""
    return SimpleNamespace(
        NVMLError=Error,
        nvmlInit=lambda: asked.append("init"),
        nvmlShutdown=lambda: asked.append("shutdown"),
        nvmlDeviceGetHandleByUUID=lambda identity: asked.append(identity) or "handle",
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=utilisation.pop(0)),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=memory.pop(0)),
    )


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234-abcd"))


def test_gpu_readings_are_averaged_over_the_window(monkeypatch, one_gpu):
    asked = []
    monkeypatch.setattr("fingerprint_accel.training.meters.INTERVAL", 1000)
    monkeypatch.setitem(sys.modules, "pynvml", library([50, 100, 80], [3e9, 5e9, 4e9], asked))
    with GpuMonitor(torch.device("cuda", 1)) as gpu:
        assert gpu.window() == gpu.whole_run() == {}
        gpu.ask()
        gpu.ask()
        assert gpu.window() == {"gpu_utilisation": 0.75, "gpu_memory_mb": 5000.0}
        gpu.ask()
        assert gpu.window() == {"gpu_utilisation": 0.8, "gpu_memory_mb": 4000.0}
        assert gpu.whole_run() == {"gpu_utilisation": pytest.approx(2.3 / 3), "gpu_memory_mb": 5000.0}
    assert asked == ["init", "GPU-1234-abcd", "shutdown"]


def test_the_monitor_asks_by_itself_and_ends(monkeypatch, one_gpu):
    monkeypatch.setattr("fingerprint_accel.training.meters.INTERVAL", 0.01)
    monkeypatch.setitem(sys.modules, "pynvml", library([90] * 10_000, [1e9] * 10_000, []))
    with GpuMonitor(torch.device("cuda")) as gpu:
        time.sleep(0.3)
        assert gpu.window() == {"gpu_utilisation": pytest.approx(0.9), "gpu_memory_mb": 1000.0}
    assert not gpu._thread.is_alive()


def test_without_gpu_or_library_it_is_silent(monkeypatch, one_gpu):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for device in ("cpu", "cuda"):
        with GpuMonitor(torch.device(device)) as gpu:
            gpu.ask()
            assert gpu.window() == {}


def test_records_and_the_table_carry_the_readings(tiny, monkeypatch, capsys):
    monkeypatch.setattr(GpuMonitor, "whole_run", lambda self: {"gpu_utilisation": 0.5, "gpu_memory_mb": 2300.0})
    monkeypatch.setattr(GpuMonitor, "window", lambda self: {"gpu_utilisation": 0.5, "gpu_memory_mb": 123.0})
    run_training(tiny)
    lines = (Path(tiny.out) / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    assert [record["gpu_memory_mb"] for record in records] == [123.0] * 6
    assert [record["gpu_utilisation"] for record in records] == [0.5] * 6
    assert "50% busy, at most 2.3 GB used by all processes" in capsys.readouterr().out
