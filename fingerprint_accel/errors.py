"""Exceptions for mistakes that users can correct, and a context manager that prints them as one line.

This module imports no other module of the package.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

_CANNOT_WRITE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ),  # names that the file system refuses
}

# Exit codes:
STOPPED = 75  # training has saved a checkpoint after a signal; EX_TEMPFAIL of sysexits.h: try again later
LOST = 76  # another process of the launch has failed
INTERRUPTED = 130  # 128 + SIGINT: Ctrl-C
BROKEN_PIPE = 141  # 128 + SIGPIPE: the exit code of Unix tools that write to a closed pipe


class UserError(ValueError):
    """Error for a mistake that the user can correct. The message names the file or option, and the remedy."""


class Stopped(Exception):  # noqa: N818  (not an error)
    """Exception for training that was stopped by a signal and has saved a checkpoint.

    On the first rank, the message explains how to resume. On the other ranks the message is empty.
    """

    code = STOPPED


class LostProcessError(Exception):
    """Error if a training process other than this one has failed or was killed.

    The message names the process if known.
    """

    code = LOST


def require(holds: bool, message: str) -> None:
    """Raise `UserError` with `message` if the condition `holds` is false."""
    if not holds:
        raise UserError(message)


@contextlib.contextmanager
def one_line_errors(on_interrupt: str = "interrupted") -> Iterator[None]:
    """Turn errors that the user can correct into one line on stderr and an exit code.

    The exit codes are:

    - 2 for a `UserError` and for a file that cannot be written
    - 75 for `Stopped`
    - 76 for `LostProcessError`, without waiting for connections to the lost process
    - 130 for `KeyboardInterrupt` (Ctrl-C)
    - 141, without a message, if stdout is a closed pipe, for example after `head -1` has ended

    Args:
        on_interrupt: Line to print at Ctrl-C. A `KeyboardInterrupt` with a text prints `interrupted; TEXT` instead.
    """
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()  # Python would print a traceback if the flush at exit failed
            raise
        sys.stdout.flush()
    except UserError as error:
        _end(f"error: {error}", 2)
    except Stopped as stopped:
        _end(f"\n{stopped}" if str(stopped) else "", STOPPED)
    except LostProcessError as error:
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        os._exit(LOST)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # writing their buffered text would fail again at exit
            os.dup2(nowhere, stream.fileno())
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        _end(f"error: {error.filename or 'a file'}: {error.strerror}; choose another place", 2)
    except KeyboardInterrupt as interrupt:  # start below the line of a progress bar
        _end(f"\ninterrupted; {interrupt}" if str(interrupt) else f"\n{on_interrupt}", INTERRUPTED)


def _end(line: str, code: int) -> NoReturn:
    if line:
        print(line, file=sys.stderr)
    raise SystemExit(code) from None
