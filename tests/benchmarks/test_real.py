"""The benchmarks on real sets compare what they say they compare."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.calibration import Calibration, Way
from fingerprint_accel.extraction.extractor import FingerprintExtractor

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


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
    files = sorted(folder.glob("*.tif"))
    embeddings = extractor.extract(files, ppi=500, progress=False)
    fingers = np.array([int(file.stem.split("_")[0]) for file in files])
    first, second = np.triu_indices(len(files), 1)
    mated = fingers[first] == fingers[second]
    scores = (embeddings[first] * embeddings[second]).sum(axis=1)
    line = float(np.quantile(scores[~mated], 0.97))
    extractor.notes = {"calibration": Calibration("made up", True, "all-pairs", [stated(1, line)]).values()}
    found = real.measure(extractor, folder, 500, compare=False, turn=0.0)["as it is"]
    fmr, tmr, _ = roc_curve(mated, scores, drop_intermediate=False)
    nearest = np.abs(fmr - (1 - tmr)).argmin()
    assert found.eer == pytest.approx((fmr[nearest] + 1 - tmr[nearest]) / 2, abs=0.005)
    assert found.fnmr_at_fmr_1_percent == pytest.approx(1 - tmr[fmr <= 0.01].max())
    assert found.fnmr_at_fmr_01_percent == pytest.approx(1 - tmr[fmr <= 0.001].max())
    assert found.nonmated_mean == pytest.approx(scores[~mated].mean(), abs=1e-5)
    assert found.fmr_at_threshold["0.01"] == pytest.approx(0.03, abs=0.002)
    low, high = found.eer_interval_95
    assert low < found.eer < high
    assert (found.prints, found.mated, found.nonmated) == (80, 280, 2880)


def stated(poses, threshold):
    return Way(poses, 80, 10, 280, 2880, 0.05, {"0.01": threshold}, {"0.01": 0.1})


def test_turned_prints_are_turned():
    import real_sets
    from pose_robustness import moved

    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    np.testing.assert_array_equal(real_sets.turned(image, 90.0), np.rot90(image))
    still = np.zeros((1, 2))
    np.testing.assert_array_equal(moved(image[None], np.array([90.0]), still)[0], np.rot90(image))
    assert real_sets.turned(np.full((50, 80), 77, np.uint8), 30.0).shape > (50, 80)
    assert (real_sets.turned(np.full((50, 80), 77, np.uint8), 30.0) == 77).all(), "the corners are paper"


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


def made_up(eer, fmr_at_threshold=None, nonmated=1000):
    import real_rates

    return real_rates.Measured(
        eer, (0.01, 0.02), 2 * eer, 3 * eer, 0.8, 0.25, 80, 280, nonmated, 1.0, fmr_at_threshold or {}
    )


def test_tables_leave_out_of_means_what_sfinge_has_made():
    import real_rates
    from real_sets import mean_of_real

    claims = {"0.01": 0.02, "0.001": 0.004}
    rates = {
        "small": {
            "fvc2002_db1_b": {"as it is": made_up(0.03, claims), "compare": made_up(0.01)},
            "fvc2002_db4_b": {"as it is": made_up(0.5, {"0.01": 0.9, "0.001": 0.9}), "compare": made_up(0.5)},
            "upek": {"as it is": made_up(0.01, {"0.01": 0.08, "0.001": 0.0}, nonmated=3000), "compare": made_up(0.02)},
        },
        "NBIS": {name: {"as it is": made_up(0.04)} for name in ("fvc2002_db1_b", "fvc2002_db4_b", "upek")},
    }
    eers, fnmrs, _, claimed = (part.splitlines() for part in real_rates.report(rates).split("\n\n"))
    assert [re.split("  +", line) for line in eers] == [
        ["EER, % (95 %)", "small, as it is", "small, compare", "NBIS, as it is", "SourceAFIS, quoted"],
        ["FVC2002 DB1_B", "3.00 (1.0-2.0)", "1.00 (1.0-2.0)", "4.00 (1.0-2.0)", "3.19"],
        ["UPEK", "1.00 (1.0-2.0)", "2.00 (1.0-2.0)", "4.00 (1.0-2.0)", "0.00"],
        ["mean of real sets", "2.00", "1.50", "4.00", "1.59"],  # to even: 3.19 / 2
        ["FVC2002 DB4_B (SFinGe)", "50.00 (1.0-2.0)", "50.00 (1.0-2.0)", "4.00 (1.0-2.0)", "6.07"],
    ]
    assert re.split("  +", fnmrs[3]) == ["mean of real sets", "6.00", "4.50", "12.00"]
    assert re.split("  +", claimed[3]) == ["real sets together", "0.250", "6.50", "0.10"], "weighted by comparisons"
    assert "NBIS" not in claimed[0], "it has no calibration"
    assert math.isnan(mean_of_real({"fvc2002_db4_b": 0.01}))


def test_a_rate_that_cannot_be_resolved_is_not_averaged():
    import dataclasses

    import real_rates

    few = dataclasses.replace(made_up(0.03), fnmr_at_fmr_01_percent=None)
    rates = {"small": {"fvc2002_db1_b": {"as it is": few}, "upek": {"as it is": made_up(0.01)}}}
    rows = real_rates.rate_table("FNMR", rates, lambda m: m.fnmr_at_fmr_01_percent)
    assert [row[1] for row in rows[1:]] == ["-", "3.00", "-"]
    assert "NBIS, quoted" in real_rates.report(rates)


def test_nist_s_matcher_compares_every_pair(shared_data):
    pytest.importorskip("nbis")
    import real_nbis
    import real_sets

    from fingerprint_accel.data.nbis import Nbis

    prints = real_sets.read_set(shared_data / "fvc2002_db2_b")
    prints = real_sets.Prints(prints.paths[6:10], prints.fingers[6:10], prints.impressions[6:10])
    images = prints.images()
    scores = real_nbis.nbis_scores(images, 569, prints)
    assert scores.pairs.mated.tolist() == [[0, 1], [2, 3]]
    assert scores.pairs.nonmated.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert scores.mated.min() > scores.nonmated.max()
    judge = Nbis()
    made = [real_nbis.at_500_ppi(image, 569) for image in images]
    assert made[0].shape == (round(images[0].shape[0] * 500 / 569), round(images[0].shape[1] * 500 / 569))
    assert scores.nonmated[1] == judge.compare(judge.extract(made[0]).template, judge.template(made[3]))


@pytest.mark.parametrize("model", ["small", "base"])
def test_the_readme_says_what_was_measured(model):
    from real_sets import mean_of_real

    stored = json.loads((BENCHMARKS / "results" / "epyc-2-cores" / "real.json").read_text())["results"][model]
    eers = {name: row["compare"]["eer"] for name, row in stored.items()}
    made = eers.pop("fvc2002_db4_b")
    expected = [f"{100 * eer:.1f} %" for eer in (*eers.values(), mean_of_real(eers), made)]
    text = (BENCHMARKS.parent / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| `{model}` |"))
    assert [cell.split(" (")[0].strip() for cell in row.split("|")[2:-1]] == expected
    as_is = mean_of_real({name: stored[name]["as it is"]["eer"] for name in stored})
    assert f"{100 * as_is:.1f} % for `{model}`" in " ".join(text.split())
