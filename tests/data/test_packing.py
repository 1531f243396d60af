import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fingerprint_accel.data import packing
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.merging import renumbered
from fingerprint_accel.data.pack_options import PackOptions
from fingerprint_accel.data.pack_work import Work
from fingerprint_accel.data.packing import pack, pack_command
from fingerprint_accel.data.shard_writing import Record, ShardWriter
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError

SIDE = 64
QUIET = {"workers": 1, "progress": False}


def picture(number, side=SIDE):
    """Half noise, half paper."""
    image = np.full((side, side), 255, np.uint8)
    image[: side // 2] = np.random.default_rng(number).integers(0, 256, (side // 2, side))
    return image


def dataset(folder, keys, impressions=2, first=0, side=SIDE, **options):
    with ShardWriter(folder, 300, side, rows_per_shard=7, **options) as writer:
        for number, key in enumerate(keys):
            for impression in range(impressions):
                points = np.full((number % 3, 4), number + 0.25, np.float32)
                name = f"{folder.name}/{key}_{impression}"
                row = first + number * impressions + impression
                writer.add(Record(picture(row, side), key, impression, name, points))
    return folder


@pytest.fixture
def source(tmp_path):
    return dataset(tmp_path / "one", [f"finger {n}" for n in range(10)])


def contents(folder):
    """Every print by (key, impression): its image, minutiae and source."""
    shards = open_dataset(folder)
    found = {}
    for row in range(len(shards)):
        minutiae, counts = shards.minutiae(np.array([row]))
        key = shards.key_of_finger[shards.fingers[row]]
        image = shards.image(row).copy()
        found[key, int(shards.impressions[row])] = (
            image,
            minutiae[0, : counts[0]].tolist(),
            shards.table["source"][row].as_py(),
        )
    assert len(found) == len(shards)
    return found


def assert_same_prints(ours, theirs):
    assert set(ours) == set(theirs)
    for key, (image, minutiae, source) in ours.items():
        np.testing.assert_array_equal(image, theirs[key][0])
        assert (minutiae, source) == theirs[key][1:]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("encoding", ["raw", "lz4"])
def test_new_shards_same_prints(source, tmp_path, encoding):
    summary = pack([source], tmp_path / "out", PackOptions(encoding=encoding, rows_per_shard=6), **QUIET)
    assert (summary.info.prints, summary.info.fingers, summary.info.with_minutiae) == (20, 10, 12)
    assert (summary.info.encoding, summary.info.ppi, summary.info.canvas) == (encoding, 300, SIDE)
    assert list(summary.info.sha256) == [f"data-0000{n}-of-00004.arrow" for n in range(4)]
    assert "median 2" in summary.table()
    assert_same_prints(contents(source), contents(tmp_path / "out"))
    shards = open_dataset(tmp_path / "out")
    shards.verify()
    assert (np.diff(shards.fingers) == 0).sum() < 7, "sorted by finger it would be 10"
    first = [int(np.flatnonzero(shards.fingers == finger)[0]) for finger in range(10)]
    assert first == sorted(first), "fingers are numbered as they appear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out"]
    table = datasets.load_from_disk(str(tmp_path / "out"))
    assert (table.num_rows, table[3]["source"]) == (20, shards.table["source"][3].as_py())


def test_lz4_and_back(source, tmp_path):
    pack([source], tmp_path / "small", PackOptions(encoding="lz4", seed=1), **QUIET)
    pack([tmp_path / "small"], tmp_path / "again", **QUIET)
    assert open_dataset(tmp_path / "again").info.encoding == "lz4", "that of the first source"
    pack([tmp_path / "again"], tmp_path / "large", PackOptions(encoding="raw"), **QUIET)
    assert_same_prints(contents(source), contents(tmp_path / "large"))
    sizes = [sum(path.stat().st_size for path in (tmp_path / name).glob("*.arrow")) for name in ("small", "large")]
    assert sizes[0] < 0.75 * sizes[1]


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
    return os.readlink(f"/proc/self/fd/{descriptor}").endswith(".arrow.tmp")


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


