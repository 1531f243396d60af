import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.export import export_command, save_onnx, save_torch
from fingerprint_accel.extraction.extractor import FingerprintExtractor


@pytest.fixture(scope="module", params=["Tex", "LocTexMinu"])
def extractor(request):
    torch.manual_seed(0)
    model = ModelConfig(variant=request.param, trunk="compact", width=8, embedding_dim=32)
    return FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)


def test_onnx_gives_the_same_embeddings_for_any_number_of_prints(extractor, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    check = save_onnx(extractor, tmp_path / "model.onnx")
    assert check.difference < 1e-4
    assert check.milliseconds > 0
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    images = np.random.default_rng(1).integers(0, 256, (5, 320, 320), np.uint8)
    (found,) = session.run(["embeddings"], {"images": images})
    np.testing.assert_allclose(found, extractor(torch.from_numpy(images)), atol=1e-4)


def test_torch_opens_its_export_without_the_package(extractor, tmp_path):
    assert save_torch(extractor, tmp_path / "model.pt2").difference < 1e-4
    module = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randint(0, 256, (4, 320, 320), dtype=torch.uint8)
    torch.testing.assert_close(module(images), extractor(images), atol=1e-4, rtol=0)


def test_the_command_says_how_they_differ(extractor, tmp_path, capsys):
    extractor.save_pretrained(tmp_path / "model")
    export_command(str(tmp_path / "model"), None, tmp_path / "model.pt2")
    assert "differs from PyTorch by at most" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing to write"):
        export_command(str(tmp_path / "model"), None, None)
    preprocess = PreprocessConfig(crop=256, size=64, enhance=True)
    enhancing = FingerprintExtractor(extractor.model.config, preprocess, ppi=300, canvas=320)
    with pytest.raises(UserError, match="ridge enhancement cannot be exported"):
        save_torch(enhancing, tmp_path / "enhancing.pt2")
