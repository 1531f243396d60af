"""Run trials on several processes, and keep their outcomes."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from .children import die_with_parent
from .lab import Lab
from .results import Records, Trial

PACKAGE = Path(__file__).resolve().parents[2] / "fingerprint_accel"


def begin(folder: Path) -> None:
    """Start over in a folder if its outcomes are those of other code; they are kept as `outcomes-before.jsonl`."""
    code = hashlib.sha256()
    for file in sorted([*PACKAGE.rglob("*.py"), *Path(__file__).parent.glob("*.py")]):
        code.update(file.read_bytes())
    stamp = folder / "code"
    if stamp.exists() and stamp.read_text() != code.hexdigest():
        print(f"{folder}: the code has changed, so everything is tried again", file=sys.stderr)
        shutil.rmtree(folder / "material", ignore_errors=True)
        (folder / "undisturbed.json").unlink(missing_ok=True)
        if (folder / "outcomes.jsonl").exists():
            (folder / "outcomes.jsonl").replace(folder / "outcomes-before.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(code.hexdigest())


def run(lab: Lab, parts: Sequence[ModuleType], sample: bool, minutes: float, count: int) -> bool:
    """Run the trials of all parts that are not done yet. A part that takes its time runs beside the others.

    Returns:
        Whether the suite itself failed in a trial, which has no outcome then.

    Args:
        lab: The lab.
        parts: Modules of the parts.
        sample: Whether to run only a few trials of each part.
        minutes: Time for all parts.
        count: Number of processes.
    """
    end, failed = time.monotonic() + 60 * minutes, False
    beside = [_lane(lab, part, _pending(lab, part, sample, minutes), end, "beside") for part in parts if part.BESIDE]
    others = [part for part in parts if not part.BESIDE]
    for position, part in enumerate(others):
        share = part.SHARE / sum(each.SHARE for each in others[position:])
        until = time.monotonic() + share * (end - time.monotonic())
        trials = _pending(lab, part, sample)
        lanes = [_lane(lab, part, trials[lane::count], until, str(lane)) for lane in range(count)]
        failed = _wait(lab, part.PART, len(trials), lanes) or failed
    if beside:
        failed = _wait(lab, "the rest", len(beside), beside) or failed
    return failed


def _pending(lab: Lab, part: ModuleType, sample: bool, minutes: float = 0.0) -> list[Trial]:
    done = Records(lab.folder).done
    plan = part.plan(sample, minutes) if part.BESIDE else part.plan(sample)
    return [trial for trial in plan if trial.key not in done]


def _lane(lab: Lab, part: ModuleType, trials: Sequence[Trial], until: float, name: str) -> int:
    """Start a process that runs trials one after another; return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        die_with_parent()
        code = _work(lab.lane(name), part, trials, until)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _work(lab: Lab, part: ModuleType, trials: Sequence[Trial], until: float) -> int:
    """Run trials one after another; return 1 if the suite itself failed in one of them."""
    records, code = Records(lab.folder), 0
    for trial in trials:
        started = time.monotonic()
        if started > until:
            break
        try:
            outcome = part.run(lab, trial)
        except Exception:  # it is tried again by the next call
            print(f"\n{trial.key}:", file=sys.stderr)
            traceback.print_exc()
            code = 1
        else:
            records.add(trial, outcome, time.monotonic() - started)
    return code


def _wait(lab: Lab, name: str, total: int, lanes: Sequence[int]) -> bool:
    """Show the progress of lanes until they end; return whether the suite itself failed in one."""
    before, left, failed = len(Records(lab.folder).rows), set(lanes), False
    with tqdm(total=total, desc=name, unit="trial") as bar:
        while left:
            for lane in list(left):
                ended, status = os.waitpid(lane, os.WNOHANG)
                if ended:
                    left.discard(lane)
                    failed = failed or status > 0
            rows = Records(lab.folder).rows[before:]
            bar.set_postfix_str(f"{sum(len(row['details']) for row in rows)} failures", refresh=False)
            bar.update(len(rows) - bar.n)
            time.sleep(0.5 if left else 0)
    return failed
