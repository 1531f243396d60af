import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from tests.editing import edited


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    model = ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=32)
    return FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)


def test_embeddings_do_not_depend_on_the_batch(extractor, prints):
    shards = open_dataset(prints)
    whole = extractor.extract(shards, batch_size=96, progress=False)
    parts = extractor.extract(shards, batch_size=7, progress=False)
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    row = extractor(torch.from_numpy(shards.image(5).copy())[None])
    np.testing.assert_allclose(row[0].numpy(), whole[5], atol=1e-5)


def test_saved_and_opened_is_the_same(extractor, prints, tmp_path):
    extractor.save_pretrained(tmp_path / "model", notes={"eer": 0.1})
    extractor.save_pretrained(tmp_path / "model", notes={"eer": 0.2})
    again = FingerprintExtractor.from_pretrained(tmp_path / "model")
    shards = open_dataset(prints)
    ours, theirs = (model.extract(shards, progress=False) for model in (extractor, again))
    np.testing.assert_array_equal(ours, theirs)
    assert again.notes == {"eer": 0.2}
    assert "- eer: 0.2" in (tmp_path / "model" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folders_are_laid_out_as_on_model_hubs(extractor, tmp_path):
    """config.json, model.safetensors and a card whose front matter a hub reads."""
    extractor.save_pretrained(tmp_path / "model", notes={"licence": "Apache-2.0, weights and code"})
    extractor.save_pretrained(tmp_path / "other")
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == names
    cards = [(tmp_path / name / "README.md").read_text() for name in ("model", "other")]
    facts, other = (yaml.safe_load(card.split("---\n")[1]) for card in cards)
    assert (facts["license"], other["license"]) == ("apache-2.0", "unknown")
    assert facts["library_name"] == "fingerprint_accel"
    assert "fingerprint" in facts["tags"]
    hub = pytest.importorskip("huggingface_hub")
    assert hub.ModelCard(cards[0]).data.to_dict() == facts


def test_unusable_models_are_named(extractor, tmp_path):
    with pytest.raises(UserError, match="no model here"):
        FingerprintExtractor.from_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors: missing or damaged"):
        FingerprintExtractor.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        FingerprintExtractor.from_pretrained(tmp_path / "model")


def test_a_dataset_of_another_scale_is_refused(prints):
    model = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=8)
    with pytest.raises(UserError, match="ppi 300, but the model needs 250; import or `merge` it with --dataset-ppi"):
        FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=250, canvas=320).extract(
            open_dataset(prints)
        )


def test_enhanced_prints_and_others_are_not_mixed_up(extractor, prints, tmp_path):
    """A model remembers what it was trained on, exported or not, and refuses the other kind with the remedy."""
    merge([prints], tmp_path / "enhanced", MergeOptions(enhance=halved), workers=1, progress=False)
    enhanced = open_dataset(tmp_path / "enhanced")
    with pytest.raises(UserError, match="enhanced, but the model needs prints without enhancement; import them again"):
        extractor.extract(enhanced, progress=False)
    other = FingerprintExtractor(
        extractor.model.config, extractor.preprocess_config, ppi=300, canvas=320, enhanced=True
    )
    other.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["enhanced"] is True
    assert "ridges enhanced" in (tmp_path / "model" / "README.md").read_text()
    again = FingerprintExtractor.from_pretrained(tmp_path / "model")
    assert len(again.extract(enhanced, progress=False)) == 96
    with pytest.raises(UserError, match=f"the model needs enhanced prints; run `merge {prints} --enhance`"):
        again.extract(open_dataset(prints), progress=False)
    edited(tmp_path / "model" / "config.json", enhanced=None)  # as a model exported before there were such datasets
    assert FingerprintExtractor.from_pretrained(tmp_path / "model").enhanced is False


def test_half_precision_halves_the_file_and_hardly_changes_embeddings(extractor, prints, tmp_path):
    shards = open_dataset(prints)
    for name, half in (("whole", False), ("half", True)):
        extractor.save_pretrained(tmp_path / name, half=half)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert 0.5 < sizes[1] / sizes[0] < 0.6
    again = FingerprintExtractor.from_pretrained(tmp_path / "half").extract(shards, progress=False)
    np.testing.assert_allclose(again, extractor.extract(shards, progress=False), atol=2e-3)


def test_images_are_embedded_as_their_import_is(extractor, prints, tmp_path):
    """Files and arrays give what a dataset made of them gives; the resolution has to be known."""
    shards = open_dataset(prints)
    (tmp_path / "images").mkdir()
    for row in range(4):
        finger, impression = int(shards.fingers[row]), int(shards.impressions[row])
        enlarged = Image.fromarray(shards.image(row)).resize((533, 533), Image.Resampling.BICUBIC)
        enlarged.save(tmp_path / "images" / f"{finger}_{impression}.png")
    files = sorted((tmp_path / "images").iterdir())
    import_dataset(tmp_path / "images", tmp_path / "set", "fvc", ppi=500, workers=1, progress=False)
    imported = open_dataset(tmp_path / "set")
    names = imported.table["source"].to_pylist()
    wanted = extractor.extract(imported, progress=False)
    found = extractor.extract(files, ppi=500, progress=False)
    arrays = extractor.extract([np.asarray(Image.open(file)) for file in files], ppi=500, progress=False)
    np.testing.assert_array_equal(found, arrays)
    for row, file in enumerate(files):
        place = next(i for i, name in enumerate(names) if file.stem in name)
        np.testing.assert_allclose(found[row], wanted[place], atol=1e-5)
    with pytest.raises(UserError, match="resolution of the images unknown; give ppi"):
        extractor.extract(files)


def test_an_image_without_a_print_is_named(extractor, tmp_path):
    Image.new("L", (300, 300), 255).save(tmp_path / "blank.png")
    with pytest.raises(UserError, match=r"blank\.png: blank: the image has almost no contrast; give an image"):
        extractor.compare(tmp_path / "blank.png", tmp_path / "blank.png")
    with pytest.raises(UserError, match=r"nowhere\.png: cannot be read"):
        extractor.extract([tmp_path / "nowhere.png"], ppi=500, progress=False)


def halved(image, ppi):
    """Stands for the filters, which take longer."""
    return image // 2
