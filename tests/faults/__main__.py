"""Run the fault suite: `python -m tests.faults [--minutes N] [--only PART,...] [--seed S] [--out FOLDER]`.

The outcomes are kept in FOLDER as they come. The same command goes on where an earlier one has stopped. The last lines
are the table for docs/reliability.md and the failures, each with the value of --only that repeats it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("kills", "clusters", "full_disk", "moments", "damage", "power_cuts", "fuzzing", "endurance")
IMPORTED = (
    *("faiss", "distributed", "torch.export", "wsq", "fingerprint_accel.cli", "fingerprint_accel.evaluation.run"),
    *("fingerprint_accel.evaluation.calibration", "fingerprint_accel.evaluation.audit.command"),
    *(
        "fingerprint_accel.extraction.enrolment",
        "fingerprint_accel.extraction.search",
        "matplotlib.backends.backend_agg",
    ),
    *("fingerprint_accel.extraction.export", "fingerprint_accel.extraction.comparison", "fingerprint_accel.compat.flx"),
    *("fingerprint_accel.data.importing", "fingerprint_accel.data.merging", "fingerprint_accel.data.inspection"),
)


def main() -> int:
    """Run the chosen parts; return 1 if a trial failed, and 2 if the suite itself did."""
    arguments = _arguments()
    os.environ.update(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")  # before torch is imported
    for name in (*_starting().IMPORTED, *IMPORTED):
        importlib.import_module(name)
    from tests.faults import lanes
    from tests.faults.lab import Lab
    from tests.faults.results import Records, Trial

    lanes.begin(arguments.out)
    lab = Lab(arguments.out, arguments.seed)
    before, broken = len(Records(lab.folder).rows), False
    if "::" in arguments.only:  # one trial, also if it is done
        trial = Trial.of(arguments.only)
        Records(lab.folder).add(trial, _module(trial.part).run(lab, trial))
    else:
        parts = [_module(word) for word in arguments.only.split(",")]
        count = 1 if arguments.sample else len(os.sched_getaffinity(0))
        broken = lanes.run(lab, parts, arguments.sample, arguments.minutes, count)
    records = Records(lab.folder)
    tables = records.tables()
    (lab.folder / "table.md").write_text(f"{tables}\n")
    (lab.folder / "details.md").write_text(records.tables(("part", "fault", "subject")) + "\n")
    (lab.folder / "failures.txt").write_text("".join(f"{line}\n" for line in records.failures()))
    (lab.folder / "findings.txt").write_text("".join(f"{line}\n" for line in records.findings()))
    failures = len(records.failures(before))
    print(f"\n{tables}\n")
    print("\n".join(records.findings(before)))
    print(f"{len(records.rows) - before} trials in this run, {failures} failures; everything is in {lab.folder}")
    lab.clear()
    if broken:
        print("the suite itself failed in some trials, see above")
    return 2 if broken else int(failures > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=75.0, help="stop after this time")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts ({', '.join(PARTS)}) or one trial as reported")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument("--out", type=Path, default=Path("faults"), help="folder of the outcomes")
    parser.add_argument("--sample", action="store_true", help="the few trials that continuous integration runs")
    return parser.parse_args()


def _starting():
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks"), str(ROOT)]
    import starting

    return starting


def _module(part: str):
    return importlib.import_module(f"tests.faults.{part}")


if __name__ == "__main__":
    sys.exit(main())
