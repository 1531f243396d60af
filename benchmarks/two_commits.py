"""Compare the speed of the working tree with that of a commit: import, merge, opening, first batch, save, training.

python benchmarks/two_commits.py COMMIT --out two_commits.json      # about half an hour on two cores

Both versions run alternately on the same machine, each measurement in a process of its own. A ratio below 1 means that
the working tree takes less time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import tyro
from machine import machine, versions
from results_file import check_results, write_results
from tqdm import tqdm
from two_commits_work import DATA, MEASURES, RESULT

from fingerprint_accel.errors import UserError, one_line_errors

HERE = Path(__file__).resolve().parent
OLD, NEW = "old", "new"

Times = dict[str, dict[str, list[float]]]  # seconds by measurement and version


def check_out(commit: str, folder: Path) -> None:
    """Write the files of a commit to an empty folder.

    Raises:
        UserError: git does not know the commit.
    """
    archive = folder / "tree.tar"
    done = subprocess.run(["git", "archive", "-o", archive, commit], cwd=HERE.parent, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{commit}: {done.stderr.strip()}; give a commit of this repository")
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    archive.unlink()


def seconds(measure: str, tree: Path, folder: Path, rows: int) -> float:
    """Run a measurement in a new process with the package of `tree`, and return its seconds.

    Raises:
        UserError: The process failed.
    """
    paths = os.pathsep.join([str(tree), str(tree / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-P", HERE / "two_commits_work.py", measure, folder, str(rows)],
        env={**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not found:
        raise UserError(f"{measure} failed with the package in {tree}:\n{done.stderr[-2000:]}")
    return float(found[-1].removeprefix(RESULT))


def measured(
    trees: dict[str, Path], folders: dict[str, Path], measures: tuple[str, ...], rounds: int, rows: int
) -> dict:
    """Return the seconds of each round by measurement and version. Rounds begin with either version in turn."""
    found: dict[str, dict[str, list[float]]] = {measure: {OLD: [], NEW: []} for measure in measures}
    with tqdm(total=len(measures) * rounds * len(trees), unit="run", disable=None) as bar:
        for measure in measures:
            bar.set_description(measure)
            for number in range(rounds):
                for version in (OLD, NEW) if number % 2 else (NEW, OLD):
                    found[measure][version].append(seconds(measure, trees[version], folders[version], rows))
                    bar.update()
    return found


def table(found: Times) -> str:
    """Return the medians and their ratio as a Markdown table."""
    lines = ["| measurement | before, ms | now, ms | ratio of medians |", "| --- | --: | --: | --: |"]
    for measure, times in found.items():
        before, now = (statistics.median(times[version]) for version in (OLD, NEW))
        lines.append(f"| {MEASURES[measure][1]} | {1000 * before:,.1f} | {1000 * now:,.1f} | {now / before:.3f} |")
    return "\n".join(lines)


def main(
    commit: Annotated[str, tyro.conf.Positional],
    only: tuple[str, ...] = tuple(MEASURES),
    rounds: int = 7,
    rows: int = 1_500_000,
    out: Path | None = None,
) -> None:
    """Compare the speed of the working tree with that of a commit.

    Args:
        commit: The commit to compare with, as git names it.
        only: The measurements to make.
        rounds: Processes per measurement and version.
        rows: Prints in the dataset that is opened.
        out: JSON file to write.
    """
    check_results(out)
    if unknown := set(only) - set(MEASURES):
        raise UserError(f"--only: unknown {', '.join(sorted(unknown))}; choose from {', '.join(MEASURES)}")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {version: Path(scratch) / version for version in (OLD, NEW)}
        old_tree = Path(scratch) / "tree"
        for folder in (*folders.values(), old_tree):
            folder.mkdir()
        check_out(commit, old_tree)
        trees = {OLD: old_tree, NEW: HERE.parent}
        for version, folder in folders.items():
            print(f"making the data of the {version} version", file=sys.stderr)
            seconds(DATA, trees[version], folder, rows)
        found = measured(trees, folders, only, rounds, rows)
    print(table(found))
    if out:
        cpu = torch.device("cpu")
        facts = {"command": sys.argv, "machine": machine(cpu), "versions": versions(), "commit": commit, "rows": rows}
        write_results(out, {**facts, "seconds": found})


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main)
