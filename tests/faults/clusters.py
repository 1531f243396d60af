"""Kill commands and workers while a Dask cluster does the work."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from .children import Child
from .commands import COMMANDS, emptied, wait_all
from .lab import Lab, reason
from .results import Outcome, Trial

PART = "clusters"
BESIDE = False
SHARE = 3
TRIALS = {"SIGKILL of a client of Dask": 5, "SIGKILL of a Dask worker": 5}  # of a command
NAMES = ("import", "merge", "synth", "extract")
_clusters: dict[int, Child] = {}  # of this process


def plan(sample: bool) -> Iterator[Trial]:
    """Iterate over the trials, in turn over commands. A cluster takes too long to start for a sample."""
    for number in range(0 if sample else max(TRIALS.values())):
        for fault, count in TRIALS.items():
            for name in NAMES:
                if number < count:
                    yield Trial(PART, fault, name, number)


def run(lab: Lab, trial: Trial) -> Outcome:
    """Kill the command or one of two workers at a random moment, and finish the command without a cluster."""
    command, chance, outcome = COMMANDS[trial.subject], lab.chance(trial), Outcome()
    folder, seconds = command.prepare(lab.work / "cluster", lab.material), lab.undisturbed(command).seconds
    cluster, address = _cluster(lab)
    children = command.begin(folder, lab.material, more=["--cluster", address])
    time.sleep(chance.uniform(0.1, 2 * seconds))
    if trial.fault == "SIGKILL of a Dask worker":
        os.kill(chance.choice(_workers(cluster)), signal.SIGKILL)
    else:
        children[0].kill()
    ended = wait_all(children)
    outcome.measure(ended.seconds, ended.megabytes)
    if ended.code != -signal.SIGKILL and ended.verdict not in ("ok", "named"):
        return outcome.note(ended.verdict, reason(ended))
    if ended.verdict == "named" and trial.fault == "SIGKILL of a Dask worker":
        return outcome.note("lost", f"the other worker did not take over: {reason(ended)}")
    if not lab.check_whole(command, folder, outcome, f"after {trial.fault}"):
        return outcome
    return lab.finish(command, folder, outcome)


def _cluster(lab: Lab) -> tuple[Child, str]:
    """Return the cluster of this process, which is started if there is none, and its address."""
    file, err = lab.work / "address", ""
    for _ in range(3):  # a nanny sometimes gives up instead of replacing a killed worker
        if os.getpid() not in _clusters:
            file.unlink(missing_ok=True)
            _clusters[os.getpid()] = Child(lambda: _serve(file), emptied(lab.work / "scheduler"))
        cluster = _clusters[os.getpid()]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if file.exists() and len(_workers(cluster)) == 2:
                return cluster, file.read_text()
            time.sleep(0.05)
        err = _clusters.pop(os.getpid()).wait(0).err
    raise RuntimeError(f"the Dask cluster does not start: {err[-2000:]}")


def _serve(file: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        cluster.wait_for_workers(2)
        draft = file.with_suffix(".tmp")
        draft.write_text(cluster.scheduler_address)
        draft.replace(file)
        signal.pause()


def _workers(cluster: Child) -> list[int]:
    """Return the process ids of the workers of a cluster."""
    found = []
    for threads in Path(f"/proc/{cluster.pid}/task").glob("*/children"):
        for number in threads.read_text().split():
            if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes():
                found.append(int(number))
    return found
