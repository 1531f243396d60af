"""Run in 12 minutes what should be checked on a GPU: tests, losses, memory, and speed.

python benchmarks/gpu_day.py
python benchmarks/gpu_day.py --only tests precision tex --minutes 6
python benchmarks/gpu_day.py --dry-run                    # every item with tiny sizes, on a CPU

The items are ordered by value. Each command has its own process, and each item a time limit, so that a failure or a
crash costs only one command. The results are written after every command, to gpu_day.json and gpu_day.log in --out. A
later call with other items keeps the results of the earlier one. The exit code is 1 if a command failed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from gpu_day_items import SYNTH, Item, items
from gpu_day_table import table
from results_file import check_results, write_results

from fingerprint_accel.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[1]
SETTING = "import json, torch, machine as m; d = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\n"
SETTING += "print(json.dumps({**m.machine(d), 'versions': m.versions()}))"
SIZES = {False: "--fingers 400 --impressions 8 --device cuda", True: "--fingers 8 --impressions 4 --workers 1"}
LEAST = 15.0  # seconds: in less time a command only starts
LINES = 12  # last lines of a failed command that are printed
TEST = re.compile(r"(?:(PASSED|FAILED|ERROR|SKIPPED) )?(tests/\S+\.py::.*?)(?: (PASSED|FAILED|ERROR|SKIPPED)\b.*)?$")


def tests_in(output: str) -> dict[str, Any]:
    """Return the numbers of tests that passed and were skipped, and the names of those that failed.

    The output of `pytest -v` names every test as soon as it has ended, so that tests before a time limit count.
    """
    found: dict[str, list[str]] = {"PASSED": [], "FAILED": [], "ERROR": [], "SKIPPED": []}
    for line in output.partition(" short test summary ")[0].splitlines():
        match = TEST.search(line)
        if match and (outcome := match[1] or match[3]):
            found[outcome].append(match[2].strip())
    failed = found["FAILED"] + found["ERROR"]
    return {"passed": len(found["PASSED"]), "skipped": len(found["SKIPPED"]), "failed": failed}


@dataclass
class Runner:
    """Runs commands in processes of their own.

    Attributes:
        work: folder for files that are not kept.
        log: file to which the output of all commands is appended.
        environment: environment of the commands.
    """

    work: Path
    log: Path
    environment: dict[str, str]

    def words(self, command: str, out: Path) -> list[str]:
        """Return the words of a command, with the places of files filled in."""
        places = {"DATA": str(self.work / "prints"), "OUT": str(out)}
        words = [places.get(word, word.replace("WORK/", f"{self.work}/")) for word in shlex.split(command)]
        return [sys.executable, *words]

    def run(self, label: str, command: str, seconds: float) -> dict[str, Any]:
        """Run a command, and return its `status` ("ok" or what went wrong), `seconds`, `results` and last output."""
        out = self.work / f"{label}.json"
        out.unlink(missing_ok=True)
        started = time.perf_counter()
        with self.log.open("ab") as log:
            log.write(f"\n$ python {command}\n".encode())
            log.flush()
            begin = log.tell()
            process = subprocess.Popen(
                self.words(command, out), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT,
                env=self.environment, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(max(1.0, seconds))
                status = "ok" if code == 0 else f"exit code {code}"
            except subprocess.TimeoutExpired:
                status = f"stopped after {seconds:.0f} s"
            finally:
                self._end(process)
        with self.log.open("rb") as log:
            log.seek(begin)
            output = log.read().decode(errors="replace")
        row: dict[str, Any] = {"command": f"python {command}", "status": status}
        row |= {"seconds": round(time.perf_counter() - started, 1), "said": output.splitlines()[-LINES:]}
        if "-m pytest" in command:
            row["results"] = tests_in(output)
        elif out.exists():
            row["results"] = json.loads(out.read_text())
        return row

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and all that it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)


def environment(dry_run: bool) -> dict[str, str]:
    """Return the environment of the commands. A dry run hides GPUs."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    made = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TQDM_MININTERVAL": "5", "PYTHONUNBUFFERED": "1"}
    return made | ({"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"} if dry_run else {})


