import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.inspection import contact_sheet
from fingerprint_accel.data.shard_writing import Record, ShardWriter
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.evaluation.plots import training_png
from fingerprint_accel.evaluation.report import SYNTHETIC, is_synthetic
from fingerprint_accel.evaluation.run import evaluate_command
from fingerprint_accel.extraction.extractor import FingerprintExtractor

RECORDS = [
    {"step": 1, "kind": "train", "loss": 3.0, "learning_rate": 0.1},
    {"step": 2, "kind": "train", "loss": 2.0, "learning_rate": 0.2, "augmentation": 0.5, "margin": 0.0},
    {"step": 2, "kind": "validation", "eer": 0.2},
]


@pytest.fixture
def run(tmp_path):
    """A run folder as far as its exported model and its records go."""
    torch.manual_seed(0)
    model = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    folder = tmp_path / "run"
    FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320).save_pretrained(
        folder / "model"
    )
    (folder / "config.yaml").touch()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


def with_source(prints, out, sources):
    shards = open_dataset(prints)
    with ShardWriter(out, shards.info.ppi, shards.info.canvas) as writer:
        for row, source in zip(range(len(shards)), sources, strict=False):
            key, impression = shards.key_of_finger[shards.fingers[row]], int(shards.impressions[row])
            writer.add(Record(shards.image(row).copy(), key, impression, source, np.empty((0, 4), np.float32)))
    return out


def size(png):
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.size


@pytest.mark.parametrize("records", [RECORDS, RECORDS[:2], RECORDS[:1]])
def test_training_png(records, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    png = training_png(file)
    assert png is not None
    assert size(png) == (1344, 504)


@pytest.mark.parametrize("text", ["", json.dumps(RECORDS[2]) + "\n", '{"step": 1, "kind": "train", "loss": NaN}\n'])
def test_no_training_png_without_a_loss(text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert training_png(tmp_path / "metrics.jsonl") is None


def test_page_tells_all_in_order(run, prints, tmp_path):
    out = tmp_path / "evaluation"
    evaluate_command(run / "model", prints, "all-pairs", out, 32)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["det.png", "metrics.json", "report.html", "samples.png", "scores.png", "training.png"]
    sizes = {name: size((out / f"{name}.png").read_bytes()) for name in ("det", "scores", "training", "samples")}
    assert sizes == {
        "det": (672, 552),
        "scores": (672, 552),
        "training": (1344, 504),
        "samples": (4 * 320, 4 * (320 + 18)),
    }
    page = (out / "report.html").read_text()
    marks = [
        "<h1>run on prints</h1>",
        "<td>EER</td>",
        'alt="DET curve"',
        'alt="score histogram"',
        "<h2>Training</h2>",
        "<h2>Samples of the evaluated data</h2>",
        "<h2>Least similar prints of one finger</h2>",
        "<h2>Most similar prints of different fingers</h2>",
        "<h2>What was evaluated</h2>",
        "<h2>Definitions</h2>",
    ]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    sources = re.findall(r'<img [^>]*src="([^"]*)"', page)
    assert len(sources) == 4 + 2 * 4 * 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", page)


def test_model_without_its_run_has_no_training_section(run, prints, tmp_path):
    out = tmp_path / "evaluation"
    evaluate_command(run / "model", prints, "fvc", out, 32)
    assert (out / "training.png").exists()
    shutil.copytree(run / "model", tmp_path / "copied")
    evaluate_command(tmp_path / "copied", prints, "fvc", out, 32)
    assert not (out / "training.png").exists()
    assert "<h2>Training</h2>" not in (out / "report.html").read_text()


def test_notice_is_for_synthetic_prints_only(run, prints, tmp_path):
    made = with_source(prints, tmp_path / "made", ["synthetic-1"] * 24)
    mixed = with_source(prints, tmp_path / "mixed", ["synthetic-1"] * 23 + ["101_1.tif"])
    taken = with_source(prints, tmp_path / "taken", ["scans/synthetic/101_1.tif"] * 24)
    assert [is_synthetic(open_dataset(folder)) for folder in (made, mixed, taken)] == [True, False, False]
    for dataset, expected in ((made, 1), (taken, 0)):
        evaluate_command(run / "model", dataset, "all-pairs", tmp_path / "evaluation", 32)
        assert (tmp_path / "evaluation" / "report.html").read_text().count(SYNTHETIC) == expected


def test_contact_sheet_is_as_wide_as_its_prints(prints):
    shards = open_dataset(prints)
    assert contact_sheet(shards, fingers=3).size == (4 * 320, 3 * 338)
    assert contact_sheet(shards, fingers=3, columns=2).size == (2 * 320, 3 * 338)
