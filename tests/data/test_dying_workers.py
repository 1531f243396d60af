"""Workers of an import that die: the print at fault is named and left out, and prints that are not at fault stay."""

import faulthandler
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from fingerprint_accel.data import import_shard
from fingerprint_accel.data.import_shard import import_files, read_place, why_fatal
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.print_file import ImageFile, Reading, Target
from fingerprint_accel.errors import UserError
from tests.data.small_datasets import ridges


def segfault_on_small(image, ppi):
    """A filter of canvases that crashes on the small print."""
    if (image < 200).sum() < 9000:
        os.kill(os.getpid(), signal.SIGSEGV)
    return image


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for finger in range(1, 5):
        Image.fromarray(ridges(finger)).save(folder / f"{finger}_1.png")
    small = np.full((300, 300), 255, np.uint8)
    small[80:220, 80:220] = ridges(1)[80:220, 80:220]
    Image.fromarray(small).save(folder / "3_1.png")
    return folder


def test_the_draft_of_a_shard_tells_which_print_has_killed_the_worker(scans, tmp_path, monkeypatch):
    files = [ImageFile(scans / f"{finger}_1.png", name=f"{finger}_1.png") for finger in range(1, 5)]
    target = Target(300, 320, segfault_on_small)
    shard = {}, Reading(), target, "raw", tmp_path / "shard"
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        import_files(files, *shard)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
    assert read_place(tmp_path / "shard") == 2
    monkeypatch.setattr(import_shard, "exit_code_of", lambda *args: -signal.SIGSEGV)
    reason = why_fatal(files[2], Reading(), target)
    assert reason == "damaged: it crashes the import (SIGSEGV); copy it again"
    facts = import_files(files, {"3_1.png": reason}, *shard[1:])
    assert (facts["rows"], facts["rejected"]) == (3, [("3_1.png", reason, False)])
    assert read_place(tmp_path / "shard") is None  # a shard that is written names no print


@pytest.mark.parametrize("codes, reason", [([0], ""), ([-signal.SIGKILL, 0], ""), ([1], "")])
def test_a_print_is_not_blamed_for_a_process_that_was_killed_from_outside(tmp_path, monkeypatch, codes, reason):
    monkeypatch.setattr(import_shard, "exit_code_of", lambda *args: codes.pop(0))
    assert why_fatal(ImageFile(tmp_path / "1_1.png"), Reading(), Target(300, 320)) == reason


def test_an_import_whose_processes_are_killed_again_and_again_names_the_print(tmp_path, monkeypatch):
    monkeypatch.setattr(import_shard, "exit_code_of", lambda *args: -signal.SIGKILL)
    with pytest.raises(UserError, match=r"50_1\.png: the process that imports it was killed twice \(SIGKILL\)"):
        why_fatal(ImageFile(tmp_path / "50_1.png"), Reading(), Target(300, 320))


@pytest.mark.skipif(not os.environ.get("SLOW_TESTS"), reason="takes 5 s; set SLOW_TESTS=1")
def test_an_import_with_several_workers_leaves_out_the_print_that_kills_them(scans, tmp_path):
    summary = import_dataset(scans, tmp_path / "set", "fvc", 500, workers=2, enhance=segfault_on_small, progress=False)
    assert summary.info.prints == 3
    assert json.loads((tmp_path / "set" / "rejected.jsonl").read_text()) == {
        "path": "3_1.png",
        "reason": "damaged: it crashes the import (SIGSEGV); copy it again",
    }
