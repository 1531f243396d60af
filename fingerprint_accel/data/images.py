"""Any image file to grey uint8, safely: whatever is wrong with it ends in one reason, never in a crash.

Files are decoded by processes that a damaged one may crash: started as needed, used again, gone with this process. They
are started by exec. A fork would copy the locks of threads and a CUDA context, and `multiprocessing` would ask every
script for `if __name__ == "__main__":`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

import numpy as np

from fingerprint_accel.data.decoding import ANSWER, MAX_PIXELS, OUT_OF_MEMORY, SIZE, TIME_LIMIT, Decoded, ImageError
from fingerprint_accel.errors import UserError

__all__ = ["ImageError", "decode_apart", "read_grey"]
PACKAGES = str(Path(__file__).resolve().parents[2])
PROGRAM = "from fingerprint_accel.data.decoding import serve; serve()"
# What a damaged file can lead to. Other signals come from outside, SIGKILL for example where memory ends.
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
PATIENCE = 5.0  # seconds until a process that has closed its output must have ended


def read_grey(path: Path | str) -> np.ndarray:
    """Reads an image as (H, W) uint8, as `decoding.decode` does.

    Raises:
        ImageError: empty, cut off, not an image, larger than 50 megapixels, or a file whose decoder crashes, or takes
            too long or too much memory.
        UserError: the process that decodes does not start, or was killed from outside.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise ImageError("empty file")
    image = decode_apart(data, str(path))
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width)


class _Died(Exception):  # noqa: N818  (what follows depends on how)
    """A decoder process ended instead of answering."""


class _Decoder:
    """A decoder process.

    Attributes:
        answered: number of files.

    Raises:
        UserError: it does not start.
    """

    def __init__(self) -> None:
        self.answered = 0
        # -S: `site` takes as long as Python itself, and has found this process's path already; not on the path is a
        # package that was installed as editable
        path = [*(entry for entry in sys.path if isinstance(entry, str)), PACKAGES]
        command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {path!a}; {PROGRAM}"]
        environment = {
            **os.environ,
            "PATH": "",  # Pillow must not start Ghostscript
            "OPENBLAS_NUM_THREADS": "1",  # numpy would reserve address space, which is limited, for every core
        }
        try:
            self._process = subprocess.Popen(
                command, bufsize=0, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"cannot start the process that decodes images ({error.strerror})") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        _decoders.add(self)
        if not self._output.read(1):  # it says so when it is ready
            raise UserError(
                f"the process that decodes images does not start ({_how(self.end(PATIENCE))}); "
                f"try {sys.executable} -c 'import PIL.Image'"
            )

    def decode(self, data: bytes) -> Decoded:
        """The bytes of a file -> its first page; afterwards the process is idle.

        Raises:
            ImageError: as `decoding.decode`, or no answer in time; then the process is ended.
            _Died: no answer.
        """
        try:
            for part in (SIZE.pack(len(data)), data):
                rest = memoryview(part)
                while rest:
                    rest = rest[self._input.write(rest) :]
        except BrokenPipeError:
            raise _Died from None
        decoded, height, width, pages, ppi, size = ANSWER.unpack(self._read(ANSWER.size))
        if size > MAX_PIXELS or (decoded and size != height * width):
            raise _Died  # it does not know what it says
        answer = self._read(size)
        self.answered += 1
        _idle.append(self)
        if not decoded:
            raise ImageError(answer.decode())
        return Decoded(height, width, pages, ppi, bytes(answer))

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            # second by second: a job that is stopped and continued has not used up its time
            if not any(self._poll.poll(1000) for _ in range(TIME_LIMIT)):
                self.end()
                raise ImageError("takes too long to decode")
            count = self._output.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise _Died
            rest = rest[count:]
        return data

    def end(self, patience: float = 0) -> int:
        """Ends the process, if it does not by itself; returns its exit code, or minus the signal that ended it."""
        self.disconnect()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        return self._process.wait()

    def disconnect(self) -> None:
        """Closes the ends of the pipes that this process holds."""
        _decoders.discard(self)
        with contextlib.suppress(ValueError):
            _idle.remove(self)
        self._input.close()
        self._output.close()


# Operations on a deque or a set are atomic: no lock, which another thread might hold during a fork.
_idle: deque[_Decoder] = deque()
_decoders: set[_Decoder] = set()


def decode_apart(data: bytes, name: str) -> Decoded:
    """Decodes the bytes of an image file in a process of its own, which decodes other files before and after.

    Where the process dies, the file is tried once more in a fresh one: files before it may have damaged its memory.

    Args:
        data: all bytes of the file.
        name: of the file, for messages.

    Raises:
        ImageError, UserError: as of `read_grey`.
    """
    try:
        decoder = _idle.pop()
    except IndexError:
        decoder = _Decoder()
    while True:
        fresh = decoder.answered == 0
        try:
            return decoder.decode(data)
        except ImageError:
            raise
        except _Died:
            code = decoder.end(PATIENCE)
            if fresh:
                raise _reason(code, name) from None
            decoder = _Decoder()
        except BaseException:  # Ctrl-C: its answer would come instead of the next file's
            decoder.end()
            raise


def _reason(code: int, name: str) -> Exception:
    """What is said of a file whose decoder ended with this exit code."""
    if code == OUT_OF_MEMORY:
        return ImageError("takes too much memory to decode")
    if code == -signal.SIGPROF:
        return ImageError("takes too long to decode")
    if code >= 0 or -code in CRASHES:
        return ImageError(f"damaged: its decoder crashed ({_how(code)})")
    return UserError(
        f"{name}: the process that decodes it was killed ({_how(code)}), perhaps for want of memory; try again"
    )


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def end_decoders() -> None:
    """Ends all decoder processes; the next file starts one again."""
    for decoder in list(_decoders):
        decoder.end()


def _forget_all() -> None:
    """In a forked process: the decoders are its parent's, and would outlive that if this one kept pipes open."""
    for decoder in list(_decoders):
        decoder.disconnect()


atexit.register(end_decoders)
os.register_at_fork(after_in_child=_forget_all)
