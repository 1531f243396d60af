"""Signals, kills, lost ranks: what each process ends with, and that a resumed run is the one that was left alone."""

import json
import os
import signal
import subprocess
import time
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
import starting
from safetensors.torch import load_file

from fingerprint_accel.config import load_yaml

from .conftest import LAUNCHERS, ROOT, TINY

LATER = ("validation", "save")
MOMENTS = ("step", *LATER)
LAST = "checkpoints/step-00000012"
SCRIPT = Path(__file__).with_name("survival_runs.py")


@pytest.fixture(scope="module")
def runs(prints, tmp_path_factory):
    """Folder of all runs, and how each ended."""
    folder = tmp_path_factory.mktemp("survival")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = starting.run(
        [SCRIPT, prints, folder, ROOT / "recipes" / "train_10k.py"], environment=environment, timeout=500
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, json.loads((folder / "results.json").read_text())


def samples(folder, name, processes):
    """Prints of each step, over all ranks; of steps that all ranks ended."""
    steps: dict[int, list] = {}
    for line in (folder / f"{name}.samples").read_text().splitlines():
        record = json.loads(line)
        steps.setdefault(record["step"], []).append(record["seen"])
    return {step: sorted(chain.from_iterable(seen)) for step, seen in steps.items() if len(seen) == processes}


def saved_steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def errors(folder, name, rank):
    return [line for line in (folder / f"{name}.{rank}.err").read_text().splitlines() if "error: " in line]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_to_one_rank_stops_all_at_one_step(processes, moment, runs):
    folder, results = runs
    name = f"SIGTERM-{processes}-{moment}"
    assert results[name]["codes"] == [75] * processes
    stopped = saved_steps(folder / name)[-1]
    told = {"step": 6, "validation": 4, "save": 5}[moment]  # in the save after step 4: too late for that step
    assert (stopped == told) if processes == 1 else (told <= stopped < 12)
    assert max(samples(folder, name, processes)) == stopped, "no rank has begun another step"
    saved = f"stopped by SIGTERM after step {stopped} of 12 and saved; to resume from step-{stopped:08d}, run the same"
    noted = "SIGTERM: stopping after the current step, then saving a checkpoint"
    texts = [(folder / f"{name}.{rank}.err").read_text() for rank in range(processes)]
    for line in (noted, saved):
        assert [text.count(line) for text in texts] == [1, 0][:processes]
    assert texts[0].index(noted) < texts[0].index(saved)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_lost_rank_ends_the_other_with_one_line(moment, runs):
    folder, results = runs
    name, victim = f"SIGKILL-2-{moment}", 0 if moment == "save" else 1
    codes = results[name]["codes"]
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 76
    assert results[name]["seconds"] < 20, "the timeout of the run"
    (line,) = errors(folder, name, 1 - victim)
    assert line.startswith(f"error: rank {1 - victim}: another process of the run is gone (killed, out of memory")
    newest = f"step-{saved_steps(folder / name)[-1]:08d}" if saved_steps(folder / name) else None
    advice = f"to resume from {newest}, run the same command with --resume auto" if newest else "nothing was saved yet"
    assert line.endswith(advice)
    assert "Traceback" not in (folder / f"{name}.{1 - victim}.err").read_text()


def test_a_rank_that_does_not_answer_counts_as_lost(runs):
    folder, results = runs
    assert results["hung"]["codes"] == [76, -signal.SIGKILL]
    assert 5 < results["hung"]["seconds"] < 25
    (line,) = errors(folder, "hung", 0)
    assert line.startswith("error: rank 0: another process of the run has not answered within 5 s, after step ")


def test_ctrl_c_stops_at_once(runs):
    folder, results = runs
    assert results["ctrl-c"]["codes"] == [130, 130]
    assert results["ctrl-c"]["seconds"] < 20
    assert saved_steps(folder / "ctrl-c") == [3, 4]
    line = "interrupted; to resume from step-00000004, run the same command with --resume auto"
    assert line in (folder / "ctrl-c.0.err").read_text().splitlines()


def test_a_failed_rank_ends_the_other_with_one_line(runs):
    folder, results = runs
    assert results["failing"]["codes"] == [76, 1]
    assert results["failing"]["seconds"] < 20
    (line,) = errors(folder, "failing", 0)
    assert line.startswith("error: rank 0: rank 1 has failed (OSError: [Errno 5] Input/output error: 'data.arrow')")
    assert "Traceback" in (folder / "failing.1.err").read_text(), "a disk that fails is no user's mistake"


FULL = {"full in a save": 3, "full in a record": 6, "full at the end": 12}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_ends_all_ranks_with_one_line(name, runs):
    """It is rank 0 that writes. The run goes on when there is room, and ends as one that was left alone."""
    folder, results = runs
    texts = [(folder / f"{name}.{rank}.err").read_text() for rank in (0, 1)]
    assert results[name]["codes"] == [2, 2 if name == "full at the end" else 76], texts
    assert results[name]["seconds"] < 20
    assert errors(folder, name, 1) == []
    assert errors(folder, name, 0) == [
        "error: the file: cannot be written (No space left on device); free some space; to resume from "
        f"step-{FULL[name]:08d}, run the same command with --resume auto"
    ]
    assert not any("Traceback" in text for text in texts)
    assert results[f"{name}, room again"]["codes"] == [0, 0]
    same_bits(folder / "whole-2" / LAST, folder / f"{name}, room again" / LAST)
    assert records(folder / f"{name}, room again") == records(folder / "whole-2")


def records(run):
    """Records of a run without times and what depends on them."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = ("samples_per_second", "data_wait_share", "memory_mb")
    return [
        {k: v for k, v in record.items() if k not in measured}
        for record in found
        if record["kind"] in ("train", "validation")
    ]


@pytest.mark.parametrize(
    ("processes", "again", "moment"),
    [*product((1, 2), (1, 2), ["step"]), *((processes, processes, moment) for processes in (1, 2) for moment in LATER)],
)
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_a_resumed_run_is_the_one_that_was_left_alone(number, processes, moment, again, runs):
    folder, results = runs
    name = f"{number}-{processes}-{moment}"
    assert results[f"{name}-{again}"]["codes"] == [0] * again, (folder / f"{name}-{again}.0.err").read_text()[-2000:]
    whole = samples(folder, "whole-1", 1)
    assert sorted(whole) == list(range(1, 13))
    before, after = samples(folder, name, processes), samples(folder, f"{name}-{again}", again)
    assert sorted(after) == list(range(saved_steps(folder / name)[-1] + 1, 13)), "it goes on from the newest checkpoint"
    for seen in (samples(folder, "whole-2", 2), before, after):
        assert {step: whole[step] for step in seen} == seen, "every step sees the prints that it would have seen"
    if again == processes:
        same_bits(folder / f"whole-{processes}" / LAST, folder / f"{name}-{again}" / LAST)
        assert records(folder / f"{name}-{again}") == records(folder / f"whole-{processes}")


def same_bits(whole, resumed):
    """A signal brings one more save, and a save takes the mean of the running statistics over ranks."""
    for file in ("model.safetensors", "training_state.safetensors", "ema.safetensors"):
        tensors = [load_file(place / file) for place in (whole, resumed)]
        assert list(tensors[0]) == list(tensors[1])
        for name in tensors[0]:
            np.testing.assert_array_equal(*(part[name] for part in tensors), err_msg=name)
    states = [json.loads((place / "state.json").read_text()) for place in (whole, resumed)]
    for name in ("best_step", "best_eer"):
        assert states[0][name] == states[1][name]
    assert states[0]["position"] == states[1]["position"] == 96


def test_batches_may_be_shared_out_anew_but_not_change(runs):
    folder, results = runs
    assert results["more micro-batches"]["codes"] == [0]
    whole, found = samples(folder, "whole-1", 1), samples(folder, "more micro-batches", 1)
    assert found == {step: whole[step] for step in range(7, 13)}
    assert results["another batch"]["codes"] == [2]
    (line,) = errors(folder, "another batch", 0)
    assert "trained with 8 prints per step, this run has 6 (batch size 2 x accumulation 3 x 1 processes)" in line
    assert "give --training.gradient-accumulation-steps 4 to restore 8" in line


def test_too_little_memory_on_one_rank_makes_both_smaller(runs):
    folder, results = runs
    assert results["shrunk"]["codes"] == results["small"]["codes"] == [0, 0]
    said = (folder / "shrunk.0.out").read_text()
    assert (
        "out of memory on 1 of 2 processes with batch 4 x 1: all continue with 2 x 2, the same 8 prints per step in "
        "the same order"
    ) in said
    assert "batch 2 x 2 per device, 8 in total" in said
    whole = samples(folder, "whole-2", 2)
    losses = []
    for name in ("shrunk", "small"):
        assert samples(folder, name, 2) == whole
        records = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["loss"] for record in records if record["kind"] == "train"])
        assert len(losses[-1]) == 12
    assert losses[0] == losses[1]
    assert load_yaml(folder / "shrunk" / "config.yaml").training == load_yaml(folder / "small" / "config.yaml").training
    same_bits(folder / "small" / LAST, folder / "shrunk" / LAST)


def test_torchrun_passes_the_signal_on(prints, environment, tmp_path):
    command = [*LAUNCHERS["two processes"], str(ROOT / "recipes" / "train_10k.py"), *TINY, "--data", str(prints)]
    command += ["--out", str(tmp_path / "run"), "--training.steps", "5000", "--resume", "auto"]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=err)
    records = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (records.exists() and records.read_text().count("\n") > 2):
        assert process.poll() is None, (tmp_path / "err").read_text()[-3000:]
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) != 0
    text = (tmp_path / "err").read_text()
    assert "stopped by SIGTERM after step" in text
    (stopped,) = saved_steps(tmp_path / "run")
    assert f"after step {stopped} of 5000 and saved" in text
    assert text.count("SIGTERM: stopping after the current step") == 1
    assert len(records.read_text().splitlines()) == stopped, "both ranks ended the same step"