def test_merging_keeps_fingers_apart(source, tmp_path):
    other = dataset(tmp_path / "two", ["finger 9", "finger 10", "finger 11"], first=100)
    namesake = dataset(tmp_path / "deep" / "two", ["finger 9", "new"], first=200, encoding="lz4")
    summary = pack([source, other, namesake], tmp_path / "out", **QUIET)
    assert (summary.info.prints, summary.info.fingers, summary.info.encoding) == (30, 15, "raw")
    found = contents(tmp_path / "out")
    keys = {key for key, _ in found}
    assert keys == {
        *(f"finger {n}" for n in range(9)),
        *("one/finger 9", "two/finger 9", "two-2/finger 9", "finger 10", "finger 11", "new"),
    }
    for key, row in (("one/finger 9", 18), ("two/finger 9", 100), ("two-2/finger 9", 200), ("new", 202)):
        for impression in (0, 1):
            np.testing.assert_array_equal(found[key, impression][0], picture(row + impression))


def test_a_prefixed_key_meets_no_other(tmp_path):
    one = dataset(tmp_path / "one", ["a", "one/a"])
    two = dataset(tmp_path / "two", ["a"])
    pack([one, two], tmp_path / "out", **QUIET)
    assert set(open_dataset(tmp_path / "out").key_of_finger) == {"one-2/a", "one/a", "two/a"}


def test_joining_fingers(source, tmp_path):
    other = dataset(tmp_path / "two", ["finger 9", "finger 10"], impressions=3, first=100)
    options = PackOptions(join_fingers=True)
    summary = pack([source, other], tmp_path / "out", options, **QUIET)
    assert (summary.info.prints, summary.info.fingers) == (26, 11)
    found = contents(tmp_path / "out")
    assert sorted(number for key, number in found if key == "finger 9") == [0, 1, 2, 3, 4]
    for impression, row in ((0, 18), (1, 19), (2, 102), (3, 100), (4, 101)):
        np.testing.assert_array_equal(found["finger 9", impression][0], picture(row), err_msg=str(impression))


def test_renumbering():
    finger = np.array([0, 0, 1, 0, 0, 0, 1])
    impression = np.array([5, 1, 3, 5, 1, 2, 4])
    origin = np.array([0, 0, 0, 1, 1, 1, 1])
    assert renumbered(finger, impression, origin).tolist() == [5, 1, 3, 7, 6, 2, 4]


