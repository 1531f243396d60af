"""Two processes extract the bytes that one does."""

import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.extraction.bulk import extract_all
from fingerprint_accel.extraction.bulk_work import Options
from fingerprint_accel.extraction.extractor import FingerprintExtractor

from .conftest import launched


@pytest.mark.usefixtures("fresh_accelerator")
def test_two_processes_extract_what_one_does(prints, environment, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=32)
    model = tmp_path / "model"
    FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320).save_pretrained(model)
    alone = extract_all(prints, tmp_path / "alone", str(model), options=Options(batch_size=1), progress=False)
    assert alone.made == 96
    words = ["extract", prints, "--out", tmp_path / "shared", "--model", model, "--batch-size", 1]  # three parts of 32
    result = launched("two processes", ["-m", "fingerprint_accel.cli", *words], environment)
    assert result.stdout.count("failure to extract") == 1, "one summary"
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "shared" / path.name).read_bytes(), path.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "model", "shared"]
