"""What a user can get wrong ends in one clear line and exit code 2; a traceback is a bug."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

_CANNOT_WRITE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ),  # names that the file system refuses
}

STOPPED = 75  # exit codes; this one is EX_TEMPFAIL of sysexits.h: try again later
LOST = 76
INTERRUPTED = 130
BROKEN_PIPE = 141  # as of a program that SIGPIPE ends


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
    except BrokenPipeError:  # `... | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else flushing at the end would fail again
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}; choose another place", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\n{on_interrupt}", file=sys.stderr)  # below a progress bar
        raise SystemExit(INTERRUPTED) from None
