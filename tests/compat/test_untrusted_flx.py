"""Files that `convert-flx` reads from strangers: one line, soon, and in bounded memory."""

import io
import os
import random
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch

from fingerprint_accel.compat import flx_weights
from fingerprint_accel.compat.torch_file import read_torch_file
from fingerprint_accel.errors import UserError
from fingerprint_accel.untrusted import UnreadableError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint as flx writes it, with the state dicts of PyTorch."""
    layer = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    parts = {"model_state_dict": layer.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "loss": 0.5}
    path = tmp_path_factory.mktemp("flx") / "best_model.pyt"
    torch.save(parts, path)
    return path


def repacked(whole, path, pickled, **options):
    """The same archive with another description."""
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", **options) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, pickled if entry.filename.endswith("data.pkl") else source.read(entry))
    return path


def description(whole):
    with zipfile.ZipFile(whole) as source:
        return source.read(next(name for name in source.namelist() if name.endswith("data.pkl")))


def test_what_pytorch_saves_is_read(whole):
    content = read_torch_file(whole)
    assert content["model_state_dict"]["0.weight"].shape == (4, 3)
    assert content["optimizer_state_dict"]["state"][0]["exp_avg"].shape == (4, 3)


def refused(path):
    started = time.monotonic()
    with pytest.raises(UserError, match=f"{path}: (damaged, or holds more than tensors; refused|not a )") as caught:
        flx_weights.load(path)
    assert time.monotonic() - started < 2
    assert "\n" not in str(caught.value)


PICKLES = {
    "a billion bytes": b"\x80\x02cbuiltins\nbytearray\nJ\x00\xca\x9a\x3b\x85R.",
    "by another opcode": b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93J\x00\xca\x9a\x3b\x85R.",
    "an unknown function": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.",
    "a million lists": b"\x80\x02" + b"]" * 1_000_000 + b".",
    "too long": b"\x80\x02" + b"]" * 2_000_000 + b".",
    "nothing": b"",
}


@pytest.mark.parametrize("pickled", PICKLES.values(), ids=PICKLES)
def test_descriptions_that_would_take_memory_or_run_code_are_refused(pickled, whole, tmp_path):
    refused(repacked(whole, tmp_path / "a.pyt", pickled))


def test_a_zip_bomb_is_not_inflated(whole, tmp_path):
    path = tmp_path / "bomb.pyt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("bomb/data.pkl", description(whole))
        target.writestr("bomb/data/0", bytes(20_000_000))
    assert path.stat().st_size < 100_000
    refused(path)


def test_many_parts_are_not_listed(tmp_path):
    """A directory of 50 MB takes half a minute and gigabytes."""
    path = tmp_path / "many.pyt"
    with path.open("wb") as file:
        file.truncate(60_000_000)
        file.seek(60_000_000)
        file.write(b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 65535, 65535, 50_000_000, 10_000_000, 0))
    refused(path)


def test_a_tensor_that_repeats_one_number_is_no_weight(tmp_path):
    """A file of a kilobyte could state a branch of a billion numbers."""
    weights = {"texture_branch._6_linear.weight": torch.zeros(1).expand(10**9, 1)}
    torch.save({"model_state_dict": weights}, tmp_path / "a.pyt")
    refused(tmp_path / "a.pyt")


def test_a_branch_of_any_size_is_not_built(tmp_path):
    torch.save({"model_state_dict": {"texture_branch._6_linear.weight": torch.zeros(10**6, 1)}}, tmp_path / "a.pyt")
    with pytest.raises(UserError, match=r"not a DeepPrint of flx \(model.embedding_dim must be a number of at most"):
        flx_weights.load(tmp_path / "a.pyt")


def test_what_is_no_archive_is_not_read(whole, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(3 << 30)
    (tmp_path / "comment").write_bytes(whole.read_bytes()[:-2] + b"\x01\x00x")
    (tmp_path / "before").write_bytes(b"x" * 100 + whole.read_bytes())
    for name in ("pipe", "sparse", "comment", "before", "."):
        refused(tmp_path / name)
    refused(Path("/dev/zero"))


def test_a_flipped_number_is_noticed(whole, tmp_path):
    data = bytearray(whole.read_bytes())
    data[data.index(struct.pack("<f", float(torch.load(whole)["model_state_dict"]["0.weight"][0, 0])))] ^= 1
    (tmp_path / "a.pyt").write_bytes(data)
    refused(tmp_path / "a.pyt")


def test_mutated_files_end_in_one_kind_of_error(whole, tmp_path):
    """The seed is kept; thousands more were tried."""
    chance, data, pickled = random.Random(5), whole.read_bytes(), description(whole)
    for number in range(300):
        mutated = bytearray(data if number % 2 else pickled)
        for _ in range(chance.choice((1, 1, 2, 5))):
            place = chance.randrange(len(mutated))
            match chance.randrange(4):
                case 0:
                    mutated[place] ^= 1 << chance.randrange(8)
                case 1:
                    mutated[place : place + chance.randrange(9)] = chance.choice(
                        (b"\xff" * 8, b"\0" * 8, b"\x7f", b".")
                    )
                case 2:
                    del mutated[place : place + chance.randrange(1, 30)]
                case 3:
                    mutated[place:place] = mutated[place : place + 20]
        path = tmp_path / "a.pyt"
        path.write_bytes(mutated) if number % 2 else repacked(whole, path, bytes(mutated))
        try:
            content = read_torch_file(path)
        except UnreadableError:
            continue
        torch.save(content, io.BytesIO())  # reads every number of it
