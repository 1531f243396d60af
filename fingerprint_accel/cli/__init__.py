"""The program `fingerprint-accel VERB ...`. Each verb is a function that calls the package and prints the result."""

from __future__ import annotations

import atexit
import difflib
import gc
import inspect
import sys
from collections.abc import Callable
from typing import Any

import tyro

from fingerprint_accel import __version__
from fingerprint_accel.cli import data, doctor, extraction, gallery, models
from fingerprint_accel.command_line import HELP, parse_command_line
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.privacy import VARIABLE, private_files
from fingerprint_accel.ranks import launched_rank_and_size
from fingerprint_accel.temporary import end_by_exception

PROGRAM = "fingerprint-accel"
GROUPS: dict[str, dict[str, Callable[..., Any]]] = {
    "Datasets": {
        "synth": data.synth,
        "import": data.import_files,
        "merge": data.merge,
        "inspect": data.inspect,
        "verify": data.verify,
    },
    "Before training": {
        "doctor": doctor.doctor,
        "plan": models.plan,
    },
    "Models": {
        "evaluate": models.evaluate,
        "calibrate": models.calibrate,
        "export": models.export,
        "convert-flx": models.convert_flx,
    },
    "Prints": {
        "compare": extraction.compare,
        "extract": extraction.extract,
        "enroll": gallery.enroll,
        "search": gallery.search,
        "remove": gallery.remove,
        "minutiae": extraction.minutiae,
        "demo": extraction.demo,
    },
}
VERBS = {verb: function for group in GROUPS.values() for verb, function in group.items()}
RENAMED = {"pack": "use merge to join datasets, import to read images, verify to compare checksums"}


def main() -> None:
    """Run the program `fingerprint-accel`: call the verb in `sys.argv` with its options."""
    verb, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    start_and_end_fast()
    first_process = launched_rank_and_size()[0] == 0  # the other processes of a launch would print the same
    with one_line_errors("interrupted; no incomplete output was left"), end_by_exception(), private_files():
        if verb == "--version":
            print(__version__)
        elif verb in HELP:
            print(overview() if first_process else "", end="")
        elif verb.startswith("--tyro-"):  # tab completion, see tyro's documentation
            tyro.extras.subcommand_cli_from_dict(VERBS, prog=PROGRAM)
        elif verb in VERBS:
            description = (inspect.getdoc(VERBS[verb]) or "").split("\nArgs:")[0]
            parse_command_line(VERBS[verb], description, words, prog=f"{PROGRAM} {verb}", console_outputs=first_process)
        elif verb:
            raise UserError(_unknown(verb))
        else:
            print(overview(), file=sys.stderr, end="")
            raise SystemExit(2)


def start_and_end_fast() -> None:
    """Let Python search for cyclic garbage rarely, and not at the end of the program.

    The import of torch creates half a million objects that are never garbage. With Python's defaults, the searches
    through these objects take a fifth of the time to start, and another fifth to end.
    """
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)


def overview() -> str:
    """Return the text of `fingerprint-accel --help`."""
    lines = [
        f"usage: {PROGRAM} VERB ...",
        "",
        "Train and evaluate fixed-length fingerprint embeddings.",
        "To train: accelerate launch --quiet recipes/quickstart.py --out runs/quickstart",
    ]
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {verb:<13}{(inspect.getdoc(function) or '').splitlines()[0]}" for verb, function in verbs.items()]
    lines += ["", f"{PROGRAM} VERB --help    explains a verb and its options"]
    lines += [f"{PROGRAM} --version      prints the version", ""]
    lines += ["Only you can read the files that a command writes.", f"{VARIABLE}=027 lets your group read them."]
    return "\n".join(lines) + "\n"


def _unknown(verb: str) -> str:
    """Return the error message for a verb that does not exist. The message suggests a similar verb if there is one."""
    if verb in RENAMED:
        return f"{verb}: no such verb; {RENAMED[verb]}"
    close = difflib.get_close_matches(verb, VERBS, 1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{verb}: no such verb; {guess}`{PROGRAM} --help` lists all verbs"
