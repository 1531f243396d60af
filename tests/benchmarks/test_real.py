"""The benchmarks on real sets compare what they say they compare."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def extractor(prints, spread_out):
    """An untrained network that tells prints apart: rates must not depend on how similarities are rounded."""
    torch.manual_seed(0)
    model = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=32)
    extractor = FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
    shards = open_dataset(prints)
    spread_out(extractor, np.stack([shards.image(row) for row in range(12)]))
    return extractor


def test_rates_are_those_of_all_pairs(extractor, shared_data):
    import real
    from sklearn.metrics import roc_curve  # takes seconds, which every test process would spend

    folder = shared_data / "fvc2002_db3_b"
    found = real.measure(extractor, folder, 500, poses=False, turn=0.0)["as it is"]
    files = sorted(folder.glob("*.tif"))
    embeddings = extractor.extract(files, ppi=500, progress=False)
    fingers = np.array([int(file.stem.split("_")[0]) for file in files])
    first, second = np.triu_indices(len(files), 1)
    mated = fingers[first] == fingers[second]
    scores = (embeddings[first] * embeddings[second]).sum(axis=1)
    fmr, tmr, _ = roc_curve(mated, scores, drop_intermediate=False)
    nearest = np.abs(fmr - (1 - tmr)).argmin()
    assert found.eer == pytest.approx((fmr[nearest] + 1 - tmr[nearest]) / 2, abs=0.005)
    assert found.tar_at_far_1_percent == pytest.approx(tmr[fmr <= 0.01].max())
    low, high = found.eer_interval_95
    assert low < found.eer < high
    assert (found.prints, mated.sum()) == (80, 280)


def test_turned_prints_are_turned():
    import real

    from fingerprint_accel.evaluation.pose_sweep import moved

    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    np.testing.assert_array_equal(real.turned(image, 90.0), np.rot90(image))
    still = np.zeros((1, 2))
    np.testing.assert_array_equal(moved(image[None], np.array([90.0]), still)[0], np.rot90(image))
    assert real.turned(np.full((50, 80), 77, np.uint8), 30.0).shape > (50, 80)
    assert (real.turned(np.full((50, 80), 77, np.uint8), 30.0) == 77).all(), "the corners are paper"


def test_halves_share_no_finger(extractor, shared_data, tmp_path):
    import finetune

    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "fvc2002_db3_b").symlink_to((shared_data / "fvc2002_db3_b").resolve())
    prints = finetune.read_sets(extractor, tmp_path / "sets")
    assert finetune.write_training_half(prints, tmp_path / "half", extractor) == 5
    keys = set(open_dataset(tmp_path / "half").table["finger_key"].to_pylist())
    _, fingers, _ = prints["fvc2002_db3_b"]
    tested = {f"fvc2002_db3_b/{finger}" for finger in fingers[~finetune.is_for_training(fingers)]}
    assert len(keys) == len(tested) == 5
    assert not keys & tested
    assert 0 < finetune.test_rates(extractor, prints)["fvc2002_db3_b"] < 1


def test_a_folder_without_sets_is_named(tmp_path):
    import real

    with pytest.raises(UserError, match="none of fvc2002_db1_b"):
        real.main(tmp_path)


def test_means_leave_out_what_sfinge_has_made():
    """The rates in the repository: four real sets above their mean, the synthetic one below."""
    import real

    stored = json.loads((BENCHMARKS / "results" / "epyc-2-cores" / "real.json").read_text())["results"]
    found = {name: {way: real.Measured(**rates) for way, rates in row.items()} for name, row in stored.items()}
    lines = real.table(found).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        *("FVC2002 DB1_B", "FVC2002 DB2_B", "FVC2002 DB3_B", "FVC2000 DB1_B"),
        *("mean of real sets", "FVC2002 DB4_B (SFinGe)"),
    ]
    names = ("fvc2002_db1_b", "fvc2002_db2_b", "fvc2002_db3_b", "fvc2000_db1_b")
    eers = [sum(stored[name][way]["eer"] for name in names) / 4 for way in ("as it is", "poses")]
    assert lines[5].split()[4:6] == [f"{100 * eer:.2f}" for eer in eers] == ["5.45", "4.04"]
    assert lines[5].split()[-2:] == ["4.78", "5.04"]
    assert math.isnan(real.mean_of_real({"fvc2002_db4_b": 0.01}))


@pytest.mark.parametrize(("model", "file"), [("small", "real.json"), ("base", "real-base.json")])
def test_the_readme_says_what_was_measured(model, file):
    import real

    stored = json.loads((BENCHMARKS / "results" / "epyc-2-cores" / file).read_text())["results"]
    eers = {name: row["poses"]["eer"] for name, row in stored.items()}
    made = eers.pop("fvc2002_db4_b")
    expected = [f"{100 * eer:.1f} %" for eer in (*eers.values(), real.mean_of_real(eers), made)]
    text = (BENCHMARKS.parent / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| `{model}` |"))
    assert [cell.split(" (")[0].strip() for cell in row.split("|")[2:-1]] == expected
    as_is = real.mean_of_real({name: stored[name]["as it is"]["eer"] for name in stored})
    summary = next(line for line in text.splitlines() if line.startswith("| released models on real fingers |"))
    means = (f"`{model}` {expected[-2]}", f"{100 * as_is:.1f} %")
    assert all(mean in summary for mean in means)
