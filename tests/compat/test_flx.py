import dataclasses

import numpy as np
import pytest

from fingerprint_accel.compat import flx
from fingerprint_accel.config import load_yaml
from fingerprint_accel.errors import UserError

GETTERS = {
    "Tex": flx.get_DeepPrint_Tex,
    "Minu": flx.get_DeepPrint_Minu,
    "TexMinu": flx.get_DeepPrint_TexMinu,
    "LocTex": flx.get_DeepPrint_LocTex,
    "LocMinu": flx.get_DeepPrint_LocMinu,
    "LocTexMinu": flx.get_DeepPrint_LocTexMinu,
}


@pytest.mark.parametrize("variant", GETTERS)
def test_getters(variant):
    extractor = GETTERS[variant](8000, 256)
    assert extractor.config.model.variant == variant
    assert extractor.config.model.trunk == "inception_v4"
    assert extractor.config.model.embedding_dim == 256 * (2 if "TexMinu" in variant else 1)


@pytest.fixture
def small(monkeypatch, fresh_accelerator):
    """flx's getters with a network and pictures that train in seconds."""
    default = flx._DEFAULT
    training = dataclasses.replace(default.training, log_every=1, tracker="none", batch_size=32)
    preprocess = dataclasses.replace(default.preprocess, crop=256, size=64)
    model = dataclasses.replace(default.model, trunk="compact", width=8)
    config = dataclasses.replace(default, training=training, preprocess=preprocess, model=model)
    monkeypatch.setattr(flx, "_DEFAULT", config)


def test_fit_and_extract(prints, small, tmp_path):
    extractor = flx.get_DeepPrint_Tex(24, 16)
    with pytest.raises(UserError, match="no model yet"):
        extractor.extract(prints)
    extractor.fit(prints, validation_fingerprints=prints, num_epochs=1, out_dir=tmp_path, patience=1)
    texture, minutia = extractor.extract(prints)
    assert minutia is None
    assert texture.shape == (96, 16)
    np.testing.assert_allclose(np.linalg.norm(texture, axis=1), 1, atol=1e-5)
    loaded = flx.get_DeepPrint_Tex(24, 16).load_best_model(tmp_path)
    np.testing.assert_array_equal(loaded.extract(prints)[0], texture)


def test_two_fits_of_one_process_may_differ_in_precision(prints, small, tmp_path):
    for use_amp in (False, True):
        out = tmp_path / str(use_amp)
        flx.get_DeepPrint_Tex(24, 16).fit(prints, num_epochs=1, out_dir=out, use_amp=use_amp)
        assert load_yaml(out / "config.yaml").training.precision == ("bf16" if use_amp else "no")


def test_number_of_fingers_must_fit(prints, tmp_path):
    with pytest.raises(UserError, match="holds 24 fingers, not num_training_subjects=25"):
        flx.get_DeepPrint_Tex(25, 16).fit(prints, out_dir=tmp_path)
