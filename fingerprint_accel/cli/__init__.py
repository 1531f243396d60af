"""The command line: `fingerprint-accel VERB ...`. Each verb is a thin call into the package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tyro

from fingerprint_accel import __version__
from fingerprint_accel.cli import data, demo, evaluation, extraction, minutiae, models, planning, verification
from fingerprint_accel.errors import one_line_errors, require
from fingerprint_accel.ranks import rank_and_world_size

VERBS: dict[str, Callable[..., Any]] = {
    "synth": data.synth,
    "import": data.import_files,
    "merge": data.merge,
    "verify": verification.verify,
    "inspect": data.inspect,
    "evaluate": evaluation.evaluate,
    "extract": extraction.extract,
    "compare": models.compare,
    "enroll": models.enroll,
    "search": models.search,
    "calibrate": models.calibrate,
    "minutiae": minutiae.minutiae,
    "export": models.export,
    "demo": demo.demo,
    "plan": planning.plan,
    "convert-flx": models.convert_flx,
}


RENAMED = {"pack": "merge joins datasets, import reads images, and verify compares checksums"}  # verbs before 0.1.0


def main() -> None:
    """Entry point of `fingerprint-accel`."""
    if sys.argv[1:] == ["--version"]:
        print(__version__)
        return
    description = (
        "Trains and evaluates fixed-length fingerprint embeddings. `fingerprint-accel VERB --help` tells more."
    )
    main_process = rank_and_world_size()[0] == 0  # the others of a launch would say the same
    with one_line_errors("interrupted; nothing half-made was left behind"):
        verb = sys.argv[1] if len(sys.argv) > 1 else ""
        require(verb not in RENAMED, f"{verb}: there is no such verb any more; {RENAMED.get(verb)}")
        tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="fingerprint-accel", description=description, console_outputs=main_process
        )
