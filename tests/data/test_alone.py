"""Of two commands that make the same folder, on one machine or on several, the second is refused."""

import pytest

from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.launch import Launch
from fingerprint_accel.data.packing import pack
from fingerprint_accel.data.part_folder import alone_at
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.bulk import extract_all
from fingerprint_accel.synthesis.writing import write_synthetic_dataset
from tests.data.small_datasets import QUIET


def import_images(prints, out):
    (out.parent / "scans").mkdir(exist_ok=True)
    (out.parent / "scans" / "1_1.png").write_bytes(b"")
    import_dataset(out.parent / "scans", out, "fvc", 500, workers=1, progress=False)


COMMANDS = {
    "import": import_images,
    "pack": lambda prints, out: pack([prints], out, **QUIET),
    "synth": lambda prints, out: write_synthetic_dataset(out, 1, 1, workers=1, progress=False),
    "extract": lambda prints, out: extract_all(prints, out, "small", progress=False),
}


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_two_at_once(command, prints, tmp_path):
    out = tmp_path / "out"
    with alone_at(out, Launch()), pytest.raises(UserError, match="out: another command is making it; wait for it"):
        command(prints, out)
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_one_that_was_killed_keeps_nobody(prints, tmp_path):
    (tmp_path / ".out.lock").touch()
    COMMANDS["pack"](prints, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_processes_of_a_launch_do_not_ask(tmp_path):
    with alone_at(tmp_path / "out", Launch()), alone_at(tmp_path / "out", Launch(rank=1, size=2)):
        assert (tmp_path / ".out.lock").exists()
