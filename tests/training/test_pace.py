"""Step time and remaining time: measured after the first steps, estimated before them where a CPU is too slow."""

import dataclasses
import re
import time
from types import SimpleNamespace

import pytest
import torch

from fingerprint_accel.recipe import run_training
from fingerprint_accel.training import pace as module
from fingerprint_accel.training import step as step_module
from fingerprint_accel.training.pace import Pace, duration, forecast
from fingerprint_accel.training.setup import set_up


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0312, "0.031 s"),
        (1.94, "1.9 s"),
        (45.4, "45 s"),
        (38 * 60, "38 min"),
        (3600 * 5.2, "5.2 h"),
        (3e5, "3.5 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told to."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def move(seconds):
        now[0] += seconds

    return move


def paced(steps=1200, step=0, device="cpu", compile="no", validation=None):
    run = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device(device)),
        steps=steps,
        validation=validation,
        config=SimpleNamespace(training=SimpleNamespace(compile=compile)),
    )
    return Pace(run, step)


def test_one_line_after_the_fifth_step_without_warm_up_and_pauses(clock):
    pace, said = paced(validation=object()), []
    for step, seconds in enumerate((20.0, 5.0, 1.0, 2.0, 2.7, 3.0, 3.0), 1):
        clock(seconds)
        said.append(pace.after_step(step))
        clock(50.0)  # validation and saving
        pace.pause(50.0)
    assert said[:4] == [""] * 4
    assert said[4] == "step 5 of 1200: 1.9 s per step, about 38 min left, without validation"
    assert said[5:] == ["", ""]


def test_a_resumed_run_counts_from_where_it_starts(clock):
    pace = paced(steps=1000, step=900)
    said = []
    for step in range(901, 907):
        clock(2.0)
        said.append(pace.after_step(step))
    assert said == ["", "", "", "", "step 905 of 1000: 2 s per step, about 3 min left", ""]


def test_a_slow_step_is_reported_at_once(clock):
    pace = paced(steps=100)
    clock(85.0)
    assert pace.after_step(1) == "step 1 of 100: 85 s per step, about 2.3 h left"
    pace = paced(steps=100, compile="default")
    clock(85.0)
    assert pace.after_step(1) == "", "the first step compiles"


def test_a_finished_run_has_no_time_left(clock):
    pace = paced(steps=5)
    assert [pace.after_step(step) for step in range(1, 6)] == [""] * 5


def test_training_prints_the_step_time_once(tiny, capsys):
    run_training(tiny)
    said = capsys.readouterr()
    lines = re.findall(
        r"step 5 of 6: [0-9.]+ s per step, about [0-9.]+ s left, without validation", said.out + said.err
    )
    assert len(lines) == 1


def slow(config, trunk, steps, size=64):
    """A run with another trunk that was not started."""
    model = dataclasses.replace(config.model, trunk=trunk, norm="batch", variant="Tex")
    preprocess = dataclasses.replace(config.preprocess, size=size)
    training = dataclasses.replace(config.training, steps=steps)
    return set_up(dataclasses.replace(config, model=model, preprocess=preprocess, training=training))


def test_a_trunk_that_is_too_slow_for_the_cpu_is_named_with_the_remedy(tiny):
    run = slow(tiny, "vit_small", 10**8)
    line = forecast(run, 0, 0)
    assert re.fullmatch(
        r"warning: estimate for this CPU: about [0-9.]+ \w+ per step, [0-9.]+ days for 100000000 steps\. "
        r"Trunk vit_small at 64 pixels is slow on a CPU\. Use a GPU or recipes/finetune\.py, or add "
        r"--model\.trunk compact --preprocess\.crop 256 --preprocess\.size 160",
        line,
    )
    assert forecast(slow(tiny, "vit_small", 6), 0, 0) == "", "seconds need no line"
    assert "train on a GPU, or set fewer --training.epochs" in forecast(slow(tiny, "compact", 10**8), 0, 0)


def test_the_estimate_is_near_the_measured_time(tiny, monkeypatch):
    """A step of eight prints that takes 0.2 s a print, on a CPU of which the estimate knows nothing."""
    prepared = step_module.prepared

    def slowly(run, batch, now):
        time.sleep(0.2 * len(batch.finger))
        return prepared(run, batch, now)

    for place in ("fingerprint_accel.training.memory.prepared", "fingerprint_accel.training.step.prepared"):
        monkeypatch.setattr(place, slowly)
    monkeypatch.setattr(module, "SLOW_STEP", 1.0)
    monkeypatch.setattr(module, "QUICK", 0)
    line = forecast(slow(tiny, "compact", 50), 0, 0)
    found = re.fullmatch(r"estimate for this CPU: about ([0-9.]+) s per step, [0-9.]+ (s|min) for 50 steps", line)
    assert 1.6 <= float(found[1]) < 8


def test_small_runs_of_the_compact_trunk_are_not_estimated(tiny, monkeypatch):
    monkeypatch.setattr(module, "rehearse", lambda *_: pytest.fail("rehearsed"))
    assert forecast(slow(tiny, "compact", 100), 0, 0) == ""


def test_an_estimate_leaves_no_trace(tiny, tmp_path, monkeypatch):
    """Weights and optimizer state are the same bits with and without it."""
    model = dataclasses.replace(tiny.model, norm="batch", dropout=0.2)
    config = dataclasses.replace(tiny, model=model)
    run_training(config)
    monkeypatch.setattr(module, "QUICK", 0)
    calls = []
    original = module.rehearse
    monkeypatch.setattr(module, "rehearse", lambda *a: calls.append(a[-1]) or original(*a))
    run_training(dataclasses.replace(config, out=str(tmp_path / "other")))
    assert calls == [2, 4]
    for name in ("model.safetensors", "training_state.safetensors"):
        files = [tmp_path / run / "checkpoints" / "step-00000006" / name for run in ("run", "other")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
