"""A full disk, a read-only or a lost folder end a run with one line; it goes on when there is room."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fingerprint_accel.config import Config, ModelConfig, PreprocessConfig, ReadingConfig, TrainingConfig
from fingerprint_accel.errors import UserError, write_errors
from fingerprint_accel.models import saved_model
from fingerprint_accel.models.checkpoint_folder import checkpoint_names
from fingerprint_accel.outputs import exclusive_lock
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training import checkpoint, loop, reporting, saving
from fingerprint_accel.training.resume import resume

TRAINING = TrainingConfig(
    steps=4, batch_size=4, log_every=1, warmup_steps=2, save_every=1, save_total_limit=9, tracker="none", precision="no"
)
SMALL = Config(
    reading=ReadingConfig(validation_fraction=0.0),
    preprocess=PreprocessConfig(crop=256, size=32),
    model=ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16, dropout=0.0),
    training=TRAINING,
)


@pytest.fixture
def small(prints, tmp_path):
    """Four steps with a checkpoint after each."""
    return dataclasses.replace(SMALL, data=str(prints), out=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def alone(prints, tmp_path_factory):
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run_training(dataclasses.replace(SMALL, data=str(prints), out=str(folder)))
    return folder


def largest_file(size=resource.RLIM_INFINITY):
    """Limit the size of files of this process, until `one_line`: the error of the kernel, without a full disk."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size == resource.RLIM_INFINITY else size, most))


def before_step(monkeypatch, step, action):
    """Calls `action` once, before an optimizer step."""
    original = loop.optimizer_step

    def stepped(run, batches, now, meters, progress):
        if progress.step + 1 == step:
            action()
        return original(run, batches, now, meters, progress)

    monkeypatch.setattr(loop, "optimizer_step", stepped)


def one_line(config, capsys):
    """What a run that fails says. Its other output goes to memory, which has no limit."""
    try:
        with pytest.raises(UserError) as caught:
            run_training(config)
    finally:
        largest_file()  # pytest may write to a file
    assert "Traceback" not in capsys.readouterr().err
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_goes_on(config, alone):
    """The resumed run ends as one that nothing disturbed, and leaves nothing half-made."""
    run_training(dataclasses.replace(config, resume="auto"))
    run, last = Path(config.out), Path("checkpoints") / "step-00000004"
    for name in ("model.safetensors", "training_state.safetensors"):
        assert (run / last / name).read_bytes() == (alone / last / name).read_bytes(), name
    assert not list(run.rglob(".*"))
    assert names_in(run) == names_in(alone)


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_that_does_not_fit_on_the_disk(small, alone, tmp_path, monkeypatch, capsys):
    before_step(monkeypatch, 3, lambda: largest_file(100_000))
    line = one_line(small, capsys)
    file = tmp_path / "run" / "checkpoints" / ".step-00000003.tmp" / "model.safetensors"
    assert line == (
        f"{file}: cannot be written (File too large); raise the limit of `ulimit -f`; to resume from step-00000002, "
        "run the same command with --resume auto"
    )
    assert names_in(tmp_path / "run" / "checkpoints") == {"step-00000001", "step-00000002"}
    assert json.loads((tmp_path / "run" / "latest.json").read_text())["step"] == 2
    monkeypatch.undo()
    assert_goes_on(small, alone)


FAULTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.ENOENT: "bring its folder back",
    errno.EIO: "check the disk",
}
PLACES = [
    (checkpoint, "write_tensors", "model.safetensors"),
    (checkpoint, "fsync_path", "model.safetensors"),
    (checkpoint, "file_sha256", "model.safetensors"),
    (checkpoint, "write_json", "state.json"),
    (checkpoint, "write_json", "latest.json"),
    (saving, "write_json", "best.json"),
]


@pytest.mark.parametrize(("module", "name", "file"), PLACES, ids=[f"{name} {file}" for _, name, file in PLACES])
def test_each_write_of_a_save_may_fail(module, name, file, tmp_path, monkeypatch):
    """In every way. Earlier checkpoints stay, and nothing half-made is left."""

    def save(step):
        tensors = {"a": torch.full((3,), float(step))}
        saved = checkpoint.save_checkpoint(tmp_path, checkpoint.Checkpoint(tensors, tensors, {"step": step}))
        saving.name_best(tmp_path, saved, saving.Progress(best_step=step, best_eer=0.1))

    save(1)
    original = getattr(module, name)
    for number, remedy in FAULTS.items():

        def broken(path, *arguments, number=number):
            if Path(path).name == file:
                raise OSError(number, os.strerror(number), str(path))
            return original(path, *arguments)

        with monkeypatch.context() as patch, pytest.raises(UserError) as caught, write_errors(lambda: "try again"):
            patch.setattr(module, name, broken)
            save(2)
        assert str(caught.value).endswith(f"{file}: cannot be written ({os.strerror(number)}); {remedy}; try again")
        assert names_in(tmp_path / "checkpoints") <= {"step-00000001", "step-00000002"}
        assert (tmp_path / "checkpoints" / "step-00000001" / "state.json").exists()
    save(2)
    assert checkpoint_names(tmp_path) == ["step-00000001", "step-00000002"]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2


