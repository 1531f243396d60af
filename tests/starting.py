"""Starts Python programs for tests as forks of one process that has imported torch and the package: a second instead
of seven of processor time each. Several processes of one run find each other as under torchrun.

    run(["script.py", "--word"], processes=2, environment={...})    also ["-m", "module", ...] and ["-c", "code", ...]

What is started is a process of its own, with the environment, output and exit code that it would have had.
"""

import atexit
import gc
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = Path(__file__).parent / "integration" / "offline"
PATIENCE = 15  # seconds that the others have once a process has failed
IMPORTED = (
    *("torch._dynamo", "torch.distributed.nn", "accelerate", "datasets", "matplotlib.pyplot"),
    *("fingerprint_accel.recipe", "fingerprint_accel.models.inception", "fingerprint_accel.models.vit"),
    *("fingerprint_accel.evaluation.report", "fingerprint_accel.extraction.bulk", "fingerprint_accel.cli.models"),
    *("fingerprint_accel.synthesis.writing", "timm.utils.model_ema"),
)


@cache
def _server():
    """One for all tests of this process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(OFFLINE), str(ROOT)])}
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    atexit.register(server.stdin.close)
    return server


def run(words, processes=1, environment=None, timeout=300, meanwhile=None, cwd=None, one_core=False):
    """As `subprocess.run` with output captured; the exit code is that of the first process that failed.

    Args:
        words: what comes after `python`.
        processes: with ranks and a meeting place in their environment, if there are several.
        environment: of the processes; default this one's.
        timeout: seconds until all are killed.
        meanwhile: called with the ids of the processes while they run.
        cwd: working directory of the processes; default that of this one when the first test began.
        one_core: let them use a single core, so that commands start no workers, which import everything anew.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("out", "err")]
        for file in files:
            Path(file).touch()  # a process may be killed before it has opened them
        order = {"words": list(map(str, words)), "processes": processes, "files": files, "timeout": timeout}
        order |= {"environment": environment or dict(os.environ), "cwd": str(cwd or ""), "one_core": one_core}
        server = _server()
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        ids = json.loads(server.stdout.readline())
        if meanwhile is not None:
            meanwhile(ids)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(Path(file).read_text() for file in files))


def serve():
    """Starts what it is told to; returns in every process that it starts, with the words of the program."""
    for name in IMPORTED:
        __import__(name)
    gc.freeze()  # forks need not look through what they share
    for line in sys.stdin:
        order = json.loads(line)
        children = []
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        for rank in range(order["processes"]):
            child = os.fork()
            if not child:
                become(order, rank, port)
                return order["words"]
            children.append(child)
        print(json.dumps(children), flush=True)
        print(wait(children, order["timeout"]), flush=True)
    os._exit(0)


def wait(children, timeout):
    """Exit code of the first of some processes that failed, or 0; ends the others then, or all after `timeout`."""
    deadline, failed = time.monotonic() + timeout, 0
    while children:
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                children.remove(child)
                code = os.waitstatus_to_exitcode(status)
                if code and not failed:
                    failed, deadline = code, min(deadline, time.monotonic() + PATIENCE)
        if time.monotonic() > deadline:
            for child in children:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return failed


def become(order, rank, port):
    """Makes a fork what was asked for."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup pytest` ignores it, and so would all that it starts
    os.environ.clear()
    os.environ.update(order["environment"])
    if order["one_core"]:
        os.sched_setaffinity(0, [random.choice(sorted(os.sched_getaffinity(0)))])
    if order["cwd"]:
        os.chdir(order["cwd"])
    if order["processes"] > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(order["processes"])))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(order["files"], 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


def execute(first, *rest):
    """The program, as the main module."""
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(rest[0], {"__name__": "__main__"})
    elif first == "-m":
        sys.argv, sys.path[0] = list(rest), str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def ended(action):
    """Calls a function and ends as an interpreter does, but for a second of taking apart what was imported.

    Returns the exit code; the caller ends the process with it.
    """
    code = 0
    try:
        action()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main():
    words = serve()
    os._exit(ended(lambda: execute(*words)))


if __name__ == "__main__":
    main()
