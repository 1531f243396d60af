"""Packages import each other in one direction, from left to right, also inside functions and for type checkers."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "fingerprint_accel"
ORDER = [
    "data",
    "synthesis",
    "preprocess",
    "models",
    "losses",
    "metrics",
    "training",
    "extraction",
    "evaluation",
    "cli",
]
LEAVES = {"command_line", "config", "config_dict", "config_network", "config_prints", "durable"}
LEAVES |= {"errors", "executors", "jobs", "privacy", "temporary"}
LEAVES |= {
    "outputs",
    "random",
    "ranks",
    "staging",
    "similarity",
    "tensor_files",
    "text",
    "untrusted",
}  # modules that every package may import
ABOVE = {
    "compat",
    "plan",
    "plan_devices",
    "plan_network",
    "plan_scaling",
    "recipe",
}  # what puts packages together; only the command line may import it


def imports(path):
    """Modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "fingerprint_accel":
            yield from (f"fingerprint_accel.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module.startswith("fingerprint_accel."):
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("fingerprint_accel."))


def against_the_order(path):
    """What a file imports although it stands before it."""
    ours = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        theirs = module.split(".")[1]
        if theirs in (ours, "__version__") or ours in ABOVE or ours == "__init__":
            continue
        if ours in LEAVES:
            allowed = theirs in LEAVES
        elif theirs in ORDER:
            allowed = ORDER.index(theirs) < ORDER.index(ours)
        else:
            allowed = theirs in LEAVES or ours == "cli"
        if not allowed:
            yield f"{path.relative_to(PACKAGE)} imports {module}"


def test_imports_go_in_one_direction():
    found = [line for path in sorted(PACKAGE.rglob("*.py")) for line in against_the_order(path)]
    assert not found


def test_every_package_has_its_place():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == {*ORDER, "compat"}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == LEAVES | ABOVE - {"compat"}


def test_an_arrow_against_the_order_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "wrong.py"
    file.write_text("def late():\n    from fingerprint_accel.training.loop import train\n")
    assert list(against_the_order(file)) == ["data/wrong.py imports fingerprint_accel.training.loop"]
    file.write_text("import fingerprint_accel.data.order\nfrom fingerprint_accel import errors, recipe\n")
    assert list(against_the_order(file)) == ["data/wrong.py imports fingerprint_accel.recipe"]
