import dataclasses
import json
import os

import numpy as np
import pytest
import starting

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
    training = dataclasses.replace(default.training, log_every=1, tracker="none")
    preprocess = dataclasses.replace(default.preprocess, crop=256, size=64)
    model = dataclasses.replace(default.model, trunk="compact", width=8)
    config = dataclasses.replace(default, training=training, preprocess=preprocess, model=model)
    monkeypatch.setattr(flx, "_DEFAULT", config)


def test_fit_and_extract(prints, small, tmp_path):
    extractor = flx.get_DeepPrint_Tex(24, 16)
    with pytest.raises(UserError, match="no model yet"):
        extractor.extract(prints)
    extractor.fit(prints, validation_fingerprints=prints, num_epochs=1, out_dir=tmp_path, patience=1, batch_size=32)
    texture, minutia = extractor.extract(prints)
    assert minutia is None
    assert texture.shape == (96, 16)
    np.testing.assert_allclose(np.linalg.norm(texture, axis=1), 1, atol=1e-5)
    loaded = flx.get_DeepPrint_Tex(24, 16).load_best_model(tmp_path)
    np.testing.assert_array_equal(loaded.extract(prints)[0], texture)


def test_two_fits_of_one_process_may_differ_in_precision(prints, small, tmp_path, monkeypatch):
    monkeypatch.setattr(flx, "fast_precision", lambda: "bf16")
    for use_amp in (False, True):
        out = tmp_path / str(use_amp)
        flx.get_DeepPrint_Tex(24, 16).fit(prints, num_epochs=1, out_dir=out, use_amp=use_amp, batch_size=32)
        assert load_yaml(out / "config.yaml").training.precision == ("bf16" if use_amp else "no")


@pytest.fixture
def fitted(prints, monkeypatch, tmp_path):
    """Returns the configuration that `fit` would train with."""
    monkeypatch.setattr(flx.DeepPrintExtractor, "load_best_model", lambda self, out: self)
    found = []
    monkeypatch.setattr(flx, "run_training", found.append)

    def fit(extractor, **named):
        extractor.fit(prints, out_dir=tmp_path / "run", **named)
        return found.pop()

    return fit


def test_defaults_of_fit(fitted, monkeypatch):
    """Batches of 64, the rate of the configuration, and mixed precision where the machine is fast at it."""
    monkeypatch.setattr(flx, "fast_precision", lambda: "fp16")
    training = fitted(flx.get_DeepPrint_Tex(24, 16)).training
    assert (training.batch_size, training.learning_rate, training.precision) == (64, 1e-3, "fp16")
    training = fitted(flx.get_DeepPrint_Tex(24, 16), batch_size=8, learning_rate=0.025, use_amp=False).training
    assert (training.batch_size, training.learning_rate, training.precision) == (8, 0.025, "no")
    with pytest.raises(UserError, match=r"training\.batch_size must be at least 1"):
        fitted(flx.get_DeepPrint_Tex(24, 16), batch_size=0)


@pytest.mark.parametrize(
    ("processes", "accumulation", "batch_size", "steps"),
    [(1, 1, 4, 24), (2, 1, 4, 12), (8, 1, 4, 3), (8, 3, 4, 1), (8, 1, 64, 1), (1, 1, 64, 2)],
)
def test_an_epoch_is_validated_once_on_any_number_of_processes(
    fitted, monkeypatch, processes, accumulation, batch_size, steps
):
    """So that `patience` counts epochs; 96 prints."""
    if processes > 1:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(processes))
    extractor = flx.get_DeepPrint_Tex(24, 16)
    training = dataclasses.replace(extractor.config.training, gradient_accumulation_steps=accumulation)
    extractor.config = dataclasses.replace(extractor.config, training=training)
    config = fitted(extractor, batch_size=batch_size, patience=10, num_epochs=5)
    assert (config.training.validate_every, config.training.save_every) == (steps, steps)
    assert (config.training.patience, config.training.epochs) == (10, 5)


TWO_PROCESSES = """
import dataclasses, sys
from fingerprint_accel.compat import flx

training = dataclasses.replace(flx._DEFAULT.training, log_every=1, tracker="none", warmup_steps=2)
preprocess = dataclasses.replace(flx._DEFAULT.preprocess, crop=256, size=32)
model = dataclasses.replace(flx._DEFAULT.model, trunk="compact", width=8)
flx._DEFAULT = dataclasses.replace(flx._DEFAULT, training=training, preprocess=preprocess, model=model)
prints, out, epochs = sys.argv[1:]
fit = flx.get_DeepPrint_Tex(24, 16).fit
fit(prints, prints, float(epochs), out, use_amp=False, batch_size=12)
"""


def test_two_processes_validate_every_epoch_and_say_that_they_resume(prints, tmp_path):
    out = tmp_path / "run"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def fit(epochs):
        result = starting.run(["-c", TWO_PROCESSES, prints, out, epochs], 2, environment)
        assert result.returncode == 0, result.stderr
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        resumes = [line for line in result.stdout.splitlines() if "resumes" in line]
        return [line["step"] for line in lines if line["kind"] == "validation"], resumes

    assert fit(2) == ([4, 8], [])
    assert fit(3) == ([4, 8, 12], [f"{out}: holds a run already; fit resumes it from step 8 of 12"])


def test_number_of_fingers_must_fit(prints, tmp_path):
    with pytest.raises(UserError, match="holds 24 fingers, not num_training_subjects=25"):
        flx.get_DeepPrint_Tex(25, 16).fit(prints, out_dir=tmp_path)
