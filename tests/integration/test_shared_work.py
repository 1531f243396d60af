"""Launched processes import, pack, synthesise and extract what one does; one that is killed or fails ends all."""

import os
import subprocess

import numpy as np
import pytest
import starting
import torch
from PIL import Image

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.pack_options import PackOptions
from fingerprint_accel.data.packing import pack
from fingerprint_accel.extraction.bulk import extract_all
from fingerprint_accel.extraction.bulk_work import Options
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.synthesis.writing import write_synthetic_dataset

from .conftest import LAUNCHERS, launched

ALL_VERBS = """
import sys
from fingerprint_accel.cli import main
for words in {commands}:
    sys.argv[1:] = words
    main()
"""
KILLED = """
import os, signal, sys
from fingerprint_accel.data import importing
make_part = importing.make_part
def deadly(task):
    if os.environ["RANK"] == "1" and task.part > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_part(task)
importing.make_part = deadly
from fingerprint_accel.cli import main
main()
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Four parts of small pictures in flx's naming, with a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    y, x = np.mgrid[:120, :120]
    inside = (x - 60) ** 2 + (y - 60) ** 2 < 50**2
    for number in range(1, 61):
        picture = np.where(inside, 128 + 100 * np.cos(x / 1.5 + y / 9 + number), 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number}_1.png")
    (folder / "7_1.png").write_bytes(b"nothing")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_make_what_one_does(scans, environment, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=32)
    model = tmp_path / "model"
    FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320).save_pretrained(model)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    import_dataset(scans, alone / "import", "flx", 500, workers=1, progress=False)
    pack([alone / "import"], alone / "pack", PackOptions(encoding="lz4", rows_per_shard=20), workers=1, progress=False)
    write_synthetic_dataset(alone / "synth", 3, 1, workers=1, device="cpu", progress=False)
    extract_all(alone / "import", alone / "extract", str(model), options=Options(batch_size=1), progress=False)
    made = {verb: str(shared / verb) for verb in ("import", "pack", "synth", "extract")}
    commands = [
        ["import", str(scans), made["import"], "--layout", "flx", "--ppi", "500", "--workers", "1"],
        ["pack", str(alone / "import"), made["pack"], "--encoding", "lz4", "--rows-per-shard", "20"],
        ["synth", made["synth"], "--fingers", "3", "--impressions", "1", "--workers", "1", "--device", "cpu"],
        ["extract", str(alone / "import"), "--out", made["extract"], "--model", str(model), "--batch-size", "1"],
    ]
    (tmp_path / "all_verbs.py").write_text(ALL_VERBS.format(commands=commands))
    result = launched("two processes", [tmp_path / "all_verbs.py"], environment)
    for summary in ("minutiae per print", "failure to extract", f"rejected files and reasons: {shared / 'import'}"):
        assert result.stdout.count(summary) == 1, "one process speaks"
    for verb in made:
        assert contents(shared / verb) == contents(alone / verb), verb
    assert sorted(path.name for path in shared.iterdir()) == sorted(made), "no parts are left"


def test_a_killed_process_ends_all_and_one_goes_on(scans, environment, tmp_path):
    script, out = tmp_path / "killed.py", tmp_path / "set"
    script.write_text(KILLED)
    words = ["import", str(scans), str(out), "--layout", "flx", "--ppi", "500", "--workers", "1"]
    command = [*LAUNCHERS["two processes"], str(script), *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert not out.exists()
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".set.parts").glob("part-*")}
    assert "part-00001.arrow" in made
    assert "part-00003.arrow" not in made
    import_dataset(scans, out, "flx", 500, workers=1, progress=False)
    import_dataset(scans, tmp_path / "whole", "flx", 500, workers=1, progress=False)
    assert contents(out) == contents(tmp_path / "whole")
    assert not (tmp_path / ".set.parts").exists()


def test_a_mistake_is_one_line_of_one_process(environment, tmp_path):
    """Also where no launcher ends the others."""
    words = ["synth", tmp_path / "set", "--fingers", "1", "--impressions", "1", "--sensors", "acoustic"]
    result = starting.run(["-m", "fingerprint_accel.cli", *words], 2, environment)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: sensor 'acoustic': unknown; there are optical, ")
    assert os.listdir(tmp_path) == []  # noqa: PTH208
