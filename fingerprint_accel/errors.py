"""Exceptions for mistakes that users can correct, and a context manager that prints them as one line.

This module imports no other module of the package than `ranks`.
"""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from fingerprint_accel.ranks import launched_local_rank, not_a_number

_CANNOT_WRITE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ),  # names that the file system refuses
}

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE), "bring its folder back"),
    errno.EFBIG: "raise the limit of `ulimit -f`",
}

# Exit codes:
STOPPED = 75  # training has saved a checkpoint after a signal; EX_TEMPFAIL of sysexits.h: try again later
LOST = 76  # another process of the launch has failed
INTERRUPTED = 130  # 128 + SIGINT: Ctrl-C
BROKEN_PIPE = 141  # 128 + SIGPIPE: the exit code of Unix tools that write to a closed pipe

HEAD_START = 2.0  # seconds in which a launcher ends the other processes of a machine after the first one has failed


class UserError(ValueError):
    """Error for a mistake that the user can correct. The message names the file or option, and the remedy."""


class RepeatedError(UserError):
    """`UserError` that another training process raises too. The other process prints it."""


class Stopped(Exception):  # noqa: N818  (not an error)
    """Exception for training that was stopped by a signal and has saved a checkpoint.

    On the first rank, the message explains how to resume. On the other ranks the message is empty.
    """

    code = STOPPED


class LostProcessError(Exception):
    """Error if a training process other than this one has failed or was killed.

    The message names the process if known. It is empty if the other process has printed the reason.
    """

    code = LOST


def require(holds: bool, message: str) -> None:
    """Raise `UserError` with `message` if the condition `holds` is false."""
    if not holds:
        raise UserError(message)


@contextlib.contextmanager
def write_errors(advice: Callable[[], str] = lambda: "run the same command again") -> Iterator[None]:
    """Turn an error of the disk or the file system in a `with` block into a `UserError` with one line.

    Args:
        advice: Function that returns what the user can do when the disk is in order again, for the end of the message.

    Raises:
        UserError: If a file could not be written. The message names the file, the reason and the remedy.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):  # not an error of a file
            raise
        remedy = _REMEDIES.get(error.errno, "check the disk")
        reason = f"cannot be written ({os.strerror(error.errno)})"
        raise UserError(f"{error.filename or 'a file'}: {reason}; {remedy}; {advice()}") from error


@contextlib.contextmanager
def one_line_errors(on_interrupt: str = "interrupted") -> Iterator[None]:
    """Turn errors that the user can correct into one line on stderr and an exit code.

    The exit codes are:

    - 2 for a `UserError` and for a file that cannot be written
    - 75 for `Stopped`
    - 76 for `LostProcessError` and for a lost connection of torch, without waiting for connections to the lost process
    - 130 for `KeyboardInterrupt` (Ctrl-C)
    - 141, without a message, if stdout is a closed pipe, for example after `head -1` has ended

    If all processes of a launch make a mistake before they can communicate, the first process of each machine ends
    first. Launchers such as torchrun then end the others before they print the same.

    Args:
        on_interrupt: Line to print at Ctrl-C. A `KeyboardInterrupt` with a text prints `interrupted; TEXT` instead.
    """
    try:
        try:
            wrong = not_a_number()
            require(not wrong, f"{wrong}: give a whole number, as launchers do, or unset the variable")
            yield
        except SystemExit as end:
            sys.stdout.flush()  # Python would print a traceback if the flush at exit failed
            if end.code:
                _let_the_first_process_end()
            raise
        sys.stdout.flush()
    except UserError as error:
        _let_the_first_process_end()
        _tell_launcher(str(error))
        _end("" if isinstance(error, RepeatedError) else f"error: {error}", 2)
    except Stopped as stopped:
        _end(f"\n{stopped}" if str(stopped) else "", STOPPED)
    except LostProcessError as error:
        _end_without_waiting(str(error))
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        reason = (str(error).splitlines() or [""])[0][:100]
        _end_without_waiting(
            f"lost the connection to another process of this launch ({reason}); look for its error, then start all "
            "processes again (training: with --resume auto)"
        )
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # writing their buffered text would fail again at exit
            os.dup2(nowhere, stream.fileno())
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        remedy = f"{_REMEDIES[error.errno]}, or " if error.errno in _REMEDIES else ""
        _end(f"error: {error.filename or 'a file'}: {error.strerror}; {remedy}choose another place", 2)
    except KeyboardInterrupt as interrupt:  # start below the line of a progress bar
        _end(f"\ninterrupted; {interrupt}" if str(interrupt) else f"\n{on_interrupt}", INTERRUPTED)


def _let_the_first_process_end() -> None:
    """Wait if this is not the first process of its machine, and processes cannot have agreed on who prints an error.

    They agree in `training.agreement`, which needs a process group.
    """
    distributed = sys.modules.get("torch.distributed")  # importing torch takes seconds
    if launched_local_rank() > 0 and not (distributed and distributed.is_initialized()):
        time.sleep(HEAD_START)


def _tell_launcher(line: str) -> None:
    """Let the report of torchrun, which ends the output of a failed run, show an error in place of a remark.

    The format of the file is that of `torch.distributed.elastic.multiprocessing.errors`.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        told = {"message": {"message": f"error: {line}", "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps(told))


def _is_lost_connection(error: RuntimeError) -> bool:
    """Return whether torch has lost the connection to another process, or waited in vain for its start.

    The class `torch.distributed.DistError` is recognised by its name, because this module does not import torch. Errors
    of gloo have no class of their own. During training, `PreemptionMonitor` handles these errors before.
    """
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__) or "/gloo/" in str(error)


def _end_without_waiting(line: str) -> NoReturn:
    """End the process without its last actions, which would wait for connections to the lost process."""
    if line:
        with contextlib.suppress(OSError):
            print(f"\nerror: {line}", file=sys.stderr, flush=True)
    os._exit(LOST)


def _end(line: str, code: int) -> NoReturn:
    if line:
        with contextlib.suppress(OSError):  # stderr may be a file on a full disk
            print(line, file=sys.stderr, flush=True)
    raise SystemExit(code) from None
