"""One run to a folder, launched as one; checkpoints that count are whole, and damaged ones are passed over."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
import starting
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from safetensors.torch import load_file

from fingerprint_accel.config import Config, TrainingConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.models.checkpoint_folder import checkpoint_names, damage, find_checkpoint
from fingerprint_accel.models.saved_model import find_model
from fingerprint_accel.outputs import exclusive_lock
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training import checkpoint as module
from fingerprint_accel.training.checkpoint import Checkpoint, save_checkpoint
from fingerprint_accel.training.launch import check_launch
from fingerprint_accel.training.run_folder import check_run_folder, holding, trackers

ROOT = starting.ROOT
LAUNCHES = {
    "torchrun": {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
    "mpirun": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
    "srun, first": {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"},
    "srun, second": {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
}
FINE = {
    "alone": ({}, 1),
    "two that see each other": ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "2"}, 2),
    "a launcher on each of two machines": ({"RANK": "0", "WORLD_SIZE": "16", "SLURM_STEP_NUM_TASKS": "2"}, 16),
    "a batch script of many tasks": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, 1),
    "a size without a rank": ({"WORLD_SIZE": "2"}, 1),
}


@pytest.fixture
def nowhere(monkeypatch):
    """No variable of a launcher is set."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "MV2_", "MPI_", "MASTER_")) or name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
        ):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("environment", LAUNCHES.values(), ids=LAUNCHES)
def test_lone_processes_are_refused(environment, nowhere):
    for name, value in environment.items():
        nowhere.setenv(name, value)
    with pytest.raises(UserError, match="launched as 2 processes, but Accelerate sees one"):
        check_launch(1, "cpu")


@pytest.mark.parametrize(("environment", "seen"), FINE.values(), ids=FINE)
def test_launches_that_are_fine(environment, seen, nowhere):
    for name, value in environment.items():
        nowhere.setenv(name, value)
    check_launch(seen, "cpu")


def words(prints, out):
    return [
        *(ROOT / "recipes" / "train_10k.py", "--data", prints, "--out", out, "--preprocess.crop", "256"),
        *("--preprocess.size", "32", "--model.trunk", "compact", "--model.width", "8", "--training.steps", "2"),
        *("--training.tracker", "none", "--reading.validation-fraction", "0.3"),
    ]


