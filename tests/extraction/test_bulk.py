"""`extract`: every print once, in order, resumable."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import bulk
from fingerprint_accel.extraction.bulk import Options, extract_all
from fingerprint_accel.extraction.embeddings_folder import open_embeddings
from fingerprint_accel.extraction.extractor import FingerprintExtractor

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
TWO_SHARDS = Options(batch_size=1)  # of 64 and 32 prints
OLD = "embeddings.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Where a tiny model lies."""
    torch.manual_seed(0)
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=32)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320).save_pretrained(folder)
    return str(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def extract(data, out, model, options=TWO_SHARDS, **more):
    return extract_all(data, out, model, options=options, progress=False, **more)


def test_rows_are_the_dataset_s(model, prints, tmp_path):
    summary = extract(prints, tmp_path / "out", model)
    shards, extractor = open_dataset(prints), FingerprintExtractor.from_pretrained(model)
    found = open_embeddings(tmp_path / "out")
    np.testing.assert_allclose(found.vectors(), extractor.extract(shards, progress=False), atol=1e-5)
    np.testing.assert_allclose(found.quality, extractor.quality(shards), atol=1e-5)
    np.testing.assert_array_equal(found.finger, shards.fingers)
    np.testing.assert_array_equal(found.impression, shards.impressions)
    assert (found.templates.dtype, found.finger.dtype) == (np.float32, np.int32)
    assert (found.impression.dtype, found.quality.dtype) == (np.int64, np.float32)
    table = pq.read_table(tmp_path / "out" / "prints.parquet")
    assert table["finger_key"].to_pylist() == shards.table["finger_key"].to_pylist()
    assert table["source"].to_pylist() == shards.table["source"].to_pylist()
    assert found.config["model"]["identity"] == extractor.identity
    assert not found.failed.any()
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing else is left"
    assert "failure to extract  0 (0.00%)" in summary.table()


def test_an_interrupted_run_goes_on(model, prints, tmp_path, monkeypatch):
    extract(prints, tmp_path / "whole", model)
    embed = bulk.Work.embed

    def interrupted(work, rows):
        if rows.start:
            raise KeyboardInterrupt
        return embed(work, rows)

    with monkeypatch.context() as patch:
        patch.setattr(bulk.Work, "embed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(prints, tmp_path / "out", model)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"unfinished shards of another command \(template float32 there, int8 here\)"):
        extract(prints, tmp_path / "out", model, Options(template="int8", batch_size=1))
    assert extract(prints, tmp_path / "out", model).made == 32
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    with pytest.raises(UserError, match="out: exists already; choose another folder, or add --overwrite"):
        extract(prints, tmp_path / "out", model)


def test_a_folder_of_an_earlier_version_is_read(model, prints, tmp_path):
    """It had all rows in one file."""
    extract(prints, tmp_path / "out", model)
    found = open_embeddings(tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) == 2
    rows = [load_file(shard) for shard in shards]
    save_file({name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, shards[0].parent / OLD)
    config = {name: value for name, value in found.config.items() if name != "sha256"}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    for shard in shards:
        shard.unlink()
    np.testing.assert_array_equal(open_embeddings(tmp_path / "out").templates, found.templates)


def test_a_folder_of_images(model, prints, tmp_path):
    """Images without a print keep their row and are listed."""
    shards, scans = open_dataset(prints), tmp_path / "scans"
    (scans / "more").mkdir(parents=True)
    for row, name in enumerate(("a.png", "b.png", "more/c.png")):
        Image.fromarray(shards.image(row)).save(scans / name)
    Image.new("L", (300, 300), 255).save(scans / "aa.png")
    (scans / "more" / "d.png").write_bytes(b"nonsense")
    summary = extract(scans, tmp_path / "out", model, ppi=300)
    found = open_embeddings(tmp_path / "out")
    names = ["a.png", "aa.png", "b.png", "more/c.png", "more/d.png"]
    assert pq.read_table(tmp_path / "out" / "prints.parquet")["source"].to_pylist() == names
    extractor = FingerprintExtractor.from_pretrained(model)
    wanted = extractor.extract([scans / names[row] for row in (0, 2, 3)], ppi=300, progress=False)
    np.testing.assert_allclose(found.vectors()[[0, 2, 3]], wanted, atol=1e-5)
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert failed == [
        {"row": 1, "source": "aa.png", "reason": "blank: the image has almost no contrast"},
        {"row": 4, "source": "more/d.png", "reason": "not an image"},
    ]
    assert not found.templates[[1, 4]].any()
    assert not found.quality[[1, 4]].any()
    assert found.failed.tolist() == [False, True, False, False, True]
    assert set(found.finger) == set(found.impression) == {-1}
    assert "failure to extract  2 (40.00%)" in summary.table()
    with pytest.raises(UserError, match="--ppi 7: must lie between 50 and 5000"):
        extract(scans, tmp_path / "other", model, ppi=7)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        extract(tmp_path / "nowhere", tmp_path / "other", model)


def test_small_templates_and_a_floor(model, prints, tmp_path):
    quality = FingerprintExtractor.from_pretrained(model).quality(open_dataset(prints))
    floor = round(float(np.median(quality)), 3)
    options = Options("binary", length=16, minimum_quality=floor, batch_size=2)
    summary = extract(prints, tmp_path / "out", model, options)
    found = open_embeddings(tmp_path / "out")
    assert (found.templates.dtype, found.templates.shape) == (np.uint8, (96, 2))
    np.testing.assert_array_equal(found.failed, found.quality < floor)
    assert 40 < found.failed.sum() < 56
    assert not found.templates[found.failed].any()
    norms = np.linalg.norm(found.vectors(), axis=1)
    np.testing.assert_allclose(norms, ~found.failed, atol=1e-6)
    assert summary.failed == {f"quality below {floor}": found.failed.sum()}
    for wrong, message in (
        (Options(length=33), "--length 33: must lie between 1 and 32"),
        (Options("binary", length=20), "a multiple of 8"),
    ):
        with pytest.raises(UserError, match=message):
            extract(prints, tmp_path / "other", model, wrong)
    with pytest.raises(UserError, match="--minimum-quality 2: must lie between 0 and 1"):
        Options(minimum_quality=2)


def test_damaged_embeddings_are_named(model, prints, tmp_path):
    with pytest.raises(UserError, match="nowhere: no embeddings; `fingerprint-accel extract`"):
        open_embeddings(tmp_path / "nowhere")
    extract(prints, tmp_path / "out", model)
    file = next((tmp_path / "out").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(
        UserError, match=rf"{file}: differs from its sha256; restore it from a copy, or run `extract` again"
    ):
        open_embeddings(tmp_path / "out")