def chosen(names: tuple[str, ...]) -> list[Item]:
    """Return the items with these names, or all items if there are none.

    Raises:
        UserError: There is no item of a name.
    """
    known = {item.name: item for item in items()}
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: there is no such item; choose from {', '.join(known)}")
    return [item for item in known.values() if not names or item.name in names]


def result_folder(gpu: str | None) -> Path:
    """Return the folder in benchmarks/results that is named after the GPU, such as `h200` for NVIDIA H200."""
    model = re.search(r"\b[A-Za-z]+\d+\w*", gpu or "")
    return ROOT / "benchmarks" / "results" / (model[0].lower() if model else "gpu")


def run_items(todo: list[Item], runner: Runner, until: float, dry_run: bool, keep: Any) -> None:
    """Run items until a time of `time.monotonic`, and call `keep(item, rows)` after every command.

    Args:
        todo: items to run, in this order.
        runner: runner of the commands.
        until: time at which the last command must have ended.
        dry_run: whether to run the tiny commands.
        keep: called with the item, and with a dictionary from labels to results.
    """
    for number, item in enumerate(todo, 1):
        rows: dict[str, Any] = {}
        end = min(until, time.monotonic() + item.seconds)
        for label, command in (item.tiny if dry_run else item.commands).items():
            left = end - time.monotonic()
            print(f"[{number}/{len(todo)}] {item.name}: {label} ...", end=" ", flush=True)
            if left < min(LEAST, item.seconds / 2):
                rows[label] = {"command": f"python {command}", "status": "not started", "seconds": 0.0, "said": []}
            else:
                rows[label] = runner.run(label, command, left)
            print(f"{rows[label]['status']}, {rows[label]['seconds']:.0f} s", flush=True)
            keep(item, rows)


def main(minutes: float = 12.0, only: tuple[str, ...] = (), dry_run: bool = False, out: Path | None = None) -> None:
    """Run what should be checked on a GPU, ordered by value.

    Args:
        minutes: Time for everything. Items that do not fit are not started.
        only: Names of items to run; default: all.
        dry_run: Run every item with tiny sizes on a CPU, without a time limit.
        out: Folder for gpu_day.json and gpu_day.log; default: benchmarks/results/GPU, a temporary one for a dry run.
    """
    until = time.monotonic() + (3600 if dry_run else 60 * minutes)
    todo, variables = chosen(only), environment(dry_run)
    asked = subprocess.run([sys.executable, "-c", SETTING], env=variables, cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        raise UserError(f"torch cannot be used: {asked.stderr.strip().splitlines()[-1]}")
    setting = json.loads(asked.stdout.splitlines()[-1])
    if setting["gpu"] is None and not dry_run:
        raise UserError("torch finds no GPU (`fingerprint-accel doctor` says why); --dry-run tries the items on a CPU")
    with tempfile.TemporaryDirectory() as folder:
        out = out or (Path(folder) / "out" if dry_run else result_folder(setting["gpu"]))
        file = out / "gpu_day.json"
        check_results(file)
        out.mkdir(parents=True, exist_ok=True)
        done: dict[str, Any] = json.loads(file.read_text())["items"] if file.exists() else {}

        def keep(item: Item, rows: dict[str, Any]) -> None:
            done[item.name] = {"title": item.title, "date": setting["date"], "commands": rows}
            write_results(file, {"items": done, "setting": {**setting, "command": sys.argv}})

        runner = Runner(Path(folder), out / "gpu_day.log", variables)
        print("prints ...", end=" ", flush=True)
        made = runner.run("prints", f"{SYNTH} --out DATA {SIZES[dry_run]}", 90)
        print(f"{made['status']}, {made['seconds']:.0f} s", flush=True)
        if made["status"] != "ok":
            raise UserError("no prints to work with: " + " | ".join(made["said"][-3:]))
        run_items(todo, runner, until, dry_run, keep)
        run = {item.name: done[item.name] for item in todo}
    failed = [row for item in run.values() for row in item["commands"].values() if row["status"] != "ok"]
    for row in failed:
        print("\n".join(["", f"$ {row['command']}", *row["said"]]))
    print(f"\n{table(run)}\n\nwritten to {file}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(main, description=__doc__)