def test_several_gpus_asked_for_where_there_is_none(prints, tmp_path):
    """What a launcher starts for a MULTI_GPU configuration: two processes, and nothing says that they run on CPUs."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("ACCELERATE_USE_CPU", None)
    result = starting.run(words(prints, tmp_path / "run"), 2, environment)
    assert result.returncode == 2
    for line in result.stderr.strip().splitlines():
        assert line.startswith(
            "error: launched as 2 processes, but Accelerate sees one, so each would train by itself."
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_run_is_refused(processes, prints, tmp_path):
    with exclusive_lock(tmp_path / "run" / "run.lock", "held"):
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        result = starting.run(words(prints, tmp_path / "run"), processes, environment)
        assert result.returncode == 2
        errors = [line for line in result.stderr.splitlines() if "rror" in line]
        assert errors
        for line in errors:
            assert line.startswith(f"error: {tmp_path / 'run'}: another run is writing to it; wait until it ends")
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]
    result = starting.run(words(prints, tmp_path / "run"), processes, environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_lock_is_there_while_the_run_is(tmp_path):
    alone = SimpleNamespace(is_main_process=True, num_processes=1)
    with holding(tmp_path / "run", alone):
        assert (tmp_path / "run" / "run.lock").exists()
        with pytest.raises(UserError, match="another run is writing to it"), holding(tmp_path / "run", alone):
            raise AssertionError("two hold it")


def test_a_run_inside_its_data_is_refused(prints, tmp_path):
    with pytest.raises(UserError, match="lies in the source"):
        check_run_folder(Config(data=str(prints), out=str(prints / "run")))
    (tmp_path / "run" / "prints").mkdir(parents=True)
    check_run_folder(Config(data=str(tmp_path / "run" / "prints"), out=str(tmp_path / "run")))


def some(step, names=("a", "b")):
    return Checkpoint({name: torch.full((3,), float(step)) for name in names}, {}, {"step": step})


def test_a_checkpoint_is_read_back_before_it_counts(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, some(1))
    original = module.write_tensors
    for written in ({}, {"a": torch.zeros(3)}, {"a": torch.zeros(3), "b": torch.zeros(4)}):
        monkeypatch.setattr(module, "write_tensors", lambda path, tensors, written=written: original(path, written))
        with pytest.raises(
            UserError, match=r"model.safetensors: contains \d tensors instead of the 2 that were written"
        ):
            save_checkpoint(tmp_path, some(2))
    monkeypatch.setattr(module, "write_tensors", lambda path, tensors: path.write_bytes(b"half"))
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read back"):
        save_checkpoint(tmp_path, some(2))
    assert checkpoint_names(tmp_path) == ["step-00000001"]
    assert json.loads((tmp_path / "latest.json").read_text())["step"] == 1


def spoil(folder, how):
    if how == "cut off":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-7])
    elif how == "no tensor":
        module.write_tensors(folder / "model.safetensors", {})
    elif how == "another step":
        (folder / "state.json").write_text(json.dumps({"format_version": 1, "step": 5}))
    else:
        (folder / how).unlink()


DAMAGE = {
    "cut off": "damaged: ",
    "no tensor": "model.safetensors holds no tensor",
    "another step": "state.json is of step 5",
    "training_state.safetensors": "no training_state.safetensors",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_told(how, tmp_path):
    save_checkpoint(tmp_path, some(1))
    folder = tmp_path / "checkpoints" / save_checkpoint(tmp_path, some(2))
    assert damage(folder) is None
    spoil(folder, how)
    assert damage(folder).startswith(DAMAGE[how])
    assert find_checkpoint(tmp_path).name == "step-00000001"


def test_a_damaged_newest_checkpoint_is_passed_over(tiny, tmp_path, capsys):
    """The run goes on from the one before, and ends with the weights of a run that was left alone."""
    saving = dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, save_every=2, steps=6))
    run_training(dataclasses.replace(saving, out=str(tmp_path / "alone")))
    run_training(saving)
    run = tmp_path / "run"
    assert checkpoint_names(run)[-2:] == ["step-00000004", "step-00000006"]
    (run / "best.json").write_text(json.dumps({"checkpoint": "step-00000006", "step": 6, "eer": 0.1}))
    spoil(run / "checkpoints" / "step-00000006", "cut off")
    capsys.readouterr()
    assert find_model(run).folder.name == "step-00000004"
    assert "the best checkpoint, step-00000006, cannot be used (damaged" in capsys.readouterr().err
    run_training(dataclasses.replace(saving, resume="auto"))
    error = capsys.readouterr().err
    assert f"{run / 'checkpoints' / 'step-00000006'}: damaged" in error
    assert "renamed to damaged-step-00000006, continuing from step-00000004" in error
    ended, alone = (
        load_file(folder / "checkpoints" / "step-00000006" / "model.safetensors")
        for folder in (run, tmp_path / "alone")
    )
    for name, tensor in alone.items():
        assert torch.equal(ended[name], tensor)
    assert (run / "checkpoints" / "damaged-step-00000006").is_dir()  # nothing of the user's is deleted
    for folder in (run / "checkpoints").glob("step-*"):
        spoil(folder, "no tensor")
    with pytest.raises(
        UserError, match=r"no checkpoint is intact \(step-00000006: model.safetensors holds no tensor\)"
    ):
        run_training(dataclasses.replace(saving, resume="auto"))


@pytest.mark.parametrize("names", [*sorted(LOGGER_TYPE_TO_CLASS), "tensorboard,wandb", "wandb, mlflow,tensorboard"])
def test_trackers_that_are_not_installed_are_refused(names, monkeypatch, tmp_path):
    """Before anything is written. Accelerate would warn and train without them."""
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    config = Config(data="nowhere", out=str(tmp_path / "run"), training=TrainingConfig(tracker=names))
    packages = " ".join(names.replace(",", " ").split())
    with pytest.raises(UserError) as caught:
        run_training(config)
    remedy = f"not installed; pip install {packages}, or leave it out"
    assert str(caught.value) == f"--training.tracker {names}: {remedy}"
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TENSORBOARD])
    if "tensorboard" in names:
        missing = packages.replace("tensorboard", "").split()
        if not missing:
            assert trackers(config) == ["tensorboard"]
            return
        with pytest.raises(UserError, match=f"pip install {' '.join(missing)}, or leave it out"):
            check_run_folder(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", ["abacus", "", "tensorboard,", "tensorboard,none", "TensorBoard"])
def test_unknown_trackers_are_refused(names, tmp_path):
    config = Config(data="nowhere", out=str(tmp_path / "run"), training=TrainingConfig(tracker=names))
    with pytest.raises(UserError, match="is unknown; choose none, all, aim, clearml, comet_ml, dvclive, mlflow"):
        run_training(config)


def test_several_trackers_record_a_run(tiny, monkeypatch, tmp_path):
    """Accelerate hands every record to each of them."""
    seen = []

    class Notebook(GeneralTracker):
        name, requires_logging_directory, tracker = "notebook", False, None
        main_process_only = False

        def __init__(self, run_name, **options):
            super().__init__()

        def store_init_configuration(self, values):
            seen.append(values["training.tracker"])

        def log(self, values, step=None, **options):
            seen.append(step)

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["notebook", LoggerType.TENSORBOARD])
    run_training(
        dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, tracker="tensorboard, notebook"))
    )
    assert seen[:2] == ["tensorboard, notebook", 1]
    assert list((tmp_path / "run" / "tensorboard").rglob("events*"))


def test_ctrl_c_names_the_checkpoint_if_there_is_one(tmp_path):
    alone = SimpleNamespace(is_main_process=True, num_processes=1)
    for saved, text in (
        (False, "nothing was saved yet"),
        (True, "to resume from step-00000004, run the same command with --resume auto"),
    ):
        if saved:
            (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
        with pytest.raises(KeyboardInterrupt) as caught, holding(tmp_path, alone):
            raise KeyboardInterrupt
        assert str(caught.value) == text
