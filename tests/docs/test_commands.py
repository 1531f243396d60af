"""Every command of the README and of docs/ runs as pasted, or its page says why the tests do not run it."""

from __future__ import annotations

import os
import re
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import starting
from PIL import Image

from fingerprint_accel.data.shards import open_dataset
from tests.docs.commands import PAGES, ROOT, Command, commands, expanded

# A recipe of a page trains two steps on a small network. The options of the page come first and are all checked.
FEW_STEPS = {
    "training.steps": "2",
    "training.batch-size": "4",
    "training.warmup-steps": "1",
    "training.validate-every": "2",
    "training.save-every": "1",
    "training.tracker": "none",
}
SMALL_NETWORK = {"model.trunk": "compact", "preprocess.crop": "128", "preprocess.size": "64"}
OWN_NETWORK = ("finetune.py", "pretrain_small.py", "pretrain_base.py", "quickstart.py")
SETUP = ("pip", ".venv/", ".venv-test/", "python3 -m venv", "accelerate config")  # the tests do not install
FINGERS, IMPRESSIONS = 10, 4
MADE = "6"  # fingers that a page makes or renders


@pytest.fixture(scope="session")
def workplace(prints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name: images, datasets, a run, a gallery."""
    folder = tmp_path_factory.mktemp("workplace")
    shards = open_dataset(prints)
    (folder / "scans" / "DB1_B").mkdir(parents=True)
    for row in np.lexsort((shards.impressions, shards.fingers)).tolist():
        finger, impression = int(shards.fingers[row]), int(shards.impressions[row])
        if finger < FINGERS:
            image = Image.fromarray(shards.image(row)).resize((533, 533), Image.Resampling.BICUBIC)
            image.save(folder / "scans" / "DB1_B" / f"{101 + finger}_{impression + 1}.png")
    for name, which in {"a": "101_1", "b": "101_2", "unknown": "103_3"}.items():
        shutil.copy(folder / "scans" / "DB1_B" / f"{which}.png", folder / f"{name}.png")
    (folder / "scans" / "mine").mkdir()
    for finger in range(FINGERS):
        for impression in range(6):  # docs/first_hour.md names the sixth
            source = folder / "scans" / "DB1_B" / f"{101 + finger}_{1 + impression % IMPRESSIONS}.png"
            shutil.copy(source, folder / "scans" / "mine" / f"{1 + finger}_{1 + impression}.png")
    for name in ("101_1", "102_1", "103_1"):
        shutil.copy(folder / "scans" / "DB1_B" / f"{name}.png", folder / "scans" / f"{name}.png")
    for line in (
        "fingerprint-accel import scans/DB1_B --out datasets/db1 --layout fvc",
        f"fingerprint-accel merge {prints} --out datasets/db2 --keep '.*[67]'",
        "accelerate launch --quiet recipes/finetune.py --data datasets/db1 --out runs/db1",
        "fingerprint-accel enroll known datasets/db1",
    ):
        carry_out(Command("the workplace", line), folder)
    return folder


def carry_out(command: Command, folder: Path) -> None:
    """Run one command in a folder; a failure shows the last lines that the command printed."""
    words = expanded(command.words, folder)
    processes = 1
    if words[:2] == ["accelerate", "launch"] or words[0] == "torchrun":
        processes = 2 if words[0] == "torchrun" else 1
        words = words[next(place for place, word in enumerate(words) if word.endswith(".py")) :]
    words = words[1:] if words[0] == "python" else words
    if words[0] == "fingerprint-accel":
        words = ["-m", "fingerprint_accel.cli", *words[1:]]
    elif words[0].startswith(("recipes/", "examples/", "benchmarks/")):
        words = [str(ROOT / words[0]), *words[1:]]
    elif words[0] != "-c":
        pytest.fail(f"{command.page}: no way to run `{command.text}`; mark its block <!-- not run: reason -->")
    words = with_few_steps(words) if "/recipes/" in words[0] else with_few_fingers(words)
    words += ["--batch-size", "4", "--steps", "2"] if words[0].endswith("own_loop.py") else []
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    result = starting.run(words, processes, environment, cwd=folder, one_core=True)
    last = "\n".join((result.stdout + result.stderr).replace("\r", "\n").splitlines()[-15:])
    assert result.returncode == 0, f"{command.page}: `{command.text}` ends in\n{last}"


def with_few_fingers(words: list[str]) -> list[str]:
    """Let `synth` make at most `MADE` fingers."""
    is_synth = words[2:3] == ["synth"]
    return [MADE if is_synth and before == "--fingers" else word for before, word in pairwise(["", *words])]


def with_few_steps(words: list[str]) -> list[str]:
    """Add options to a recipe, so that it trains two steps on a small network and few synthetic fingers."""
    words = [re.sub(r"^synth:fingers=\d+", f"synth:fingers={MADE}", word) for word in words]
    quick = FEW_STEPS | ({} if words[0].endswith(OWN_NETWORK) else SMALL_NETWORK)
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    return [*words, *(part for name, value in quick.items() if name not in given for part in (f"--{name}", value))]


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.stem)
def test_commands_run_as_pasted(page: Path, workplace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(workplace, folder)
    written = set()
    for command in commands(page):
        if command.not_run or command.text.startswith(SETUP):
            continue
        out = next((word for before, word in pairwise(command.words) if before == "--out"), "")
        if out and out not in written and (folder / out).is_dir():
            shutil.rmtree(folder / out)  # the page makes what the workplace already has
        written.add(out)
        carry_out(command, folder)


def marked() -> list[tuple[str, str]]:
    """Return the program and the option of each command that no test runs, for the verbs and the recipes."""
    found = set()
    for page in PAGES:
        for command in commands(page) if page.exists() else []:
            if not command.not_run or "earlier commit" in command.not_run:
                continue
            words = command.words
            recipe = next((word for word in words if word.startswith("recipes/") and word.endswith(".py")), "")
            verb = f"fingerprint-accel {words[1]}" if words[0] == "fingerprint-accel" else ""
            first = words.index(recipe) if recipe else 0
            options = (word.split("=")[0] for word in words[first:] if word.startswith("--"))
            found |= {(recipe or verb, option) for option in options if recipe or verb}
    return sorted(found)


@cache
def help_of(program: str) -> str:
    """Return the help of a recipe or a verb."""
    words = ["-m", "fingerprint_accel.cli", program.split()[1]] if " " in program else [str(ROOT / program)]
    return starting.run([*words, "--help"]).stdout


@pytest.mark.parametrize(("program", "option"), marked())
def test_options_of_commands_that_are_not_run_exist(program: str, option: str) -> None:
    assert re.search(rf"{re.escape(option)}\b", help_of(program)), f"{program} has no option {option}"
