"""`verify` finds one changed bit in every folder that has checksums."""

import dataclasses
import json

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.bulk import extract_all
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.verifying import verify
from fingerprint_accel.recipe import run_training


@pytest.fixture
def run(tiny, tmp_path):
    """A run of two steps, with a checkpoint and an exported model."""
    run_training(dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, steps=2, ema_decay=0.5)))
    return tmp_path / "run"


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def assert_found(folder, file, files):
    assert verify(folder, progress=False)[0] == files
    damage(file)
    with pytest.raises(UserError, match=f"{file}: differs from its sha256; restore it from a copy, or make {folder}"):
        verify(folder, progress=False)
    file.unlink()
    with pytest.raises(UserError, match=f"{file}: missing; restore it from a copy"):
        verify(folder, progress=False)


def test_a_dataset_and_its_embeddings(prints, tmp_path):
    extract_all(prints, tmp_path / "out", "small", progress=False)
    assert_found(tmp_path / "out", next((tmp_path / "out").glob("*.safetensors")), 3)
    assert verify(prints, progress=False)[0] == len(list(prints.iterdir())) - 1, "all but the description"


def test_a_gallery(tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", 4, "model")
    for name in ("a", "b"):
        gallery.append(np.eye(4, dtype=np.float32)[:1], [name])
    (first, _) = sorted((tmp_path / "gallery").glob("part-*"))
    damage(first)
    with pytest.raises(UserError, match=f"{first}: differs from its sha256"):
        verify(tmp_path / "gallery", progress=False)


def test_a_run_its_checkpoint_and_its_model(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000002"
    assert verify(run, progress=False)[0] == 5, "three files of the checkpoint, the model and its card"
    assert_found(run / "model", run / "model" / "model.safetensors", 2)
    assert_found(checkpoint, checkpoint / "training_state.safetensors", 3)
    with pytest.raises(UserError, match=r"model\.safetensors|training_state"):
        verify(run, progress=False)


def test_several_changes_and_nothing_to_compare(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000002"
    for name in ("model", "ema"):
        damage(checkpoint / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"differs from its sha256 \(and 1 more\)"):
        verify(run, progress=False)
    state = json.loads((checkpoint / "state.json").read_text())
    del state["sha256"], state["checksum"]  # as earlier versions wrote it
    (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="step-00000002: holds no checksums; give a dataset"):
        verify(checkpoint, progress=False)
    (checkpoint / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json: damaged"):
        verify(checkpoint, progress=False)
