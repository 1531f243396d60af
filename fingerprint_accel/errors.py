"""What a user can get wrong ends in one clear line and exit code 2; a traceback is a bug."""

import contextlib
import errno
import sys
from collections.abc import Iterator

_CANNOT_WRITE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EEXIST),
}


class UserError(ValueError):
    """A mistake the user can mend. The message names the file or option, and the remedy."""


def require(holds: bool, message: str) -> None:
    """Raises UserError with `message` unless `holds`."""
    if not holds:
        raise UserError(message)


@contextlib.contextmanager
def one_line_errors(on_interrupt: str = "interrupted") -> Iterator[None]:
    """Turns a `UserError`, or a place that cannot be written, into `error: ...` on stderr and exit code 2.

    Args:
        on_interrupt: what to say at Ctrl-C, before exit code 130.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}; choose another place", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\n{on_interrupt}", file=sys.stderr)  # below a progress bar
        raise SystemExit(130) from None
