import subprocess
import sys
from pathlib import Path

import pytest
import starting

from fingerprint_accel import __version__
from fingerprint_accel.cli import overview
from fingerprint_accel.errors import one_line_errors

ROOT = Path(__file__).resolve().parent.parent


def run(*words):
    return starting.run(["-m", "fingerprint_accel.cli", *words])


def test_the_version():
    command = [sys.executable, "-m", "fingerprint_accel.cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == __version__


def test_without_a_verb_the_overview_is_shown():
    result = run()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == overview()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inspect", "nowhere"), "nowhere: not a dataset folder"),
        (("import", "nowhere", "--out", "out", "--layout", "fvc", "--ppi", "500"), "nowhere: no such folder"),
        (("merge", "nowhere", "--out", "out"), "nowhere: not a dataset folder"),
        (("pack", "a", "b"), "pack: no such verb; use merge to join datasets"),
        (("verify", "nowhere"), "nowhere: holds no checksums"),
        (("imprt", "a"), "imprt: no such verb; did you mean import? `fingerprint-accel --help` lists all verbs"),
        (("xyz",), "xyz: no such verb; `fingerprint-accel --help` lists all verbs"),
        (("merge", "--out", "out"), "no SRC given"),
        (("enroll", "gallery"), "no PRINTS given"),
        (("minutiae", "--model", "small", "--out", "out"), "no IMAGE given"),
        (("evaluate", "nowhere", "nowhere"), "nowhere: no model here"),
        (("convert-flx", "nowhere.pyt", "--out", "out"), "nowhere.pyt: cannot be read"),
        (("compare", "a.png", "b.png", "--model", "nowhere"), "nowhere: no model here"),
        (("calibrate", "small", "nowhere"), "small: a bundled model is not changed; give --out FOLDER"),
        (("calibrate", "small", "nowhere", "--out", "copy"), "nowhere: not a dataset folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, message, tmp_path):
    result = run(*words)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_place_that_cannot_be_written(prints, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("inspect", str(prints), "--out", str(tmp_path / "file" / "sheet.png"))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'file'}")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ((), "interrupted; nothing is lost"),
        (("3 of 4 shards are finished",), "interrupted; 3 of 4 shards are finished"),
    ],
)
def test_ctrl_c(texts, line, capsys):
    def stopped():
        raise KeyboardInterrupt(*texts)

    with pytest.raises(SystemExit) as stop, one_line_errors("interrupted; nothing is lost"):
        stopped()
    assert stop.value.code == 130
    assert capsys.readouterr().err == f"\n{line}\n"


def test_plan_shows_what_takes_seconds():
    result = run("plan", "--fingers", "1000", "--impressions", "8", "--trunk", "compact")
    assert result.returncode == 0, result.stderr
    stages = ["loading PyTorch: ", "counting parameters and operations of compact: "]
    assert [stage in result.stderr for stage in stages] == [True, True]
    assert "8,000 of 1,000 fingers" in result.stdout
    assert "loading" not in result.stdout


def test_inspect_prints_counts_and_draws(prints, tmp_path):
    result = run("inspect", str(prints), "--out", str(tmp_path / "sheet.png"))
    assert result.returncode == 0, result.stderr
    assert "96" in result.stdout
    assert "4 to 4, median 4" in result.stdout
    from PIL import Image

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 320, 5 * (320 + 18))


def test_merge_and_verify(prints, tmp_path):
    out = str(tmp_path / "out")
    result = run("merge", str(prints), "--out", out, "--encoding", "lz4", "--rows-per-shard", "40", "--canvas", "256")
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (lines["fingers"], lines["impressions"], lines["shards"], lines["rejected"]) == ("24", "96", "3", "0")
    result = run("verify", out)
    assert result.returncode == 0, result.stderr
    assert f"{out}: 6 files, " in result.stdout, "three shards, and what describes the dataset"
    text = run("inspect", out, "--out", str(tmp_path / "sheet.png")).stdout
    assert "lz4" in text
    assert "256 x 256" in text


def test_torch_and_torchvision_of_different_builds():
    """What timm raises then becomes one line with the remedy."""
    code = """
import importlib.abc, sys
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
from fingerprint_accel.config import ModelConfig
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.models.deepprint import DeepPrint
DeepPrint(ModelConfig(trunk="compact"))  # does without
with one_line_errors("interrupted"):
    DeepPrint(ModelConfig(trunk="inception_v4"))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install --force-reinstall torch torchvision" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
