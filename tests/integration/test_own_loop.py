"""The example of a training loop of one's own, with one process and with two."""

import re

import numpy as np
import starting
from safetensors.torch import load_file

from fingerprint_accel import FingerprintExtractor, open_dataset

from .conftest import ROOT

EXAMPLE = ROOT / "examples" / "own_loop.py"
STEPS = 2


def trained(words, processes, environment):
    """Runs the example to its good end; the losses that it printed."""
    result = starting.run([EXAMPLE, *words], processes, environment)
    assert result.returncode == 0, result.stderr[-3000:]
    losses = re.findall(r"^step \d+: loss ([\d.]+)$", result.stdout, re.MULTILINE)
    assert len(losses) == STEPS, "one line a step, of one process"
    return np.array(losses, float)


def test_one_process_and_two_train_the_same_model(prints, environment, tmp_path):
    one = [prints, tmp_path / "one", "--batch-size", "8", "--steps", STEPS]
    two = [prints, tmp_path / "two", "--batch-size", "4", "--steps", STEPS]
    losses = [trained(words, processes, environment) for processes, words in enumerate((one, two), 1)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-4)
    assert np.ptp(losses[0]) > 0.01, "it does learn"
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert set(weights[0]) == set(weights[1])
    for name, weight in weights[0].items():
        np.testing.assert_allclose(weight, weights[1][name], rtol=0, atol=1e-4, err_msg=name)
    extractor = FingerprintExtractor.from_pretrained(tmp_path / "two")
    assert (extractor.ppi, extractor.canvas, extractor.model.config.variant) == (300, 320, "TexMinu")
    data = open_dataset(prints)
    canvases = np.stack([data.image(row) for row in range(3)])
    embeddings = extractor.extract(canvases, placed=True)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    other = FingerprintExtractor.from_pretrained(tmp_path / "one").extract(canvases, placed=True)
    np.testing.assert_allclose(embeddings, other, atol=1e-3)


def test_an_unknown_dataset_is_one_error(environment, tmp_path):
    result = starting.run([EXAMPLE, "nowhere", tmp_path / "model"], 1, environment)
    assert result.returncode == 1
    assert "nowhere: not a dataset folder" in result.stderr.splitlines()[-1]