def test_too_many_impressions_to_join(tmp_path):
    sources = []
    for name in ("one", "two"):
        with ShardWriter(tmp_path / name, 300, SIDE) as writer:
            writer.add(Record(picture(0), "a", 32767, "", np.empty((0, 4), np.float32)))
        sources.append(tmp_path / name)
    with pytest.raises(UserError, match="--join-fingers: a finger would have impression 32768"):
        pack(sources, tmp_path / "out", PackOptions(join_fingers=True), **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def dots(folder, points, side=200):
    image = np.full((side, side), 255, np.uint8)
    for x, y in points:
        image[y - 3 : y + 4, x - 3 : x + 4] = 0  # around (x + 0.5, y + 0.5)
    minutiae = np.array([(x + 0.5, y + 0.5, 1.5, 0.5) for x, y in points], np.float32)
    with ShardWriter(folder, 500, side) as writer:
        writer.add(Record(image, "a", 0, "", minutiae))
    return folder


@pytest.mark.parametrize(("ppi", "canvas"), [(300, 200), (300, 120), (500, 260), (500, 151), (750, 301), (333, 100)])
def test_minutiae_follow_the_pixels(tmp_path, ppi, canvas):
    source = dots(tmp_path / "dots", [(100, 100), (60, 100), (100, 130), (8, 190)])
    pack([source], tmp_path / "out", PackOptions(ppi=ppi, canvas=canvas), **QUIET)
    shards = open_dataset(tmp_path / "out")
    assert (shards.info.ppi, shards.info.canvas) == (ppi, canvas)
    minutiae, counts = shards.minutiae(np.array([0]))
    scale = ppi / 500
    expected = [(x, y) for x, y in ((100, 100), (60, 100), (100, 130), (8, 190)) if _inside(x, y, scale, canvas)]
    assert counts[0] == len(expected)
    ink = 255.0 - shards.image(0)
    rows, columns = np.indices(ink.shape) + 0.5
    for (x, y), point in zip(expected, minutiae[0], strict=False):
        assert point[:2] == pytest.approx(
            [(x + 0.5 - 100) * scale + canvas / 2, (y + 0.5 - 100) * scale + canvas / 2], abs=0.51
        )
        assert tuple(point[2:]) == (1.5, 0.5)
        near = (np.abs(columns - point[0]) < 8 * scale) & (np.abs(rows - point[1]) < 8 * scale)
        weight = ink * near
        assert weight.sum() == pytest.approx(255 * (7 * scale) ** 2, rel=0.05)
        assert (weight * columns).sum() / weight.sum() == pytest.approx(point[0], abs=0.1)
        assert (weight * rows).sum() / weight.sum() == pytest.approx(point[1], abs=0.1)
    if scale < 1 and canvas == 200:
        assert (shards.image(0)[:30] == 255).all(), "white where the old canvas does not reach"


def _inside(x, y, scale, canvas):
    return all(0 <= (value + 0.5 - 100) * scale + canvas / 2 < canvas for value in (x, y))


def test_another_canvas_moves_pixels_as_they_are(source, tmp_path):
    pack([source], tmp_path / "large", PackOptions(canvas=SIDE + 20), **QUIET)
    ours, theirs = contents(source), contents(tmp_path / "large")
    for key, (image, minutiae, _) in ours.items():
        large = theirs[key][0]
        np.testing.assert_array_equal(large[10:-10, 10:-10], image)
        assert (large[:10] == 255).all()
        assert [[x + 10, y + 10, *rest] for x, y, *rest in minutiae] == theirs[key][1]
    pack([tmp_path / "large"], tmp_path / "back", PackOptions(canvas=SIDE), **QUIET)
    assert_same_prints(ours, contents(tmp_path / "back"))


def test_fine_ridges_do_not_alias(tmp_path):
    """Lines closer than the new pixels become grey, not coarse lines."""
    with ShardWriter(tmp_path / "fine", 1000, 400) as writer:
        stripes = np.tile(np.where(np.arange(400) % 3 < 1, 0, 255).astype(np.uint8), (400, 1))
        writer.add(Record(stripes, "a", 0, "", np.empty((0, 4), np.float32)))
    pack([tmp_path / "fine"], tmp_path / "out", PackOptions(ppi=250, canvas=100), **QUIET)
    middle = open_dataset(tmp_path / "out").image(0)[20:80, 20:80].astype(float)
    assert middle.mean() == pytest.approx(170, abs=2)
    assert middle.std() < 12, "plain picking of pixels would have 120"


def ridges(phase, side=300):
    y, x = np.mgrid[:side, :side]
    inside = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.42 * side) ** 2
    return np.where(inside, 128 + 100 * np.cos(x / 1.5 + phase + y / 9), 255).astype(np.uint8)


