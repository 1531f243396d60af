"""Every file and every name on the map of the code in CONTRIBUTING.md exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fingerprint_accel"
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
MAP = PAGE[PAGE.index("## Where a batch goes") : PAGE.index("## Release")]


def spans():
    """(file, name) for each name in backticks, with the file in backticks before it on the same line; name "" for a
    file alone."""
    for line in MAP.splitlines():
        file = ""
        for span in re.findall(r"`([^`]+)`", line):
            if span.endswith("/") or "/" in span or span.endswith(".py"):
                file = span
                yield file, ""
            elif file and re.fullmatch(r"[A-Za-z_][\w.]*", span):
                yield file, span


def path_of(file):
    return ROOT / file if file.startswith(("tests/", "recipes/", "benchmarks/")) else PACKAGE / file


def names(body):
    """Names that statements define: functions, classes with their members, assignments."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield node.name
            yield from (f"{node.name}.{name}" for name in names(node.body))
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


@pytest.mark.parametrize(("file", "name"), sorted(set(spans())))
def test_names_on_the_map_exist(file, name):
    assert path_of(file).exists(), f"{file}: no such file"
    if name and not name.endswith(".py"):
        assert name in set(names(ast.parse(path_of(file).read_text()).body)), f"{file} defines no {name}"


def test_the_map_covers_the_stations_of_a_batch_and_of_a_shard():
    found = set(spans())
    assert len({file for file, _ in found}) >= 40
    assert {("training/step.py", "optimizer_step"), ("data/shard_writing.py", "publish_dataset")} <= found


def test_commands_of_the_page_exist():
    for script in re.findall(r"^(\.ci/\w+)", PAGE, re.MULTILINE):
        assert (ROOT / script).stat().st_mode & 0o100, f"{script}: not executable"
