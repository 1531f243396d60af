import dataclasses
import json

import numpy as np
import pytest

from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.run import evaluate_command
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.recipe import run_training


def halved(image: np.ndarray, ppi: int) -> np.ndarray:
    """Stands for the filters, which take longer."""
    return image // 2


@pytest.fixture
def enhanced(prints, tmp_path):
    merge([prints], tmp_path / "enhanced", MergeOptions(enhance=halved), workers=1, progress=False)
    return tmp_path / "enhanced"


def changed(config, data, enhance=False, validation=""):
    fraction = 0.0 if validation else 0.3
    return dataclasses.replace(
        config,
        data=str(data),
        preprocess=dataclasses.replace(config.preprocess, enhance=enhance),
        reading=dataclasses.replace(config.reading, validation_data=str(validation), validation_fraction=fraction),
    )


def test_a_run_on_enhanced_prints(tiny, enhanced, prints, tmp_path):
    """Checkpoint and exported model remember; evaluation and resuming on other prints are refused."""
    config = changed(tiny, enhanced)
    run_training(config)
    run = tmp_path / "run"
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert json.loads((checkpoint / "state.json").read_text())["enhanced"] is True
    assert json.loads((run / "model" / "config.json").read_text())["enhanced"] is True
    assert FingerprintExtractor.from_pretrained(checkpoint).enhanced
    evaluate_command(run / "model", enhanced, "all-pairs", tmp_path / "report", 64)
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["mated"] == 24 * 6
    for model in (run, run / "model"):
        with pytest.raises(UserError, match=r"the model needs enhanced prints; run `merge .* --enhance`"):
            evaluate_command(model, prints, "all-pairs", tmp_path / "other", 64)
    more = dataclasses.replace(config.training, steps=8)
    with pytest.raises(UserError, match="trained on enhanced True, this run has False"):
        run_training(dataclasses.replace(config, data=str(prints), resume="auto", training=more))


@pytest.mark.parametrize(
    ("data", "enhance", "validation", "message"),
    [
        ("enhanced", True, "", "enhanced: prints are enhanced already; leave out --preprocess.enhance"),
        ("enhanced", False, "prints", "enhanced: enhanced, but .*prints is not; `merge .*prints --enhance`"),
        ("prints", False, "enhanced", "enhanced: enhanced, but .*prints is not; `merge .*prints --enhance`"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, enhanced, prints, data, enhance, validation, message):
    folders = {"enhanced": enhanced, "prints": prints, "": ""}
    with pytest.raises(UserError, match=message) as caught:
        run_training(changed(tiny, folders[data], enhance, folders[validation]))
    assert len(str(caught.value).splitlines()) == 1


def test_validation_data_that_is_enhanced_too(tiny, enhanced, tmp_path):
    run_training(changed(tiny, enhanced, validation=enhanced))
    assert (tmp_path / "run" / "model" / "config.json").exists()
