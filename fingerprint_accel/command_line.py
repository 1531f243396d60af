"""Parse a command line with tyro, and print help texts that keep their paragraphs and example commands.

This module imports no other module of the package.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import Any, TextIO, TypeVar, get_type_hints

import tyro

T = TypeVar("T")
HELP = {"-h", "--help"}
KEPT = (" ", "- ", "accelerate ", "fingerprint-accel ", "pip ", "python ", "torchrun ")  # starts of unwrapped lines
PLACE = "DESCRIPTION"  # placeholder for the description in the help text that tyro prints


def parse_command_line(
    target: Callable[..., T],
    description: str,
    words: Sequence[str] | None = None,
    default: T | None = None,
    prog: str | None = None,
    console_outputs: bool = True,
) -> T:
    """Call `target`, a function or a dataclass, with the options of a command line.

    Args:
        target: Function or dataclass. Its parameters are the options.
        description: Text of `--help`, above the options. `fill` wraps it.
        words: Words of the command line, without the name of the program. Default: `sys.argv[1:]`.
        default: Instance of the dataclass `target`. Its values are the defaults of the options.
        prog: Name of the program in the usage line.
        console_outputs: Whether to print help and usage errors. If several processes are launched, only one of them
            should print.

    Raises:
        SystemExit: Status 0 after `--help`, and status 2 for unknown or malformed options.
    """
    words = sys.argv[1:] if words is None else words
    options: dict[str, Any] = {} if default is None else {"default": default}
    wants_help = bool(HELP.intersection(words))
    if wants_help and dataclasses.is_dataclass(target):
        _join_lines(target)
    with _description(description) if wants_help else contextlib.nullcontext():
        return tyro.cli(
            target, prog=prog, description=PLACE, args=list(words), console_outputs=console_outputs,
            config=(tyro.conf.DisallowNone,), **options,
        )  # fmt: skip


def fill(text: str, width: int) -> str:
    """Wrap the paragraphs of a text, but do not change its indented lines, list items and commands.

    Args:
        text: Paragraphs with an empty line between them.
        width: Maximum length of a wrapped line, in characters.
    """
    filled: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        for kept, group in itertools.groupby(lines, lambda line: line.startswith(KEPT)):
            block = list(group)
            filled += block if kept else [textwrap.fill(" ".join(block), width, break_on_hyphens=False)]
        filled.append("")
    return "\n".join(filled[:-1])


def _join_lines(cls: Any) -> None:
    """Set the help text of each field of a dataclass to the field's docstring, without line breaks.

    tyro reads the docstrings of fields itself too, but keeps the line breaks. Nested dataclasses are changed in the
    same way.
    """
    types = get_type_hints(cls)
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except OSError:  # installed without its source code
        return
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for statement, following in itertools.pairwise([*getattr(definition, "body", []), None]):
        name = getattr(getattr(statement, "target", None), "id", "")
        text = getattr(getattr(following, "value", None), "value", None)
        if name in fields and isinstance(text, str):
            fields[name].metadata = MappingProxyType({**fields[name].metadata, "help": " ".join(text.split())})
        if dataclasses.is_dataclass(types.get(name)):
            _join_lines(types[name])


@contextlib.contextmanager
def _description(text: str) -> Iterator[None]:
    """In a `with` block, replace the marker `PLACE` in the help that tyro prints by the wrapped description `text`.

    If tyro printed the description, it would join the paragraphs and commands into one line.
    """
    captured = _Captured(sys.stdout)
    try:
        with contextlib.redirect_stdout(captured):
            yield
    finally:
        width = min(shutil.get_terminal_size().columns, 100)
        sys.stdout.write(captured.getvalue().replace(PLACE, fill(text, width), 1))


class _Captured(io.StringIO):
    """Text buffer that reports the encoding of another stream, `shown`, and whether `shown` is a terminal.

    tyro chooses colours and box characters by these two properties. The caller writes the text to `shown` later.
    """

    def __init__(self, shown: TextIO) -> None:
        super().__init__()
        self._shown = shown

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream `shown`."""
        return self._shown.encoding

    def isatty(self) -> bool:
        """Return whether the stream `shown` is a terminal."""
        return self._shown.isatty()