@pytest.fixture
def flx_folder(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for finger in (1, 2):
        for impression in (1, 2):
            Image.fromarray(ridges(finger + impression)).save(folder / f"{finger}_{impression}.png")
            (folder / f"{finger}_{impression}.xyt").write_text("150 150 45 80\n100 150 200 20\n")
    (folder / "3_1.png").write_bytes(b"no image")
    return folder


def test_a_folder_in_flx_naming(flx_folder, source, tmp_path):
    options = PackOptions(encoding="lz4", rows_per_shard=3)
    summary = pack([flx_folder], tmp_path / "out", options, **QUIET)
    info = summary.info
    assert (info.prints, info.fingers, info.with_minutiae, info.ppi, info.canvas) == (4, 2, 4, 300, 320)
    assert summary.rejected.total() == 1
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["path"] == "3_1.png"
    import_dataset(flx_folder, tmp_path / "imported", "flx", 500, **QUIET)
    assert_same_prints(contents(tmp_path / "imported"), contents(tmp_path / "out"))
    summary = pack([source, flx_folder], tmp_path / "both", **QUIET)
    assert (summary.info.prints, summary.info.canvas) == (24, SIDE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "imported", "one", "out", "scans"]


def test_real_prints_in_flx_naming(shared_data, tmp_path):
    if not (shared_data / "flx_example").is_dir():
        pytest.skip("no flx_example")
    summary = pack([shared_data / "flx_example"], tmp_path / "out", PackOptions(encoding="lz4"), **QUIET)
    assert (summary.info.prints, summary.info.fingers, summary.info.with_minutiae) == (100, 10, 100)


def test_verify(source, tmp_path, capsys):
    pack_command([source], PackOptions(), True, 1, False)
    assert "3 shards" in capsys.readouterr().out
    shard = source / "data-00001-of-00003.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(UserError, match="data-00001-of-00003.arrow: sha256 differs"):
        pack_command([source], PackOptions(), True, 1, False)
    with pytest.raises(UserError, match="data-00001-of-00003.arrow: sha256 differs"):
        pack([source], tmp_path / "out", verify=True, **QUIET)
    shard.write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(UserError, match="data-00001-of-00003.arrow: missing or damaged"):
        pack([source], tmp_path / "out", **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_damaged_lz4_row(tmp_path):
    source = dataset(tmp_path / "one", ["a", "b"], encoding="lz4")
    (path,) = source.glob("*.arrow")
    data = bytearray(path.read_bytes())
    first = pa.ipc.open_stream(bytes(data)).read_all()["image"][0].as_py()
    at = bytes(data).index(first)
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"one/data-00000-of-00001.arrow: missing or damaged \(.*; copy or import"):
        pack([source], tmp_path / "out", PackOptions(encoding="raw"), **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_mistakes_name_the_remedy(source, tmp_path, monkeypatch):
    def refused(match, sources, out, options=None, **more):
        with pytest.raises(UserError, match=match) as caught:
            pack(sources, out, options, **{**QUIET, **more})
        assert len(str(caught.value).splitlines()) == 1

    out = tmp_path / "out"
    refused("gone: no such folder; give", [source, tmp_path / "gone"], out)
    refused("lies in the source", [source], source / "out")
    refused("lies in the source", [source], source, overwrite=True)
    refused("holds the source", [source], tmp_path, overwrite=True)
    refused("given 2 times", [source, source], out)
    refused("--ppi 7: must lie", [source], out, PackOptions(ppi=7))
    refused("--canvas 7: must lie", [source], out, PackOptions(canvas=7))
    refused("--rows-per-shard 0: must be", [source], out, PackOptions(rows_per_shard=-0))
    refused("--encoding zip", [source], out, PackOptions(encoding="zip"))
    refused("--source-ppi 3", [source], out, PackOptions(source_ppi=3))
    (tmp_path / "empty").mkdir()
    refused("holds no image file", [tmp_path / "empty"], out)
    Image.fromarray(ridges(0)).save(tmp_path / "empty" / "anna.png")
    refused("`import`", [tmp_path / "empty"], out)
    enhanced = dataset(tmp_path / "enhanced", ["x"], enhanced=True)
    refused(f"{enhanced}: enhanced, but .*one is not; pack .*one with --enhance", [source, enhanced], out)
    refused("enhanced already; leave out --enhance", [enhanced], out, PackOptions(enhance=darker))
    full = SimpleNamespace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    refused(r"out: 0.0 GB needed, 0.0 GB are free; make room", [source], out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "enhanced", "one"]
    full.free = 70_000
    pack([source], out, PackOptions(encoding="lz4"), **QUIET)  # what lz4 saves counts
    refused("exists already; choose another folder, or add --overwrite", [source], out)
    with pytest.raises(UserError, match="give SRC and OUT"):
        pack_command([source], PackOptions(), False, 1, False)


def darker(image, ppi):
    return image // 2 + np.uint8(ppi % 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_enhancing(source, tmp_path, workers):
    """The function that is passed in sees every canvas once, as it will be stored, in any process."""
    options = PackOptions(ppi=251, canvas=70, enhance=darker)
    summary = pack([source], tmp_path / "out", options, workers=workers, progress=False)
    assert summary.info.enhanced
    plain = PackOptions(ppi=251, canvas=70)
    assert not pack([source], tmp_path / "plain", plain, **QUIET).info.enhanced
    ours, theirs = contents(tmp_path / "plain"), contents(tmp_path / "out")
    for key, (image, minutiae, name) in ours.items():
        np.testing.assert_array_equal(theirs[key][0], image // 2 + 1)
        assert theirs[key][1:] == (minutiae, name)
    again = pack([tmp_path / "out"], tmp_path / "again", PackOptions(encoding="lz4"), **QUIET)
    assert again.info.enhanced, "it stays so"
