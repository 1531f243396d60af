import os
import subprocess
import sys
from pathlib import Path

import pytest

from fingerprint_accel.data import packing
from fingerprint_accel.data.pack_options import PackOptions
from fingerprint_accel.data.pack_work import Work
from fingerprint_accel.data.packing import pack
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from tests.data.small_datasets import QUIET, dataset, files


@pytest.fixture
def source(tmp_path):
    return dataset(tmp_path / "one", [f"finger {n}" for n in range(10)])


def test_same_bytes_for_any_number_of_workers(source, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "ROWS_PER_TASK", 3)
    options = PackOptions(encoding="lz4", rows_per_shard=8, ppi=250)
    for workers in (1, 2, 3):
        pack([source], tmp_path / f"out{workers}", options, workers=workers, progress=False)
    assert files(tmp_path / "out1") == files(tmp_path / "out2") == files(tmp_path / "out3")


@pytest.mark.parametrize(
    "moment", ["before it is synchronised", "before it is entered", "before it is renamed", "after"]
)
@pytest.mark.parametrize("shard", range(4))
def test_interrupted_at_every_shard(source, tmp_path, monkeypatch, shard, moment):
    """Whatever a shard's last steps leave behind, the same command ends with the same bytes."""
    options = PackOptions(rows_per_shard=6, encoding="lz4")
    pack([source], tmp_path / "whole", options, **QUIET)
    count = {"reached": 0}

    def deadly(function, at):
        def wrapped(*arguments):
            if at(*arguments):
                count["reached"] += 1
                if count["reached"] == shard + 1:
                    raise KeyboardInterrupt
            return function(*arguments)

        return wrapped

    with monkeypatch.context() as patched:
        if moment == "before it is synchronised":
            patched.setattr(os, "fsync", deadly(os.fsync, _is_shard))
        elif moment == "before it is entered":
            module = sys.modules["fingerprint_accel.data.pack_work"]
            patched.setattr(module, "file_sha256", deadly(module.file_sha256, lambda path: path.suffix == ".tmp"))
        elif moment == "before it is renamed":
            patched.setattr(Path, "rename", deadly(Path.rename, lambda path, _: path.name.endswith(".arrow.tmp")))
        else:
            inner, number = Work.write_shard, shard

            def write_shard(work, at, *arguments):
                done = inner(work, at, *arguments)
                if at == number:
                    raise KeyboardInterrupt
                return done

            patched.setattr(Work, "write_shard", write_shard)
        with pytest.raises(KeyboardInterrupt):
            pack([source], tmp_path / "out", options, **QUIET)
    assert not (tmp_path / "out").exists()
    finished = list((tmp_path / ".out.pack" / "dataset").glob("*.arrow"))
    assert len(finished) == (shard + 1 if moment == "after" else shard)
    stamps = {path.name: path.stat().st_ino for path in finished}
    pack([source], tmp_path / "out", options, workers=1 + shard % 2, progress=False)
    assert files(tmp_path / "whole") == files(tmp_path / "out")
    for name, inode in stamps.items():
        assert (tmp_path / "out" / name).stat().st_ino == inode, "a finished shard is not written again"
    assert not (tmp_path / ".out.pack").exists()


def _is_shard(descriptor):
    return str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(".arrow.tmp")


@pytest.mark.parametrize("step", ["info", "move", "removal"])
def test_interrupted_at_the_end(source, tmp_path, monkeypatch, step):
    pack([source], tmp_path / "whole", **QUIET)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if step == "info":
            patched.setattr("fingerprint_accel.data.pack_work.write_info", stop)
        elif step == "move":
            rename = Path.rename
            patched.setattr(Path, "rename", lambda path, to: stop() if path.name == "dataset" else rename(path, to))
        else:
            patched.setattr(Work, "remove", stop)
        with pytest.raises(KeyboardInterrupt):
            pack([source], tmp_path / "out", **QUIET)
    assert (tmp_path / "out").exists() == (step == "removal")
    assert pack([source], tmp_path / "out", **QUIET).info == open_dataset(tmp_path / "whole").info
    assert files(tmp_path / "whole") == files(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "whole"]
    with pytest.raises(UserError, match="exists already"):
        pack([source], tmp_path / "out", **QUIET)


KILL = """
import os, signal, sys
from fingerprint_accel.data import pack_work
hashed, count = pack_work.file_sha256, [0]
def deadly(path):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return hashed(path)
pack_work.file_sha256 = deadly
from fingerprint_accel.cli import main
main()
"""


def test_killed(source, tmp_path):
    words = ["pack", str(source), str(tmp_path / "out"), "--rows-per-shard", "5", "--encoding", "lz4", "--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(packing.__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", KILL, *words], env=environment, capture_output=True)
    assert killed.returncode == -9
    assert len(list((tmp_path / ".out.pack" / "dataset").glob("*.arrow"))) == 2
    main = "from fingerprint_accel.cli import main; main()"
    other = subprocess.run(
        [sys.executable, "-c", main, *words, "--canvas", "80"], env=environment, capture_output=True, text=True
    )
    assert other.returncode == 2
    assert other.stderr.startswith("error: ")
    assert "(canvas 64 not 80); end that command, delete the folder, or add --overwrite" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1
    resumed = subprocess.run([sys.executable, "-c", main, *words], env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on: 2 of 4 shards are there" in resumed.stderr
    pack([source], tmp_path / "whole", PackOptions(rows_per_shard=5, encoding="lz4"), **QUIET)
    assert files(tmp_path / "whole") == files(tmp_path / "out")


def test_other_arguments_after_an_interruption(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Work, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack([source], tmp_path / "out", **QUIET)
    with pytest.raises(UserError, match=r"seed 0 not 1.*--overwrite"):
        pack([source], tmp_path / "out", PackOptions(seed=1), **QUIET)
    pack([source], tmp_path / "out", PackOptions(seed=1), overwrite=True, **QUIET)
    pack([source], tmp_path / "fresh", PackOptions(seed=1), **QUIET)
    assert files(tmp_path / "fresh") == files(tmp_path / "out")
    pack([source], tmp_path / "out", PackOptions(seed=2), overwrite=True, **QUIET)
    assert files(tmp_path / "fresh") != files(tmp_path / "out")
