"""Sphinx extension: the directive `command-help` shows the `--help` of every verb of the command line."""

import os
import re
import subprocess
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

COMMAND = [sys.executable, "-m", "fingerprint_accel.cli"]


def help_text(verb: str | None = None) -> str:
    """Return what `fingerprint-accel [VERB] --help` prints, 100 columns wide and without colours.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    environment = os.environ | {
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    arguments = [*COMMAND, *([verb] if verb else []), "--help"]
    text = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True).stdout
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()


class CommandHelp(SphinxDirective):
    """One section for each verb, with the output of its `--help`."""

    def run(self) -> list[nodes.Node]:
        from fingerprint_accel.cli import VERBS

        found: list[nodes.Node] = [nodes.literal_block(text=help_text(), language="text")]
        for verb in VERBS:
            section = nodes.section(ids=[nodes.make_id(verb)], names=[verb])
            section += nodes.title(text=verb)
            section += nodes.literal_block(text=help_text(verb), language="text")
            found.append(section)
        return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
