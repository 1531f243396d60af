"""How a command ends after an error."""

import os
import signal
import sys
import time

import pytest
import torch

from fingerprint_accel import errors
from fingerprint_accel.config import Config, parse
from fingerprint_accel.errors import UserError, one_line_errors, require
from fingerprint_accel.ranks import LOCAL_RANKS

LOST = {
    "a process that does not start": torch.distributed.DistStoreError("Timed out waiting. 1/2 clients joined."),
    "a backend": torch.distributed.DistBackendError("NCCL error: remote process exited"),
    "gloo": RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"),
}


@pytest.mark.parametrize("error", LOST.values(), ids=LOST)
def test_a_lost_process_is_one_line(error, tmp_path):
    """A process that was killed during the start left the others with a traceback."""
    child = os.fork()
    if not child:
        sys.stderr = (tmp_path / "err").open("w")
        with one_line_errors():
            raise error
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 76
    (line,) = (tmp_path / "err").read_text().strip().splitlines()
    assert line.startswith(f"error: lost the connection to another process of this launch ({str(error)[:70]}")
    assert line.endswith("look for its error, then start all processes again (training: with --resume auto)")


def test_an_error_of_the_program_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"), one_line_errors():
        raise RuntimeError("shapes do not fit")


MISTAKES = {
    "a mistake": lambda: require(False, "nowhere: not a dataset folder"),
    "an option": lambda: parse(Config(), "", ["--nowhere"]),
    "a value": lambda: parse(Config(), "", ["--training.precision", "nowhere"]),
    "a number": lambda: parse(Config(), "", ["--training.warmup-steps", "-3"]),
}
ENDED = -signal.SIGTERM
ENDS = [
    ("a mistake", True, [2, ENDED, ENDED], 1),  # as torchrun, which ends the others after a failure
    ("a mistake", False, [2, 2, 2], 3),  # as srun
    ("an option", True, [2, ENDED, ENDED], 1),
    ("an option", False, [2, 2, 2], 1),
    ("a value", False, [2, 2, 2], 1),
    ("a number", False, [2, 2, 2], 1),
]


@pytest.mark.parametrize(("mistake", "kills", "codes", "told"), ENDS)
def test_processes_of_a_launch_with_the_same_mistake(mistake, kills, codes, told, monkeypatch, tmp_path):
    """The first process of the second machine starts last."""
    monkeypatch.setattr(errors, "HEAD_START", 10 if kills else 0.2)
    children, ended = {}, {}
    for rank in (2, 1, 0):
        child = os.fork()
        if not child:
            os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank + 3), WORLD_SIZE="6")
            sys.stdout = sys.stderr = (tmp_path / str(rank)).open("w", buffering=1)
            time.sleep(0.1 * (rank == 0))
            try:
                with one_line_errors():
                    MISTAKES[mistake]()
            except SystemExit as end:
                os._exit(end.code)
            os._exit(99)
        children[child] = rank
    while children:
        for child in list(children):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[children.pop(child)] = os.waitstatus_to_exitcode(status)
                for other in children if kills and len(ended) == 1 else ():
                    os.kill(other, signal.SIGTERM)
        time.sleep(0.01)
    assert [ended[rank] for rank in range(3)] == codes
    texts = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert texts[0]
    assert sum(bool(text) for text in texts) == told


@pytest.mark.parametrize(
    ("local_rank", "grouped", "waits"), [("", False, 0), ("0", False, 0), ("1", True, 0), ("1", False, 2)]
)
def test_only_later_processes_without_a_group_wait(local_rank, grouped, waits, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: grouped)
    for name in LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    for name in LOCAL_RANKS[:2]:
        monkeypatch.setenv(name, local_rank)
        with pytest.raises(SystemExit) as end, one_line_errors():
            raise UserError("nowhere")
        assert end.value.code == 2
    with pytest.raises(SystemExit), one_line_errors():
        raise SystemExit(0)  # --help
    assert slept == [2.0] * waits


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_a_rank_that_is_no_number_is_one_line(name, monkeypatch, capsys):
    monkeypatch.setenv(name, "first")
    with pytest.raises(SystemExit) as end, one_line_errors():
        pytest.fail("the command began")
    assert end.value.code == 2
    line = f"error: {name}=first: give a whole number, as launchers do, or unset the variable"
    assert capsys.readouterr().err.splitlines() == [line]