def test_no_room_for_the_configuration(small, tmp_path, capsys):
    largest_file(10)
    line = one_line(small, capsys)
    assert line.startswith(f"{tmp_path / 'run' / 'config.yaml'}: cannot be written (File too large); raise the limit")
    assert line.endswith("; run the same command again")
    assert names_in(tmp_path / "run") == set()


def test_no_room_for_a_record(small, alone, tmp_path, monkeypatch, capsys):
    before_step(monkeypatch, 3, lambda: largest_file((tmp_path / "run" / "metrics.jsonl").stat().st_size + 10))
    line = one_line(small, capsys)
    assert line.startswith(f"{tmp_path / 'run' / 'metrics.jsonl'}: cannot be written (File too large); ")
    assert line.endswith("to resume from step-00000002, run the same command with --resume auto")
    monkeypatch.undo()
    assert_goes_on(small, alone)


def test_no_room_for_tensorboard(small, tmp_path, monkeypatch, capsys):
    """Its thread fails, and the next record says so, without the traceback of the thread."""
    config = dataclasses.replace(small, training=dataclasses.replace(small.training, tracker="tensorboard"))
    monkeypatch.setattr(reporting.MetricsFile, "write", lambda self, record: None)
    monkeypatch.setattr(loop, "_save", lambda *arguments: None)
    before_step(monkeypatch, 2, lambda: largest_file(100))
    hook = threading.excepthook
    line = one_line(dataclasses.replace(config, training=dataclasses.replace(config.training, steps=200)), capsys)
    assert "cannot be written (File too large)" in line
    assert threading.excepthook is hook


def test_no_room_for_the_exported_model(small, alone, tmp_path, monkeypatch, capsys):
    write, calls = saved_model.write_tensors, []

    def full(path, tensors):
        write(path, {name: tensor[:1] for name, tensor in tensors.items() if tensor.ndim})
        calls.append(path)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(saved_model, "write_tensors", full)
    line = one_line(small, capsys)
    assert line.startswith(f"{tmp_path / 'run' / '.model.tmp' / 'model.safetensors'}: cannot be written (No space left")
    assert "to resume from step-00000004, run the same command with --resume auto" in line
    assert not (tmp_path / "run" / ".model.tmp").exists()
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    assert_goes_on(small, alone)


def test_what_a_kill_inside_a_save_has_left_does_not_keep_the_disk_full(tmp_path):
    left = tmp_path / "checkpoints" / ".step-00000003.tmp"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    alone = SimpleNamespace(is_main_process=True, num_processes=1)
    config = Config(out=str(tmp_path), resume="auto")
    assert resume(SimpleNamespace(accelerator=alone, config=config, folder=tmp_path)) is None
    assert not left.exists()


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_a_run_folder_that_is_moved_while_training_is_not_made_again(how, small, alone, tmp_path, monkeypatch, capsys):
    """The run would split in two: its metrics there, its checkpoints here."""
    run, place = tmp_path / "run", tmp_path / "elsewhere"

    def move():
        shutil.rmtree(run) if how == "deleted" else run.rename(place)
        if how == "replaced":
            run.mkdir()

    before_step(monkeypatch, 3, move)
    line = one_line(small, capsys)
    assert line == f"{run}: was moved or deleted during training; give its new place to --out, and add --resume auto"
    assert (list(run.iterdir()) == []) if how == "replaced" else not run.exists()
    monkeypatch.undo()
    if how == "moved":
        assert_goes_on(dataclasses.replace(small, out=str(place)), alone)


def test_the_lock_of_another_run_in_the_place_of_a_moved_one_stays(tmp_path):
    with exclusive_lock(tmp_path / "run" / "run.lock", "held"):
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.lock").touch()
    assert (tmp_path / "run" / "run.lock").exists()
