"""The code of docs/library.md runs from top to bottom, and does what its comments say."""

import ast
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shard_writer import ShardWriter

from fingerprint_accel import FingerprintExtractor, open_dataset
from fingerprint_accel.data.shard_writing import Record

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "library.md").read_text()
EXAMPLE = (ROOT / "examples" / "own_loop.py").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def code_of_example():
    """What follows the docstring."""
    return "\n".join(EXAMPLE.splitlines()[ast.parse(EXAMPLE).body[0].end_lineno :]).strip() + "\n"


@pytest.fixture
def folder(prints, tmp_path, monkeypatch):
    """A working folder with a dataset of 8 fingers and two images of one of them at 500 ppi."""
    whole = open_dataset(prints)
    rows = np.flatnonzero((whole.fingers < 8) & (whole.impressions < 2))
    points, counts = whole.minutiae(rows)
    with ShardWriter(tmp_path / "datasets" / "db1", whole.info.ppi, whole.info.canvas, encoding="lz4") as writer:
        for row, minutiae, count in zip(rows.tolist(), points, counts, strict=True):
            key, impression = whole.key_of_finger[whole.fingers[row]], int(whole.impressions[row])
            writer.add(Record(whole.image(row), key, impression, f"{key}/{impression}.png", minutiae[:count]))
    data = open_dataset(tmp_path / "datasets" / "db1")
    for name, row in zip("ab", np.flatnonzero(data.fingers == 0), strict=True):
        image = Image.fromarray(data.image(row)).resize((533, 533), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


def test_every_block_runs(folder, monkeypatch, fresh_accelerator, capsys):
    words = next(line for line in blocks("sh")[0].splitlines() if line.startswith("python examples/own_loop.py"))
    monkeypatch.setattr(sys, "argv", shlex.split(words)[1:])
    names, before_loop = {"__name__": "page"}, {}
    for number, block in enumerate(blocks("python")):
        if "Accelerator()" in block:  # which gives other things the same names
            before_loop = dict(names)
        exec(compile(block, f"docs/library.md, block {number}", "exec"), names)
    found = before_loop
    assert found["embeddings"].shape == (16, 512)
    assert found["one"].shape == (1, 512) and found["two"].shape == (2, 512)
    np.testing.assert_allclose(found["two"][:1], found["one"], atol=1e-4)
    assert found["quality"].shape == (2,) and 0 < found["quality"].min() <= found["quality"].max() <= 1
    assert found["canvases"].shape == (4, 320, 320)
    np.testing.assert_allclose(found["embeddings_of_canvases"], found["embeddings"][:4], atol=1e-4)
    assert found["scores"].shape == (16, 16)
    assert 0.5 < found["score"] <= 1
    assert found["metrics"].eer < 0.05
    assert (found["metrics"].mated, found["metrics"].nonmated) == (8, 112)
    batch = found["batch"]
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 320, 320), torch.uint8)
    of_rows = {canvas.tobytes() for canvas in map(found["data"].image, range(16))}
    assert all(image.numpy().tobytes() in of_rows for image in batch["image"])
    assert batch["finger"].dtype == torch.int64 and found["labels"]["finger"].dtype == np.int64
    assert names["train"].classes + len(set(names["validation"].labels)) == 8
    embedded = found["extractor"].extract(names["validation"], progress=False)
    np.testing.assert_allclose(embedded, found["embeddings"][names["validation"].rows], atol=1e-4)
    printed = capsys.readouterr().out
    assert re.search(r"\['print \d+', 'print \d+', 'print \d+'\] \[0\.9", printed)
    assert "step 1: loss" in printed and "step 2: loss" in printed
    assert "differs from PyTorch by at most" in printed
    own = FingerprintExtractor.from_pretrained("models/own")
    half = FingerprintExtractor.from_pretrained("models/own-half")
    np.testing.assert_allclose(own.extract("a.png", ppi=500), half.extract("a.png", ppi=500), atol=1e-2)


def test_the_page_quotes_the_example():
    assert [block for block in blocks("python") if "Accelerator()" in block] == [code_of_example()]


def test_the_example_has_forty_lines_and_no_private_name():
    assert len([line for line in code_of_example().splitlines() if line.strip()]) <= 40
    assert not re.search(r"\b_[a-z]|\._", code_of_example())


def test_the_page_is_short():
    assert len(PAGE.split()) < 900
