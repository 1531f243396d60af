"""The version has one source, and the files around the package agree with it."""

import ast
import tomllib
from pathlib import Path

import pytest
import yaml

import fingerprint_accel

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_a_literal_that_setuptools_reads_without_importing_torch():
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fingerprint_accel.__version__"}
    tree = ast.parse((ROOT / "fingerprint_accel" / "__init__.py").read_text())
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__"
    ]
    assert [ast.literal_eval(value) for value in values] == [fingerprint_accel.__version__]


def test_citation_and_changelog_have_the_version_and_its_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fingerprint_accel.__version__
    heading = f"## [{citation['version']}] - {citation['date-released']}"
    assert heading in (ROOT / "CHANGELOG.md").read_text().splitlines()


def test_type_hints_models_and_the_page_are_package_data():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["fingerprint_accel"]
    found = {path for pattern in patterns for path in (ROOT / "fingerprint_accel").glob(pattern)}
    assert {ROOT / "fingerprint_accel" / name for name in ("py.typed", "extraction/demo_page.html")} <= found
    assert {path.parent.name for path in found if path.suffix == ".safetensors"} == {"small", "base"}


def test_the_address_of_the_repository_is_kept_in_one_file():
    address = PYPROJECT["project"]["urls"]["Repository"]
    checked = [ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.*"), *(ROOT / "docs").glob("*.*")]
    assert [path for path in checked if path.is_file() and address in path.read_text()] == []


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_forms_and_workflows_are_yaml_and_forms_warn(path):
    values = yaml.safe_load(path.read_text())
    if "body" in values:
        assert "Never attach real fingerprints" in values["body"][0]["attributes"]["value"]
        fields = [field for field in values["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)
    if path.name == "ci.yml":
        assert ".ci/run" in [step.get("run") for step in values["jobs"]["test"]["steps"]]
        assert values["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
