"""Cross-validation: folds are a partition, their numbers are those of the runs, and an interrupted one continues."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fingerprint_accel import recipe
from fingerprint_accel.config import load_yaml
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.cross_validation import held_out_prints, rates
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.recipe import cross_validate, fold_configs, run_training
from fingerprint_accel.training import loop


@pytest.fixture
def folded(tiny, tmp_path):
    """Three folds of eight fingers each."""
    training = dataclasses.replace(tiny.training, steps=4, save_every=2)
    return dataclasses.replace(tiny, folds=3, out=str(tmp_path / "cv"), training=training)


def results(config):
    return json.loads(Path(config.out, "cross_validation.json").read_text())


def rows_of(text):
    """The cells of the table that is printed last."""
    lines = text[text.index("fold  ") :].splitlines()
    return [line.split() for line in lines[: lines.index("")]]


def test_the_numbers_are_those_of_the_folds(folded, tmp_path, capsys):
    cross_validate(folded)
    table = rows_of(capsys.readouterr().out)
    found = results(folded)
    shards = open_dataset(folded.data)
    held_out = [np.unique(shards.fingers[held_out_prints(fold).rows]) for fold in fold_configs(folded)]
    assert sorted(np.concatenate(held_out)) == list(range(24)), "each finger in one fold"
    assert [row["fold"] for row in found["folds"]] == ["1/3", "2/3", "3/3"]
    for number, row in enumerate(found["folds"], 1):
        run = tmp_path / "cv" / f"fold-{number}"
        assert load_yaml(run / "config.yaml").reading.fold == f"{number}/3"
        assert (row["fingers"], row["prints"], row["mated"], row["nonmated"]) == (8, 32, 8 * 6, 28 * 16)
        best = json.loads((run / "best.json").read_text())
        assert best["step"] == 4, "the last one"
        assert row["eer"] == pytest.approx(best["eer"], abs=1e-6)
        assert [str(row["mated"]), f"{row['eer']:.2%}"] == [table[number][3], table[number][5]]
    eers = [row["eer"] for row in found["folds"]]
    assert found["fmr"] == 0.1, "448 non-mated comparisons show ten false matches at 10 %, not at 1 %"
    assert found["mean"]["eer"] == pytest.approx(np.mean(eers))
    assert found["standard_deviation"]["eer"] == pytest.approx(np.std(eers, ddof=1))
    assert (found["pooled"]["fingers"], found["pooled"]["prints"]) == (24, 96)
    assert (found["pooled"]["mated"], found["pooled"]["nonmated"]) == (3 * 48, 3 * 448)
    assert min(eers) - 0.05 < found["pooled"]["eer"] < max(eers) + 0.05
    assert table[0][-5:] == ["FNMR", "at", "FMR", "10", "%"]
    assert table[-1] == [
        *("pooled", "24", "96", "144", "1,344"),
        *(f"{found['pooled']['eer']:.2%}", f"{found['pooled']['fnmr']:.2%}"),
    ]


def test_rates_are_those_of_an_evaluation():
    generator = np.random.default_rng(0)
    mated, nonmated = generator.normal(1, 1, 300), generator.normal(-1, 1, 5000)
    metrics = compute_metrics(mated, nonmated)
    assert rates(mated, nonmated, 1e-2) == {
        "mated": 300,
        "nonmated": 5000,
        "eer": metrics.eer,
        "fnmr": metrics.fnmr_at_fmr[1e-2],
    }
    assert "fnmr" not in rates(mated, nonmated, None)


def test_an_interrupted_fold_continues(folded, tmp_path, monkeypatch):
    """The second fold is interrupted at its fourth step. With --resume auto the numbers are those of a whole run."""
    cross_validate(folded)
    expected = results(folded)
    again = dataclasses.replace(folded, out=str(tmp_path / "again"))
    original, steps = loop.optimizer_step, []

    def step(run, *arguments):
        if run.folder.name == "fold-2" and len(steps) == 7:
            raise KeyboardInterrupt
        steps.append(run.folder.name)
        return original(run, *arguments)

    monkeypatch.setattr(loop, "optimizer_step", step)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(again)
    assert not (tmp_path / "again" / "cross_validation.json").exists()
    monkeypatch.setattr(loop, "optimizer_step", lambda run, *a: steps.append(run.folder.name) or original(run, *a))
    steps.clear()
    with pytest.raises(UserError, match="fold-1: contains a run; add --resume auto"):
        cross_validate(again)
    cross_validate(dataclasses.replace(again, resume="auto"))
    assert steps == ["fold-2"] * 2 + ["fold-3"] * 4, "the checkpoint of step 2 is the newest"
    assert results(again) == expected


def test_all_folds_are_checked_before_the_first_one_trains(folded, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "run_training", lambda config: pytest.fail("trained"))
    for changes, message in (
        ({"folds": 20}, "too few to train on two fingers and to hold out two"),
        ({"data": "synth:fingers=20"}, "give --data a dataset folder"),
        ({"resume": str(tmp_path)}, "use --resume auto, not a checkpoint folder"),
    ):
        with pytest.raises(UserError, match=message):
            cross_validate(dataclasses.replace(folded, **changes))
    (tmp_path / "cv" / "fold-3").mkdir(parents=True)
    (tmp_path / "cv" / "fold-3" / "config.yaml").write_text("mine: true\n")
    with pytest.raises(UserError, match="fold-3: exists already and is not a run folder"):
        cross_validate(folded)
    shutil.rmtree(tmp_path / "cv" / "fold-3")
    (tmp_path / "cv" / "cross_validation.json").write_text("{}")
    with pytest.raises(UserError, match="is not a folder of a cross-validation"):
        cross_validate(folded)


def test_a_recipe_for_a_single_model_refuses_folds(folded):
    with pytest.raises(UserError, match="this recipe trains a single model"):
        run_training(folded)
    with pytest.raises(UserError, match="--folds 1: give at least 2"):
        dataclasses.replace(folded, folds=1)
    with pytest.raises(UserError, match=r"leave out reading\.validation_data"):
        dataclasses.replace(folded, reading=dataclasses.replace(folded.reading, validation_data="other"))
