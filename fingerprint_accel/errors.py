"""What a user can get wrong ends in one clear line and exit code 2; a traceback is a bug."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_CANNOT_WRITE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EEXIST),
}

STOPPED = 75  # exit codes; this one is EX_TEMPFAIL of sysexits.h: try again later
LOST = 76
INTERRUPTED = 130


class UserError(ValueError):
    """A mistake the user can mend. The message names the file or option, and the remedy."""


class Stopped(Exception):  # noqa: N818  (it is no error)
    """Training was told to stop, and has saved. The message says how to go on; empty on all ranks but the first."""

    code = STOPPED


class LostProcessError(Exception):
    """Another process of the run has failed or is gone. The message says which, if that is known."""

    code = LOST


def require(holds: bool, message: str) -> None:
    """Raises UserError with `message` unless `holds`."""
    if not holds:
        raise UserError(message)


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raises UserError where there is something in the place of what is to be made, and it is not to be replaced."""
    require(overwrite or not out.exists(), f"{out}: exists already; choose another folder, or add --overwrite")


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that ends in one line of its own; None for a bug, or the fault of another process."""
    if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in _CANNOT_WRITE):
        return 2
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else None


@contextlib.contextmanager
def one_line_errors(on_interrupt: str = "interrupted") -> Iterator[None]:
    """Turns a `UserError`, or a place that cannot be written, into `error: ...` on stderr and exit code 2.

    `Stopped` becomes exit code 75, `LostProcessError` 76, at once: connections would wait for the other process.

    Args:
        on_interrupt: what to say at Ctrl-C, before exit code 130.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Stopped as stopped:
        if str(stopped):
            print(f"\n{stopped}", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except LostProcessError as error:
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        os._exit(LOST)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}; choose another place", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\n{on_interrupt}", file=sys.stderr)  # below a progress bar
        raise SystemExit(INTERRUPTED) from None
