"""Decode image files in child processes, so that a damaged file does not crash the program.

Decoder processes are started when they are needed, are reused, and end with this process. They are started with exec.
A fork would copy the locks of threads and the CUDA context, and `multiprocessing` would require
`if __name__ == "__main__":` in every script.
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
# Signals that a damaged file can cause. All other signals come from outside the process, for example SIGKILL when
# memory runs out.
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
PATIENCE = 5.0  # seconds in which a process must end after it has closed its output


def read_grey(path: Path | str) -> np.ndarray:
    """Read the first page of an image file, and return its grey pixels as a (H, W) uint8 array.

    Raises:
        ImageError: if the file is empty, damaged, not an image, or larger than 50 megapixels, or if its decoder
            crashes, takes too long or needs too much memory.
        UserError: if the decoder process does not start or was killed from outside.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise ImageError("empty file: copy it again")
    image = decode_apart(data, str(path))
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width)


class _Died(Exception):  # noqa: N818  (not an error in itself: the caller inspects the exit code)
    """Raised when a decoder process ends without an answer."""


class _Decoder:
    """Decoder process, and the pipes to it.

    Attributes:
        answered: number of files that the process has decoded or rejected.

    Raises:
        UserError: if the process does not start.
    """

    def __init__(self) -> None:
        self.answered = 0
        # -S skips the module `site`, which takes as long to start as Python itself. The child gets `sys.path` of this
        # process. PACKAGES is added because an editable installation may not be on the path.
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
            raise UserError(
                f"cannot start the process that decodes images ({error.strerror}); free memory or end other processes"
            ) from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        _decoders.add(self)
        if not self._output.read(1):  # the process writes one byte when it is ready
            raise UserError(
                f"the process that decodes images does not start ({_how(self.end(PATIENCE))}); "
                f"run {sys.executable} -c 'import PIL.Image' to see the error"
            )

    def decode(self, data: bytes) -> Decoded:
        """Decode the first page of an image file, given its bytes.

        After an answer, the process is added to the idle processes.

        Raises:
            ImageError: if the file cannot be used (see `decoding.decode`), or if there is no answer in time. After a
                timeout the process is ended.
            _Died: if the process ends without an answer.
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
            raise _Died  # the answer is invalid, so the process is in a broken state
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
            # Wait in steps of one second, so that a job that was paused (SIGSTOP) does not exceed the limit at once.
            if not any(self._poll.poll(1000) for _ in range(TIME_LIMIT)):
                self.end()
                raise ImageError("takes too long to decode: convert it to PNG")
            count = self._output.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise _Died
            rest = rest[count:]
        return data

    def end(self, patience: float = 0) -> int:
        """End the process, and return its exit code. The code is negative if a signal has ended the process.

        Args:
            patience: seconds to wait for the process to end by itself before it is killed.
        """
        self.disconnect()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        return self._process.wait()

    def disconnect(self) -> None:
        """Close this side of the pipes to the decoder process."""
        _decoders.discard(self)
        with contextlib.suppress(ValueError):
            _idle.remove(self)
        self._input.close()
        self._output.close()


# Operations on a deque or a set are atomic, so no lock is needed. A lock could be held by another thread during a fork.
_idle: deque[_Decoder] = deque()
_decoders: set[_Decoder] = set()


def decode_apart(data: bytes, name: str) -> Decoded:
    """Decode an image file in a separate process that is reused for many files.

    If the process dies, the file is decoded once more in a new process, because an earlier file may have corrupted the
    memory of the old process.

    Args:
        data: all bytes of the file.
        name: name of the file, for error messages.

    Raises:
        ImageError: if the file cannot be decoded, see `read_grey`.
        UserError: if the decoder process does not start or was killed from outside.
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
        except BaseException:  # after Ctrl-C, the pending answer would be read as that of the next file
            decoder.end()
            raise


def _reason(code: int, name: str) -> Exception:
    """Return the exception to raise if the decoder process has died while it decoded a file.

    Args:
        code: exit code of the process, or the negative number of the signal that ended it.
        name: name of the file, for error messages.
    """
    if code == OUT_OF_MEMORY:
        return ImageError("takes too much memory to decode: convert it to 8-bit grey PNG")
    if code == -signal.SIGPROF:
        return ImageError("takes too long to decode: convert it to PNG")
    if code >= 0 or -code in CRASHES:
        return ImageError(f"damaged: its decoder crashed ({_how(code)}); copy it again")
    return UserError(
        f"{name}: the process that decodes it was killed ({_how(code)}), perhaps because memory ran out; "
        "try again with fewer workers"
    )


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def end_decoders() -> None:
    """End all decoder processes. The next call that decodes a file starts a new process."""
    for decoder in list(_decoders):
        decoder.end()


def _forget_all() -> None:
    """Close all pipes to decoder processes in a forked process.

    The decoder processes belong to the parent process. They would outlive the parent if the forked process kept the
    pipes open.
    """
    for decoder in list(_decoders):
        decoder.disconnect()


atexit.register(end_decoders)
os.register_at_fork(after_in_child=_forget_all)
