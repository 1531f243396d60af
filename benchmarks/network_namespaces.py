"""Run processes as if each had a machine of its own, connected by a network of known bandwidth. Linux only, as root.

Each process gets a network namespace with a virtual cable to a bridge. A token bucket filter (`tc`) limits what the
process sends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fingerprint_accel.errors import UserError

NEW_NETWORK = 0x40000000  # CLONE_NEWNET of the kernel
BURST = 32  # KiB that the filter lets pass at once
GOODPUT = 1448 / 1514  # share of the payload in a frame of 1,514 bytes: Ethernet, IP and TCP with timestamps need 66
PORT = 29500  # in a namespace of its own, so it is free


def _own_network() -> None:
    """Move this process into a network namespace of its own, which ends with its last process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NETWORK):
        raise UserError(
            f"network namespaces are not available ({os.strerror(ctypes.get_errno())}): run this as root on Linux"
        )


def _configure(*lines: str) -> None:
    """Run commands of iproute2."""
    for line in lines:
        try:
            subprocess.run(line.split(), check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError(f"`{line.split()[0]}` is missing: install iproute2") from error
        except subprocess.CalledProcessError as error:
            raise UserError(f"`{line}` failed: {error.stderr.strip()}") from error


def on_network(processes: int, megabits: float, work: Callable[[], Any]) -> Any:
    """Run a function in several processes, and return what it returns in the first one, by JSON.

    The processes are forks of this one, so this process must not have started threads. The environment tells them
    their rank, as with `torchrun`.

    Args:
        processes: Number of processes.
        megabits: What each process can send, in Mbit/s.
        work: Function without arguments.

    Raises:
        UserError: If this system has no network namespaces.
        RuntimeError: If a process has failed.
    """
    with tempfile.TemporaryFile("w+") as result, tempfile.TemporaryFile("w+") as messages:
        child = os.fork()
        if not child:  # this process gets the bridge, which disappears with it
            _end_with(lambda: _bridge(processes, megabits, work, result.fileno(), messages.fileno()))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        result.seek(0)
        messages.seek(0)
        if code:
            raise RuntimeError(messages.read()[-3000:] or f"exit code {code}")
        return json.load(result)


def _bridge(processes: int, megabits: float, work: Callable[[], Any], result: int, messages: int) -> None:
    os.dup2(messages, 2)
    _own_network()
    _configure("ip link add bridge type bridge", "ip link set bridge up")
    ranks: list[int] = []
    with _killed_at_the_end(ranks):
        for rank in range(processes):
            go, wait = _cable(rank, processes, megabits, work, result)
            ranks.append(wait)
            os.close(go)
        for rank in ranks:
            code = os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1])
            if code:
                raise RuntimeError(f"a process ended with exit code {code}")


@contextmanager
def _killed_at_the_end(ranks: list[int]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for rank in ranks:
            os.kill(rank, signal.SIGKILL)
        raise


def _cable(rank: int, processes: int, megabits: float, work: Callable[[], Any], result: int) -> tuple[int, int]:
    """Start a process in a namespace of its own, and connect it to the bridge.

    Returns:
        File descriptor that lets the process start when it is closed, and the id of the process.
    """
    ready, is_ready = os.pipe()
    starts, start = os.pipe()
    child = os.fork()
    if not child:
        os.close(start)
        _end_with(lambda: _member(rank, processes, work, result, is_ready, starts))
    os.close(is_ready)
    os.close(starts)
    os.read(ready, 1)  # its namespace exists
    os.close(ready)
    _configure(
        f"ip link add port{rank} type veth peer name eth0 netns {child}",
        f"ip link set port{rank} master bridge up",
        f"nsenter -t {child} -n ip address add 10.0.0.{rank + 1}/24 dev eth0",
        f"nsenter -t {child} -n ip link set eth0 up",
        f"nsenter -t {child} -n ip link set lo up",
        f"nsenter -t {child} -n tc qdisc add dev eth0 root tbf rate {megabits:g}mbit burst {BURST}kb latency 500ms",
    )
    return start, child


def _member(rank: int, processes: int, work: Callable[[], Any], result: int, is_ready: int, starts: int) -> None:
    _own_network()
    os.write(is_ready, b".")
    os.read(starts, 1)  # ends when the cable is there
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in own.items()})
    os.environ.update(MASTER_ADDR="10.0.0.1", MASTER_PORT=str(PORT), GLOO_SOCKET_IFNAME="eth0")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    found = json.dumps(work())
    if rank == 0:
        os.write(result, found.encode())


def _end_with(action: Callable[[], None]) -> None:
    """Run a function, and end this fork."""
    code = 1
    try:
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
