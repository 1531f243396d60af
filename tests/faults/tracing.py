"""Record with strace what a command does to the files below a folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .children import Child, Ended

CALLS = (
    "open,openat,creat,close,lseek,write,writev,pwrite64,pwritev,pwritev2,truncate,ftruncate,fallocate,rename,"
    "renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,msync,sync,"
    "syncfs,sync_file_range,copy_file_range,sendfile,mmap,connect"
)
LONGEST = 2**24  # bytes of a write that are recorded
HEX = re.compile(r"(?:\\x[0-9a-f]{2})+")
LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+)(?:<([^>]*)>)?.*", re.DOTALL)
UNFINISHED = re.compile(r"(\d+) +(.*) <unfinished \.\.\.>$")
RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)$")


class Operation(NamedTuple):
    """A change of files.

    Attributes:
        kind: create, write, truncate, rename, link, unlink, mkdir, rmdir, sync, or connect.
        path: The file or folder.
        other: New path of a rename or a link; address of a connection.
        offset: Position of a write, or size of a truncated file.
        data: Written bytes.
    """

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        more = f" to {Path(self.other).name}" if self.other else f" ({len(self.data)} bytes)" if self.data else ""
        return f"{self.kind} {Path(self.path).name}{more}"


def available() -> bool:
    """Return whether strace is installed."""
    return shutil.which("strace") is not None


def record(begin: Callable[[Callable[[], Any]], Child], root: Path, log: Path) -> tuple[Ended, list[Operation]]:
    """Run a command under strace.

    Args:
        begin: Function that starts the command, given a function that the child calls first.
        root: Folder of the files whose changes are recorded.
        log: File for the output of strace.
    """
    child = begin(lambda: os.kill(os.getpid(), signal.SIGSTOP))
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    words = ["strace", "-f", "-y", "-xx", "-s", str(LONGEST), "-e", f"trace={CALLS}", "-e", "signal=none"]
    tracer = subprocess.Popen([*words, "-o", str(log), "-p", str(child.pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        child.kill_group()
        child.wait()
        raise OSError(f"strace cannot trace: {line}")
    time.sleep(0.1)  # until it has attached to all threads
    child.kill(signal.SIGCONT)
    ended = child.wait()
    tracer.stderr.close()
    tracer.wait()
    return ended, list(operations(log, root))


def operations(log: Path, root: Path) -> Iterator[Operation]:
    """Iterate over the changes below `root` that a log of strace contains."""
    positions: dict[int, int] = {}
    for name, text, result in _calls(log):
        if result < 0 and name != "connect":
            continue
        words = _split(text)
        for operation in _of_call(name, words, result, positions):
            if operation.kind == "connect":
                yield operation
                continue
            operation = operation._replace(
                path=_inside(operation.path, root), other=_inside(operation.other, root) if operation.other else ""
            )
            if operation.path or operation.other:
                yield operation


def _inside(path: str, root: Path) -> str:
    """Return a path relative to `root`, which is the working directory; empty if it lies outside."""
    whole = os.path.normpath(root / path)  # unlike `resolve`, follows no links
    return os.path.relpath(whole, root) if Path(whole).is_relative_to(root) else ""


def _calls(log: Path) -> Iterator[tuple[str, str, int]]:
    """Iterate over name, arguments and result of the calls in a log."""
    begun: dict[str, str] = {}
    with log.open() as lines:
        for line in lines:
            text = line.rstrip("\n")
            if match := UNFINISHED.match(text):
                begun[match[1]] = match[2]
                continue
            if match := RESUMED.match(text):
                text = f"{match[1]} {begun.pop(match[1], '')}{match[2]}"
            if match := LINE.match(text):
                yield match[2], match[3] + (f", RESULT<{match[5]}>" if match[5] else ""), int(match[4], 0)


def _split(text: str) -> list[str]:
    """Split the arguments of a call. Strings are hexadecimal, so that they contain no comma."""
    words, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        if letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and not depth:
            words.append(text[start:place].strip())
            start = place + 1
    return [*words, text[start:].strip()]


def _bytes(text: str) -> bytes:
    """Return all strings in a text of strace, joined."""
    return b"".join(bytes.fromhex(found.replace("\\x", "")) for found in HEX.findall(text))


def _path_of(descriptor: str) -> str:
    """Return the path behind a descriptor, as in `3<\\x2f...>`."""
    path = _bytes(descriptor[descriptor.find("<") :]).decode(errors="surrogateescape")
    return path.removesuffix(" (deleted)")


def _at(folder: str, name: str) -> str:
    """Return the path of a name relative to a folder that a call is given."""
    path = _bytes(name).decode(errors="surrogateescape")
    return path if path.startswith("/") else str(Path(_path_of(folder)) / path)


def _number(descriptor: str) -> int:
    return int(descriptor.partition("<")[0])


def _of_call(name: str, words: list[str], result: int, positions: dict[int, int]) -> Iterator[Operation]:
    """Iterate over the operations of one call."""
    if name == "openat":
        path = _path_of(words[-1]) if words[-1].startswith("RESULT") else _at(words[0], words[1])
        positions[result] = -1 if "O_APPEND" in words[2] else 0
        if "O_CREAT" in words[2]:
            yield Operation("create", path)
        if "O_TRUNC" in words[2]:
            yield Operation("truncate", path)
    elif name == "lseek":
        positions[_number(words[0])] = result
    elif name in ("write", "writev"):
        descriptor = _number(words[0])
        place = positions.get(descriptor, -1)
        yield Operation("write", _path_of(words[0]), offset=place, data=_bytes(words[1])[:result])
        if place >= 0:
            positions[descriptor] = place + result
    elif name in ("pwrite64", "pwritev", "pwritev2"):
        yield Operation("write", _path_of(words[0]), offset=int(words[-1]), data=_bytes(words[1])[:result])
    elif name == "ftruncate":
        yield Operation("truncate", _path_of(words[0]), offset=int(words[1]))
    elif name in ("rename", "link"):
        yield Operation(name, _bytes(words[0]).decode(), _bytes(words[1]).decode())
    elif name in ("renameat", "renameat2", "linkat"):
        kind = "exchange" if "RENAME_EXCHANGE" in words[-1] else name.rstrip("at2")
        yield Operation(kind, _at(words[0], words[1]), _at(words[2], words[3]))
    elif name in ("unlink", "rmdir", "mkdir"):
        yield Operation(name, _bytes(words[0]).decode())
    elif name == "mkdirat":
        yield Operation("mkdir", _at(words[0], words[1]))
    elif name == "unlinkat":
        yield Operation("rmdir" if "REMOVEDIR" in words[2] else "unlink", _at(words[0], words[1]))
    elif name in ("fsync", "fdatasync"):
        yield Operation("sync", _path_of(words[0]))
    elif name == "mmap" and "PROT_WRITE" in words[2] and "MAP_SHARED" in words[3] and "<" in words[4]:
        yield Operation("map", _path_of(words[4]))
    elif name in ("copy_file_range", "sendfile"):
        yield Operation("copy", _path_of(words[2] if name == "copy_file_range" else words[0]))
    elif name == "connect" and "AF_INET" in words[1]:
        yield Operation("connect", "", words[1])
