"""Small things to evaluate."""

import numpy as np
import pytest
import torch
from shard_writer import ShardWriter

from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset

SIDE = 64


@pytest.fixture(scope="session")
def write_prints():
    """Writes a dataset of noise: `sources` by (finger key, impression), in this order; equal seeds, equal pictures."""

    def write(folder, sources, seed=0, side=SIDE):
        with ShardWriter(folder, 300, side) as writer:
            for (key, impression), source in sources.items():
                number = [seed, *key.encode(), impression]
                image = np.random.default_rng(number).integers(0, 256, (side, side)).astype(np.uint8)
                writer.add(Record(image, key, impression, source, np.empty((0, 4), np.float32)))
        return open_dataset(folder)

    return write


@pytest.fixture(scope="session")
def ten_fingers(tmp_path_factory, write_prints):
    """Fingers 1 to 10 with impressions 0 to 3, as an import of flx's layout leaves them, in two folders."""
    names = {
        (str(finger), impression): f"{'left' if finger % 2 else 'right'}/{finger}_{impression + 1}.png"
        for impression in range(4)
        for finger in (3, 1, 2, 10, 9, 8, 7, 6, 5, 4)
    }
    return write_prints(tmp_path_factory.mktemp("ten") / "fingers", names)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, spread_out):
    """An exported model with random weights for these canvases."""
    from fingerprint_accel.config import ModelConfig, PreprocessConfig
    from fingerprint_accel.extraction.extractor import FingerprintExtractor

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    network = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    extractor = FingerprintExtractor(network, PreprocessConfig(crop=48, size=32), ppi=300, canvas=SIDE)
    spread_out(extractor, np.random.default_rng(0).integers(0, 256, (32, SIDE, SIDE), np.uint8))
    extractor.save_pretrained(folder)
    return folder
