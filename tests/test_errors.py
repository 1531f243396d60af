"""How a command ends after an error."""

import os
import sys

import pytest
import torch

from fingerprint_accel.errors import one_line_errors

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
