import json

import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.pack_options import PackOptions
from fingerprint_accel.data.packing import pack
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import Extractor


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    model = ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=32)
    return Extractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)


def test_embeddings_do_not_depend_on_the_batch(extractor, prints):
    shards = open_dataset(prints)
    whole = extractor.extract(shards, batch_size=96, progress=False)
    parts = extractor.extract(shards, batch_size=7, progress=False)
    assert set(whole) == {"embedding", "texture", "minutia"}
    for name, values in whole.items():
        np.testing.assert_allclose(values, parts[name], atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)
    row = extractor(torch.from_numpy(shards.image(5).copy())[None])
    np.testing.assert_allclose(row[0].numpy(), whole["embedding"][5], atol=1e-5)


def test_saved_and_opened_is_the_same(extractor, prints, tmp_path):
    extractor.save_pretrained(tmp_path / "model", notes={"eer": 0.1})
    extractor.save_pretrained(tmp_path / "model", notes={"eer": 0.2})
    again = Extractor.from_pretrained(tmp_path / "model")
    shards = open_dataset(prints)
    ours, theirs = (model.extract(shards, progress=False)["embedding"] for model in (extractor, again))
    np.testing.assert_array_equal(ours, theirs)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["notes"] == {"eer": 0.2}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_unusable_models_are_named(extractor, tmp_path):
    with pytest.raises(UserError, match="no model here"):
        Extractor.from_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors: missing or damaged"):
        Extractor.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        Extractor.from_pretrained(tmp_path / "model")


def test_a_dataset_of_another_scale_is_refused(prints):
    model = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=8)
    with pytest.raises(UserError, match="ppi 300, the model wants 250; import it with --dataset-ppi 250"):
        Extractor(model, PreprocessConfig(crop=256, size=64), ppi=250, canvas=320).extract(open_dataset(prints))


def test_enhanced_prints_and_others_are_not_mixed_up(extractor, prints, tmp_path):
    """A model remembers what it was trained on, exported or not, and refuses the other kind with the remedy."""
    pack([prints], tmp_path / "enhanced", PackOptions(enhance=halved), workers=1, progress=False)
    enhanced = open_dataset(tmp_path / "enhanced")
    with pytest.raises(UserError, match="enhanced, the model wants prints as they are; import them again without"):
        extractor.extract(enhanced, progress=False)
    other = Extractor(extractor.model.config, extractor.preprocess_config, ppi=300, canvas=320, enhanced=True)
    other.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["enhanced"] is True
    assert "ridges enhanced" in (tmp_path / "model" / "README.md").read_text()
    again = Extractor.from_pretrained(tmp_path / "model")
    assert len(again.extract(enhanced, progress=False)["embedding"]) == 96
    with pytest.raises(UserError, match=f"the model wants enhanced prints; `pack {prints} OUT --enhance` makes them"):
        again.extract(open_dataset(prints), progress=False)
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    del values["enhanced"]  # as a model exported before there were enhanced datasets
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    assert Extractor.from_pretrained(tmp_path / "model").enhanced is False


def halved(image, ppi):
    """Stands for the filters, which take longer."""
    return image // 2
