"""Everything that is written is for its owner alone, unless FINGERPRINT_ACCEL_UMASK says otherwise."""

import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel import cli
from fingerprint_accel.config import Config, LossConfig, ModelConfig, PreprocessConfig, ReadingConfig, TrainingConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.privacy import VARIABLE, private_files, umask
from fingerprint_accel.recipe import run_training
from tests.data.small_datasets import SIDE, dataset

MODEL = ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=16, norm="group", dropout=0.0)
PICTURES = ("inspect", "audit", "compare", "minutiae")  # for people to look at
COMMANDS = {
    "synth": "synth --out NEW --fingers 2 --impressions 2 --workers 1 --device cpu",
    "import": "import IMAGES --out NEW --names (?P<finger>[0-9]) --ppi 300 --workers 1",
    "merge": "merge PRINTS --out NEW --keep [a-c] --workers 1",
    "inspect": "inspect PRINTS --out NEW/sheet.png",
    "audit": "inspect PRINTS --audit --model SMALL --out NEW/audit.png",
    "evaluate": "evaluate SMALL PRINTS --out NEW",
    "calibrate": "calibrate SMALL PRINTS --out NEW",
    "extract": "extract PRINTS --out NEW --model SMALL --device cpu",
    "compare": "compare IMAGES/0.png IMAGES/1.png --ppi 300 --model MODEL --out NEW/pair.png --no-poses",
    "minutiae": "minutiae IMAGES/0.png --ppi 300 --model MODEL --out NEW",
}


@pytest.fixture(autouse=True)
def usual_umask(monkeypatch):
    """The umask of most machines, under which everybody may read."""
    monkeypatch.delenv(VARIABLE, raising=False)
    before = os.umask(0o022)
    yield
    assert os.umask(before) == 0o022, "the umask is as it was before the call"


@pytest.fixture(scope="module")
def place(prints, tmp_path_factory):
    """Images, a model for them, a dataset of small pictures, and a model for it."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    for name, side in (("model", 320), ("small", SIDE)):
        preprocess = PreprocessConfig(crop=side * 3 // 4, size=side // 4 if side > SIDE else SIDE // 2)
        FingerprintExtractor(MODEL, preprocess, ppi=300, canvas=side).save_pretrained(folder / name)
    dataset(folder / "prints", list("abcdefghij"), impressions=4)
    shards = open_dataset(prints)
    (folder / "images").mkdir()
    for number in range(3):
        Image.fromarray(shards.image(number)).save(folder / "images" / f"{number}.png")
    return folder


@pytest.fixture
def run(place, tmp_path, monkeypatch):
    """Run a line of the command line; NEW is a folder that does not exist yet, and neither does its parent."""
    places = {name.upper(): place / name for name in ("model", "small", "prints", "images")}
    places["NEW"] = tmp_path / "parent" / "new"

    def run(line):
        for name, path in places.items():
            line = line.replace(name, str(path))
        monkeypatch.setattr(sys, "argv", ["fingerprint-accel", *line.split()])
        cli.main()
        return tmp_path / "parent"

    return run


def assert_modes(folder, file_mode=0o600, folder_mode=0o700, least=1):
    """Check the modes of a folder and of everything below it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= least
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert oct(mode) == oct(folder_mode if path.is_dir() else file_mode), path


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_writes_is_for_its_owner_alone_and_on_the_disk(run, name, synced):
    """The joined shards of an import, for one, were never flushed."""
    out = run(COMMANDS[name])
    assert_modes(out)
    if name not in PICTURES:
        assert {path for path in [out, *out.rglob("*")] if not synced(path)} == set()


def test_a_gallery_and_its_index_are_for_their_owner_alone(run):
    pytest.importorskip("faiss")
    run("enroll NEW IMAGES/0.png IMAGES/1.png --ppi 300 --model MODEL")
    run("enroll NEW IMAGES/2.png --ppi 300 --model MODEL")
    assert_modes(run("search NEW IMAGES/0.png --ppi 300 --model MODEL --index"), least=4)
    assert_modes(run("remove NEW --name IMAGES/1.png"), least=2)


def test_a_run_is_for_its_owner_alone(place, tmp_path, monkeypatch, fresh_accelerator):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = Config(
        data=str(place / "prints"),
        out=str(tmp_path / "parent" / "run"),
        reading=ReadingConfig(validation_fraction=0.3),
        preprocess=PreprocessConfig(crop=48, size=32),
        model=MODEL,
        loss=LossConfig(minutia_map_weight=0.0),
        training=TrainingConfig(
            steps=2, batch_size=4, log_every=1, warmup_steps=1, validate_every=1, save_every=1, ema_decay=0.9
        ),
    )
    run_training(config)
    names = {path.name.split(".")[0] for path in (tmp_path / "parent").rglob("*")}
    assert {"events", "metrics", "best", "state", "ema", "training_state", "README"} <= names
    assert_modes(tmp_path / "parent", least=15)


