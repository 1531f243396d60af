"""`--help` of the command line and of the recipes: complete, readable on 80 columns, and printed without torch."""

import dataclasses
import functools
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fingerprint_accel import cli
from fingerprint_accel.cli import GROUPS, VERBS, overview
from fingerprint_accel.command_line import fill, parse_command_line

ROOT = Path(__file__).resolve().parent.parent
ALL_HELP = """
import contextlib, io, json, sys
from fingerprint_accel.cli import VERBS, main

texts = {}
for words in [["--help"], *([verb, "--help"] for verb in VERBS)]:
    sys.argv, shown = ["fingerprint-accel", *words], io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main()
    shown.seek(0)
    texts[words[0]] = shown.read()
assert "torch" not in sys.modules and "numpy" not in sys.modules
print(json.dumps(texts))
"""


def started(words, columns=80):
    environment = {**os.environ, "COLUMNS": str(columns)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def texts():
    """Help texts by verb, and "--help" for the overview; printed by a process that did not import torch."""
    begin = time.monotonic()
    result = started(["-c", ALL_HELP])
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - begin < 15, "nineteen texts"
    return json.loads(result.stdout)


def test_the_overview_has_one_line_for_each_verb(texts):
    text = texts["--help"]
    lines = text.splitlines()
    assert text == overview()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    for title, verbs in GROUPS.items():
        begin = lines.index(f"{title}:") + 1
        assert [line.split()[0] for line in lines[begin : begin + len(verbs)]] == list(verbs)
    assert "accelerate launch --quiet recipes/quickstart.py" in text
    assert (ROOT / "recipes" / "quickstart.py").is_file()


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb(verb, texts):
    usage, empty, first, *lines = texts[verb].splitlines()
    assert usage.startswith(f"usage: fingerprint-accel {verb} [-h]")
    assert empty == ""
    assert re.fullmatch(r"[A-Z][a-z]+ .*[a-z]\.", first), "a sentence"
    assert f"  {verb:<13}{first}" in texts["--help"].splitlines()
    assert max(map(len, lines)) <= 80
    examples = [line for line in lines if line.startswith(f"  fingerprint-accel {verb}")]
    assert 1 <= len(examples) <= 3
    box = next(number for number, line in enumerate(lines) if line.startswith("╭─"))
    assert lines.index("Examples:") < lines.index(examples[-1]) < box
    options = "\n".join(lines[box:])
    for name_of_a_type in ("PATH", "STR", "INT", "FLOAT", "{None}", "None", "default: )", "''"):
        assert not re.search(rf"(?<![A-Za-z]){re.escape(name_of_a_type)}(?![A-Za-z])", options), name_of_a_type


def test_positional_arguments_have_names(texts):
    usages = {verb: text.splitlines()[0] for verb, text in texts.items()}
    assert usages["import"].endswith("[OPTIONS] SRC")
    assert usages["merge"].endswith("[OPTIONS] SRC ...")
    assert usages["evaluate"].endswith("[OPTIONS] MODEL DATASET")
    assert usages["search"].endswith("[OPTIONS] GALLERY PROBE ...")
    assert usages["compare"].endswith("[OPTIONS] REFERENCE PROBE")
    assert usages["convert-flx"].endswith("CHECKPOINT --out OUT")


def test_every_option_is_explained(texts):
    """An option of `texts` begins a line of a box; its sentence follows on the same line or the next one."""
    for verb in VERBS:
        rows = [line[2:-1].rstrip() for line in texts[verb].splitlines() if line.startswith("│")]
        for row, following in itertools.pairwise([*rows, ""]):
            if row.startswith("--"):
                words = row.partition("  ")[2].strip() or following
                assert re.match(r"\s*[A-Za-z]", words), f"{verb}: {row}"


def test_examples_are_accepted(monkeypatch, texts):
    """Every example of a help text has options that its verb takes."""
    for verb in VERBS:
        text = texts[verb].split("Examples:\n")[1].replace("\\\n", " ")
        for line in re.findall(rf"^  fingerprint-accel {verb}.*$", text, re.MULTILINE):
            called = []
            taken = _signature_of(VERBS[verb], called)
            monkeypatch.setitem(cli.VERBS, verb, taken)
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            cli.main()
            assert called, line
            monkeypatch.undo()


def _signature_of(function, called):
    """A function with the parameters of another one, that only notes that it was called."""

    @functools.wraps(function)
    def taken(*arguments, **options):
        called.append((arguments, options))

    return taken


def test_the_help_of_a_recipe_keeps_paragraphs_and_commands():
    text = started(["recipes/quickstart.py", "--help"]).stdout
    description = text[text.index("\n\n") : text.index("╭")]
    assert "\n\naccelerate launch --quiet recipes/quickstart.py --out runs/quickstart\n\n" in description
    assert max(map(len, description.splitlines())) <= 80
    assert "--config FILE.yaml" in description
    assert "--training.epochs" in text


@dataclasses.dataclass(frozen=True)
class Inner:
    """Options of a part."""

    size: int = 3
    """Number of pixels
    along each side."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """All options."""

    name: str = "any"
    """A name that is
    written
    on three lines."""
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_docstrings_of_fields_are_joined(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        parse_command_line(Outer, "Does a thing.", ["--help"], default=Outer(name="other"))
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "\n\nDoes a thing.\n\n" in text
    assert "A name that is written on three lines. (default: other)" in text
    assert "Number of pixels along each side. (default: 3)" in text
    assert parse_command_line(Outer, "", ["--inner.size", "5"]) == Outer(inner=Inner(5))


def test_paragraphs_are_wrapped_and_commands_are_not():
    text = """One two three four five.

Six seven
eight nine.
accelerate launch recipes/NAME.py --with many words
Ten eleven.

  indented text that is longer than a line
"""
    assert fill(text, 12).splitlines() == [
        *("One two", "three four", "five.", ""),
        *("Six seven", "eight nine.", "accelerate launch recipes/NAME.py --with many words", "Ten eleven.", ""),
        "  indented text that is longer than a line",
    ]
