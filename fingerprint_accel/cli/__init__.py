"""The command line: `fingerprint-accel VERB ...`. Each verb calls the package and prints what came of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tyro

from fingerprint_accel import __version__
from fingerprint_accel.cli import data, extraction, models
from fingerprint_accel.errors import one_line_errors, require
from fingerprint_accel.ranks import launched_rank_and_size

VERBS: dict[str, Callable[..., Any]] = {
    "synth": data.synth,
    "import": data.import_files,
    "merge": data.merge,
    "verify": data.verify,
    "inspect": data.inspect,
    "evaluate": models.evaluate,
    "extract": extraction.extract,
    "compare": extraction.compare,
    "enroll": extraction.enroll,
    "remove": extraction.remove,
    "search": extraction.search,
    "calibrate": models.calibrate,
    "minutiae": extraction.minutiae,
    "export": models.export,
    "demo": extraction.demo,
    "plan": models.plan,
    "convert-flx": models.convert_flx,
}

GO_ON = ("import", "merge", "synth", "extract")  # from where they were interrupted
RENAMED = {"pack": "merge joins datasets, import reads images, and verify compares checksums"}  # verbs before 0.1.0


def main() -> None:
    """Entry point of `fingerprint-accel`."""
    if sys.argv[1:] == ["--version"]:
        print(__version__)
        return
    description = (
        "Trains and evaluates fixed-length fingerprint embeddings. `fingerprint-accel VERB --help` tells more."
    )
    main_process = launched_rank_and_size()[0] == 0  # the others of a launch would say the same
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    left = "the same command goes on from here" if verb in GO_ON else "nothing half-made was left behind"
    with one_line_errors(f"interrupted; {left}"):
        require(verb not in RENAMED, f"{verb}: there is no such verb any more; {RENAMED.get(verb)}")
        tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="fingerprint-accel", description=description, console_outputs=main_process
        )