def test_the_variable_lets_a_group_read(run, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "027")
    for line in (COMMANDS["synth"], COMMANDS["extract"], COMMANDS["calibrate"]):
        assert_modes(run(line.replace("NEW", "NEW/" + line.split()[0])), 0o640, 0o750)
    run("enroll NEW/known IMAGES/0.png --ppi 300 --model MODEL")
    assert_modes(tmp_path / "parent", 0o640, 0o750, least=10)


def test_a_worker_follows_the_command_and_not_its_own_environment(run, monkeypatch):
    """A worker of a cluster has the environment of its own machine."""
    from fingerprint_accel import executors

    class Elsewhere(executors.InProcess):
        def submit(self, fn, /, *args, **kwargs):
            with monkeypatch.context() as worker:
                worker.setenv(VARIABLE, "077")
                return super().submit(fn, *args, **kwargs)

    monkeypatch.setenv(VARIABLE, "022")
    monkeypatch.setattr(executors, "InProcess", Elsewhere)
    assert_modes(run(COMMANDS["merge"]), 0o644, 0o755)


def test_notes_of_a_shared_model_stay_readable(run, tmp_path, monkeypatch):
    """Only a part of the folder would be left to the others."""
    monkeypatch.setenv(VARIABLE, "022")
    run("calibrate SMALL PRINTS --out NEW")
    monkeypatch.delenv(VARIABLE)
    run("calibrate NEW PRINTS")
    assert_modes(tmp_path / "parent", 0o644, 0o755, least=3)


def test_a_replaced_folder_is_private_again(run, tmp_path):
    run(COMMANDS["extract"])
    for path in [tmp_path / "parent" / "new", *(tmp_path / "parent" / "new").iterdir()]:
        path.chmod(0o755)
    run(COMMANDS["extract"] + " --overwrite --template int8")
    assert_modes(tmp_path / "parent")


@pytest.mark.parametrize(("text", "mask"), [("", 0o077), ("27", 0o027), ("027", 0o027), ("0027", 0o027), ("7", 0o007)])
def test_values_of_the_variable(monkeypatch, text, mask):
    monkeypatch.setenv(VARIABLE, text)
    assert umask() == mask


@pytest.mark.parametrize("text", ["0o27", "028", "127", "700", "-27", "group", " ", "00000"])
def test_a_wrong_variable_is_one_line(monkeypatch, capsys, tmp_path, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UserError):
        Gallery.create(tmp_path / "known", 16, "model")
    monkeypatch.setattr(sys, "argv", ["fingerprint-accel", "--version"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    line = f"error: {VARIABLE}={text}: give three octal digits that begin with 0, for example 027\n"
    assert (end.value.code, capsys.readouterr().err) == (2, line)
    assert not list(tmp_path.iterdir())


def test_blocks_in_several_threads_take_what_each_of_them_takes(tmp_path):
    def mode(name):
        (tmp_path / name).touch()
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    entered, leave = threading.Event(), threading.Event()

    def other():
        with private_files(0o027):
            entered.set()
            assert leave.wait(60)

    thread = threading.Thread(target=other)
    with private_files(0o022):
        assert mode("first") == 0o644
        thread.start()
        assert entered.wait(60)
        assert mode("both") == 0o640
    assert mode("only the other") == 0o640
    with private_files():
        assert mode("strictest") == 0o600
    leave.set()
    thread.join()
    assert mode("none") == 0o644


CRASH = """
import os, sys
from fingerprint_accel.privacy import private_files

os.chdir(sys.argv[1])
with private_files():
    os.abort()
"""


def test_a_crash_leaves_no_core_file(tmp_path):
    """It would contain the prints in memory."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if not hard or not Path("/proc/sys/kernel/core_pattern").read_text().startswith("core"):
        pytest.skip("this machine writes no core files into the working directory")
    limit = resource.RLIMIT_CORE, (hard, hard)
    for words, cores in ((CRASH.replace("private_files():", "open(os.devnull):"), 1), (CRASH, 0)):
        folder = tmp_path / str(cores)
        folder.mkdir()
        ended = subprocess.run(
            [sys.executable, "-c", words, str(folder)], check=False, preexec_fn=lambda: resource.setrlimit(*limit)
        )
        assert ended.returncode == -6
        assert len(list(folder.iterdir())) == cores


def test_the_limit_of_core_files_is_set_and_restored():
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with private_files():
        with private_files():
            pass
        assert resource.getrlimit(resource.RLIMIT_CORE) == (min(1, hard) if hard >= 0 else 1, hard)
    assert resource.getrlimit(resource.RLIMIT_CORE) == (soft, hard)


def test_prints_written_by_a_library_call_are_private(place, tmp_path):
    extractor = FingerprintExtractor.from_pretrained(place / "model")
    gallery = Gallery.create(tmp_path / "known" / "here", 16, extractor.identity)
    gallery.append(np.eye(16, dtype=np.float32)[:1], ["anna"])
    extractor.save_pretrained(tmp_path / "known" / "model")
    assert_modes(tmp_path / "known", least=5)
