"""Decoders that crash, hang, or are killed: in processes of their own, so that only the file at fault is lost."""

import concurrent.futures
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import wsq  # noqa: F401
from PIL import Image

from fingerprint_accel.cli import main
from fingerprint_accel.data import child_process, images
from fingerprint_accel.data.images import DECODER, ImageError, read_grey
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.errors import UserError
from tests.data.small_datasets import ridges

ROOT = Path(__file__).resolve().parents[2]
RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
# what a decoder process runs instead of its own decoder: `do` is told the bytes of every file
STAND_IN = """
import os, signal, time
from fingerprint_accel.data import decoding
seen = []
def do(data):
    {do}
    return decoding.Decoded(1, len(data), 1, 0.0, data)
decoding.decode = do
decoding.serve_images()
"""


def save_crashing_wsq(path):
    """A good WSQ file but for one byte, which makes its frame 65,280 pixels wider than the coefficients that follow."""
    Image.fromarray(ridges(0)).save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xa2") + 8] = 255
    path.write_bytes(data)


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces the decoder in all processes that start during the test."""

    def replace(do, code=STAND_IN):
        code = f"exec({code.format(do=do)!r})"
        monkeypatch.setattr(images, "DECODER", dataclasses.replace(DECODER, code=code))

    monkeypatch.setattr(child_process, "PAUSE", 0)
    yield replace
    child_process.end_children()


def read(tmp_path, data):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    return read_grey(path)


def test_a_file_that_crashes_the_wsq_decoder_has_a_reason(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "good.png")
    save_crashing_wsq(tmp_path / "bad.wsq")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"damaged: its decoder crashed \(SIG"):
            read_grey(tmp_path / "bad.wsq")
        np.testing.assert_array_equal(read_grey(tmp_path / "good.png"), RAMP)


def test_files_found_to_crash_the_wsq_decoder_have_a_reason():
    folder = ROOT.parent / "shared" / "cases" / "wsq-decoder-crash"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for path in folder.glob("*.wsq"):
        with pytest.raises(ImageError, match="damaged"):
            read_grey(path)


@pytest.mark.parametrize("workers", [1, 2])
def test_import_names_the_file_that_crashes_and_goes_on(tmp_path, workers):
    scans = tmp_path / "scans"
    scans.mkdir()
    for finger in range(1, 41):
        Image.fromarray(ridges(finger)).save(scans / f"{finger}_1.png")
    save_crashing_wsq(scans / "50_1.wsq")
    summary = import_dataset(scans, tmp_path / "set", "fvc", 500, workers=workers, progress=False)
    assert summary.info.prints == 40
    line = json.loads((tmp_path / "set" / "rejected.jsonl").read_text())
    assert line["path"] == "50_1.wsq"
    assert line["reason"].startswith("damaged: its decoder crashed (SIG")


def test_compare_ends_in_one_line_that_names_the_file(tmp_path, capsys, monkeypatch):
    save_crashing_wsq(tmp_path / "bad.wsq")
    Image.fromarray(ridges(0)).save(tmp_path / "good.png")
    files = [str(tmp_path / "good.png"), str(tmp_path / "bad.wsq")]
    monkeypatch.setattr(sys, "argv", ["fingerprint-accel", "compare", *files, "--ppi", "500"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {tmp_path / 'bad.wsq'}: damaged: its decoder crashed")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("do", "error", "reason"),
    [
        ("os.abort()", ImageError, r"damaged: its decoder crashed \(SIGABRT\)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", ImageError, r"damaged: its decoder crashed \(SIGSEGV\)"),
        ("os._exit(1)", ImageError, r"damaged: its decoder crashed \(exit code 1\)"),
        ("raise MemoryError", ImageError, "takes too much memory"),
        ("signal.setitimer(signal.ITIMER_PROF, 0.01)\n    while True: pass", ImageError, "takes too long"),
        ("os.kill(os.getpid(), signal.SIGKILL)", UserError, r"a\.png: .*killed \(SIGKILL\)"),
        ("return decoding.Decoded(1000, 1000, 1, 0.0, data)", ImageError, "damaged: its decoder crashed"),
    ],
)
def test_every_end_of_a_decoder_has_its_reason(stand_in, tmp_path, monkeypatch, do, error, reason):
    stand_in(do)
    monkeypatch.setattr(child_process, "PATIENCE", 0.1)
    with pytest.raises(error, match=reason) as raised:
        read(tmp_path, b"x")
    assert type(raised.value) is error


def test_a_decoder_that_computes_too_long_is_ended(stand_in, tmp_path):
    stand_in("while True: pass", STAND_IN.replace("seen = []", "seen = []; decoding.SECONDS = 0.1"))
    with pytest.raises(ImageError, match="takes too long to decode: convert it to PNG"):
        read(tmp_path, b"x")


def test_large_images_have_more_time(stand_in, tmp_path):
    """The limit of 0.1 s is extended as soon as the size is known."""
    do = "decoding.allow_seconds(5); end = time.process_time() + 0.3\n    while time.process_time() < end: pass"
    stand_in(do, STAND_IN.replace("seen = []", "seen = []; decoding.SECONDS = 0.1"))
    assert bytes(read(tmp_path, b"good")) == b"good"


def test_a_decoder_that_is_killed_from_outside_costs_no_file(stand_in, tmp_path):
    mark = tmp_path / "killed"
    stand_in(f"""if not os.path.exists({str(mark)!r}):
        open({str(mark)!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)""")
    assert bytes(read(tmp_path, b"good")) == b"good"
    assert mark.exists()


MEMORY = """
import io, resource, sys
sys.path[:] = {path!r}
from PIL import Image
from fingerprint_accel.data.decoding import decode
for mode, options in (("I;16", {{"compress_level": 1}}), ("F", {{"compression": "packbits"}})):
    file = io.BytesIO()
    Image.new(mode, (5000, 5000)).save(file, "TIFF" if mode == "F" else "PNG", **options)
    resource.setrlimit(resource.RLIMIT_AS, (2**29, -1))
    found = decode(file.getvalue())
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    print(len(found.pixels))
"""


def test_25_megapixels_of_any_depth_are_decoded_in_half_a_gigabyte():
    command = [sys.executable, "-S", "-c", MEMORY.format(path=[str(ROOT), *sys.path])]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert found == ["25000000"] * 2


def test_files_and_images_above_the_limits_are_refused():
    with pytest.raises(ImageError, match="too large: more than 67 MB"):
        images.decode_apart(bytes(2**26 + 1), "a.tif")
    file = io.BytesIO()
    Image.new("1", (5001, 5000)).save(file, "PNG")
    with pytest.raises(ImageError, match="too large: more than 25 megapixels"):
        images.decode_apart(file.getvalue(), "a.png")


def test_formats_that_are_not_documented_are_not_decoded():
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, "PCX")
    with pytest.raises(ImageError, match="not an image"):
        images.decode_apart(file.getvalue(), "a.pcx")


def test_a_decoder_that_hangs_is_ended(stand_in, tmp_path, monkeypatch):
    stand_in("time.sleep(60)")
    monkeypatch.setattr(child_process, "WALL_SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(ImageError, match="takes too long to decode"):
        read(tmp_path, b"x")
    assert time.monotonic() - started < 10


def test_a_file_is_not_blamed_for_the_damage_of_one_before(stand_in, tmp_path):
    """The first file leaves the decoder damaged: it dies at the second, which a fresh one decodes."""
    stand_in("if b'bad' in seen: os.abort()\n    seen.append(data)")
    assert bytes(read(tmp_path, b"bad")) == b"bad"
    assert bytes(read(tmp_path, b"good")) == b"good"


def test_what_the_decoder_prints_is_no_answer(stand_in, tmp_path):
    stand_in("os.write(1, b'Huffman table missing'); os.write(2, b'!')")
    assert bytes(read(tmp_path, b"good")) == b"good"


def test_signals_to_all_processes_of_a_job_are_the_parents_affair(stand_in, tmp_path):
    stand_in("[os.kill(os.getpid(), each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]")
    assert bytes(read(tmp_path, b"good")) == b"good"


def test_a_decoder_that_does_not_start_blames_no_file(stand_in, tmp_path):
    stand_in("", "raise SystemExit(7)")
    with pytest.raises(UserError, match=r"does not start \(exit code 7\)"):
        read(tmp_path, b"x")


def test_interrupted_in_the_middle_the_next_file_gets_its_own_answer(stand_in, tmp_path):
    stand_in("time.sleep(0.5 if data == b'slow' else 0)")
    read(tmp_path, b"x")
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, b"slow")
    assert bytes(read(tmp_path, b"next")) == b"next"


def test_threads_share_a_few_decoders(stand_in, tmp_path):
    stand_in("seen.append(data); data = b'%d %s' % (os.getpid(), data)")

    def one(number):
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"%d" % number)
        return bytes(read_grey(path)).split()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(one, range(200)))
    assert [answer[1] for answer in answers] == [b"%d" % number for number in range(200)]
    assert len({answer[0] for answer in answers}) <= 4


def test_a_forked_process_has_decoders_of_its_own(stand_in, tmp_path):
    stand_in("data = b'%d' % os.getpid()")
    ours = bytes(read(tmp_path, b"x"))
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = int(bytes(read(tmp_path, b"x")) == ours)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes(read(tmp_path, b"x")) == ours, "the fork has not disturbed it"


SCRIPT = """
import sys, time
from fingerprint_accel.data.child_process import _children
from fingerprint_accel.data.images import read_grey
print(read_grey(sys.argv[1]).shape, [each._process.pid for each in _children][0], flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("killed", [True, False])
def test_a_script_needs_no_guard_and_leaves_no_process(tmp_path, killed):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "a.png"), "60" if killed else "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as script:
        shape, _, decoder = script.stdout.readline().rpartition(" ")
        assert shape == "(64, 256)"
        if killed:
            script.kill()
    for _ in range(200):
        try:
            state = Path(f"/proc/{int(decoder)}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the decoder outlives the script")


def test_a_decoder_finds_a_package_that_is_not_on_the_path(stand_in, tmp_path, monkeypatch):
    """As where it was installed as editable: an import hook finds it."""
    stand_in("")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).resolve() != ROOT])
    assert bytes(read(tmp_path, b"good")) == b"good"


def test_a_decoder_process_imports_little():
    code = "import sys, fingerprint_accel.data.decoding; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "datasets", "pyarrow", "numpy", "wsq", "subprocess", "fingerprint_accel.extraction"} & {*found}
