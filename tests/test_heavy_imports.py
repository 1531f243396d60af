"""Commands import only what they need, because imports are most of the time of a short command."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from fingerprint_accel.cli.gallery import enroll
from fingerprint_accel.data.shards import open_dataset

# Each command runs in a fork of one process, which then tells its modules.
SCRIPT = """
import gc, json, os, sys
from fingerprint_accel.cli import main

found = {}
for words in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    if not os.fork():
        sys.argv = ["fingerprint-accel", *words]
        main()
        loaded = sorted({name for name in sys.modules for start in NAMES if name == start})
        os.write(writing, json.dumps([loaded, gc.get_threshold()[0]]).encode())
        os._exit(0)
    os.close(writing)
    found[words[0]] = json.loads(open(reading).read() or "null")
    os.wait()
print(json.dumps(found))
"""
NAMES = ("torch", "numpy", "pyarrow", "pyarrow.parquet", "pyarrow.dataset", "torch._dynamo", "torch._inductor", "sympy")
NAMES += ("torch.distributed.fsdp", "accelerate", "torchvision", "timm", "datasets", "pandas", "scipy", "matplotlib")
NAMES += ("faiss", "onnx", "onnxruntime", "huggingface_hub", "tensorboard", "distributed", "psycopg", "wsq")


@pytest.fixture(scope="module")
def loaded(prints, tmp_path_factory):
    """Modules of `NAMES` that each verb loads, and the threshold of the garbage collector."""
    folder, shards = tmp_path_factory.mktemp("start"), open_dataset(prints)
    for row in range(2):
        Image.fromarray(shards.image(row)).save(folder / f"{row}.png")
    enroll(folder / "known", [folder / "0.png"], ppi=300)
    commands = [
        ["inspect", str(prints)],
        ["compare", "0.png", "1.png", "--ppi", "300"],
        ["search", "known", "1.png", "--ppi", "300"],
    ]
    script = [sys.executable, "-c", f"NAMES = {NAMES}\n{SCRIPT}", json.dumps(commands)]
    result = subprocess.run(script, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert None not in found.values(), result.stderr
    return found


@pytest.mark.parametrize(
    ("verb", "modules"),
    [
        ("inspect", ["numpy", "pyarrow"]),
        ("compare", ["numpy", "torch"]),
        ("search", ["numpy", "pyarrow", "torch"]),
    ],
)
def test_a_command_loads_no_other_heavy_modules(loaded, verb, modules):
    assert loaded[verb][0] == modules


def test_the_garbage_collector_searches_rarely(loaded):
    assert {threshold for _, threshold in loaded.values()} == {50_000}


def test_the_end_of_a_program_searches_no_garbage():
    script = "import gc, sys; from fingerprint_accel.cli import main; import atexit\n"
    script += "atexit.register(lambda: print(gc.get_freeze_count())); sys.argv = ['x', '--version']; main()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout.splitlines()[-1]) > 10_000, "objects that the last search leaves out"
