"""The records of a run that was killed and resumed are those of a run that was left alone."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training import loop
from fingerprint_accel.training.meters import Meters, MetricsFile

MODEL = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
# Times and what depends on them; docs/training.md lists them too.
MEASURED = {"samples_per_second", "data_wait_share", "memory_mb", "gpu_utilisation", "gpu_memory_mb"}


@pytest.fixture(autouse=True)
def no_export(monkeypatch):
    """The exported model does not matter here, and takes a second."""
    monkeypatch.setattr("fingerprint_accel.recipe.export", lambda run: None)


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of the run is executed after it but what closes its files."""


def records(folder):
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in MEASURED} for line in lines]


def killed_in_step(monkeypatch, step):
    original = loop.optimizer_step

    def stepped(run, batches, now, meters, progress):
        if progress.step + 1 == step:
            raise KilledError
        return original(run, batches, now, meters, progress)

    monkeypatch.setattr(loop, "optimizer_step", stepped)


def test_the_record_that_spans_a_kill_is_that_of_a_run_left_alone(tiny, tmp_path, monkeypatch):
    """Checkpoints after steps 2, 4, 6 and 8, records after 5 and 9: both kills come between them."""
    training = dataclasses.replace(tiny.training, steps=9, log_every=5, save_every=2, validate_every=4, batch_size=4)
    config = dataclasses.replace(tiny, training=training, preprocess=PreprocessConfig(crop=256, size=32), model=MODEL)
    run_training(dataclasses.replace(config, out=str(tmp_path / "alone")))
    for step in (4, 9):
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            killed_in_step(patch, step)
            run_training(dataclasses.replace(config, resume="auto"))
        (tmp_path / "run" / "metrics.jsonl").open("a").write('{"step": 4, "ki')  # what the last write had begun
    run_training(dataclasses.replace(config, resume="auto"))
    alone, killed = records(tmp_path / "alone"), records(tmp_path / "run")
    assert [(record["step"], record["kind"]) for record in alone] == [
        *((4, "validation"), (5, "train"), (8, "validation"), (9, "train"), (9, "validation")),
    ]
    assert killed == alone, "to the bit"
    assert alone[1]["loss"] != alone[3]["loss"]
    for name in ("state.json", "model.safetensors", "training_state.safetensors"):
        last = "checkpoints/step-00000009"
        assert (tmp_path / "run" / last / name).read_bytes() == (tmp_path / "alone" / last / name).read_bytes(), name


def test_a_kill_before_the_first_checkpoint_leaves_no_record_twice(tiny, tmp_path, monkeypatch):
    """A run that starts from a trained network has a record of step 0."""
    preprocess = PreprocessConfig(crop=256, size=32)
    FingerprintExtractor(MODEL, preprocess, ppi=300, canvas=320).save_pretrained(tmp_path / "model")
    model = dataclasses.replace(MODEL, init_from=str(tmp_path / "model"))
    training = dataclasses.replace(tiny.training, steps=2, validate_every=2)
    config = dataclasses.replace(
        tiny, out=str(tmp_path / "second"), model=model, training=training, preprocess=preprocess
    )
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        killed_in_step(patch, 2)
        run_training(config)
    assert [record["step"] for record in records(tmp_path / "second")] == [0, 1]
    run_training(dataclasses.replace(config, resume="auto"))
    assert [record["step"] for record in records(tmp_path / "second")] == [0, 1, 2, 2]


def meters(losses, processes=1, state=None):
    """Meters of one rank after steps with these losses."""
    found = Meters(torch.device("cpu"))
    accelerator = Accelerator(cpu=True)
    if state is not None:
        found.restore(state, accelerator)
    for loss in losses:
        found.add({"loss": torch.tensor(loss)}, torch.tensor(2 * loss), torch.tensor(loss > 8), 4)
    return found, accelerator


def test_sums_pass_through_a_checkpoint_to_the_bit():
    losses = [0.1, 0.7, 9.0, 1e-8, 0.3]
    whole, accelerator = meters(losses)
    first, _ = meters(losses[:3])
    stored = json.loads(json.dumps(first.state(accelerator)))
    second, _ = meters(losses[3:], state=stored)
    ours, theirs = second.flush(0.0, accelerator), whole.flush(0.0, accelerator)
    assert {name: ours[name] for name in ("loss", "gradient_norm", "skipped")} == {
        name: theirs[name] for name in ("loss", "gradient_norm", "skipped")
    }
    assert theirs["skipped"] == 1
    assert second.state(accelerator) == {}, "nothing since the record"


def test_another_number_of_processes_starts_with_the_mean():
    found, accelerator = meters([], state={"updates": 2, "sums": {"loss": [1.0, 3.0], "skipped": [0.0, 0.0]}})
    assert found.flush(0.0, accelerator)["loss"] == 1.0, "(1 + 3) / 2 ranks / 2 updates"


def test_sums_that_have_overflowed_are_not_stored():
    found, accelerator = meters([3e38, 3e38][:0])
    for _ in range(2):
        found.add({"loss": torch.tensor(3e38)}, torch.tensor(1.0), torch.tensor(False), 4)
    assert found.state(accelerator) == {}


def test_a_file_of_records_that_is_damaged_keeps_what_is_whole(tmp_path):
    file = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1, "kind": "train"}', b'{"step": 2, "loss": NaN}']
    bad = [
        b"[1]",
        b'{"step": "1"}',
        b'{"kind": "train"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"step": 1e400}',
        b'{"step": 1',
    ]
    later = [b'{"step": 3, "kind": "train"}']
    file.write_bytes(b"\n".join([good[0], *bad[:3], good[1], *bad[3:], *later]))
    MetricsFile(file, resumed_at=2).close()
    assert file.read_bytes().splitlines() == good
    MetricsFile(file).close()
    assert file.read_bytes() == b"", "a new run"
