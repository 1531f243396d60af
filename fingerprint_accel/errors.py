"""What a user can get wrong ends in one clear line and exit code 2; a traceback is a bug."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake the user can mend. The message names the file or option, and the remedy."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a :class:`UserError` into ``error: ...`` on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
