"""The comparison of a model before and after training."""

import io
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.before_after import (
    AFTER,
    BEFORE,
    NBIS,
    before_after,
    before_after_png,
    pairs_of,
    rate_table,
    recovered_pair,
)
from fingerprint_accel.evaluation.run import Extras, evaluate_command
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.metrics.protocols import Pairs, Scores


def scores(mated, nonmated):
    """Scores of one mated comparison for each of many fingers, and of non-mated ones of neighbouring fingers."""
    count = len(mated)
    fingers = np.repeat(np.arange(count), 2)
    first = np.arange(len(nonmated)) % (2 * count)
    pairs = Pairs(
        np.arange(2 * count).reshape(-1, 2), np.stack([first, (first + 2) % (2 * count)], axis=1), len(nonmated)
    )
    return Scores(np.array(mated, np.float32), np.array(nonmated, np.float32), pairs, fingers)


def test_rates_are_given_where_ten_false_matches_decide():
    mated = [0.9] * 75 + [0.1] * 25
    few, many, most = (scores(mated, np.linspace(-1, 0.5, count)) for count in (999, 1000, 10_000))
    header, *rows = rate_table({BEFORE: few, AFTER: many, NBIS: most})
    assert header[3:5] == ("FNMR at FMR 1 %", "FNMR at FMR 0.1 %")
    assert [row[0] for row in rows] == [BEFORE, AFTER, NBIS]
    assert [row[1] for row in rows] == ["25.00%"] * 3
    assert [row[3:5] for row in rows] == [("-", "-"), ("25.00%", "-"), ("25.00%", "25.00%")]
    assert rows[0][5] == "100 + 999"
    low, high = (float(end.strip("%")) for end in rows[0][2].split(" to "))
    assert 10 < low < 25 < high < 40


def test_the_clearest_recovered_pair_is_found():
    nonmated = np.linspace(0, 0.5, 1000)  # FMR 0.1 % allows one false match, so that the threshold lies above 0.4994
    before = scores([0.9, 0.4, 0.1, 0.3, 0.6], nonmated)
    after = scores([0.4, 0.8, 0.7, 0.9, 0.7], nonmated)
    found = recovered_pair(before, after)
    assert found.fmr == 0.001
    assert found.thresholds == pytest.approx((0.4995, 0.4995), abs=1e-4)
    assert found.place == 2  # margins 0.1, 0.2 and 0.195 of places 1, 2, 3
    assert found.similarities == pytest.approx((0.1, 0.7))
    assert (found.gained, found.lost) == (3, 1)
    assert found.sentence() == (
        "At FMR 0.1 %, 3 mated pairs that were rejected before training are accepted after it. The reverse holds for 1."
    )


def test_no_recovered_pair_is_said():
    same = scores([0.9, 0.1], np.linspace(0, 0.5, 1000))
    found = recovered_pair(same, same)
    assert found.place is None
    assert found.sentence() == "At FMR 0.1 %, no mated pair that was rejected before training is accepted after it."


def test_the_plot_is_as_wide_as_its_panels():
    generator = np.random.default_rng(0)
    methods = {name: scores(generator.normal(1, 1, 50), generator.normal(-1, 1, 2000)) for name in (BEFORE, AFTER)}
    validation = {"step": np.array([0.0, 10, 20]), "eer": np.array([0.2, 0.1, 0.05])}
    unknown = {"step": np.empty(0), "eer": np.empty(0)}
    sizes = []
    for history in (validation, unknown, None):
        with Image.open(io.BytesIO(before_after_png(methods, history))) as image:
            sizes.append(image.size)
    assert sizes == [(1344, 576), (672, 576), (672, 576)]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, prints, spread_out):
    """An exported model with random weights, for the canvases of `prints`."""
    torch.manual_seed(0)
    network = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    extractor = FingerprintExtractor(network, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
    shards = open_dataset(prints)
    spread_out(extractor, np.stack([shards.image(row) for row in range(32)]))
    folder = tmp_path_factory.mktemp("untrained") / "model"
    extractor.save_pretrained(folder)
    return folder


def evaluated(model, prints, out, against, capsys):
    add = partial(before_after, model, progress=False)
    evaluate_command(model, prints, "all-pairs", out, 32, Extras(against=against), overwrite=True, add=add)
    return capsys.readouterr().out


def test_the_report_begins_with_the_comparison(untrained, prints, tmp_path, capsys, monkeypatch):
    """`small` stands for the trained network: it recognises prints that random weights do not."""
    monkeypatch.setattr("fingerprint_accel.evaluation.before_after.NBIS_FINGERS", 4)  # NBIS takes 0.1 s for each print
    out = tmp_path / "evaluation"
    text = evaluated(Path("small"), prints, out, untrained, capsys)
    eer = json.loads((out / "metrics.json").read_text())["eer"]
    assert eer < 0.01
    (after,) = (line for line in text.splitlines() if line.startswith(AFTER))
    assert f"{eer:.2%}" in after
    (before,) = (line for line in text.splitlines() if line.startswith(BEFORE))
    assert float(before.split()[2].strip("%")) > 20
    assert "rank-1" not in text, "one table"
    page = (out / "report.html").read_text()
    assert page.index("<h2>Before and after training</h2>") < page.index("<h2>Curves</h2>")
    with Image.open(out / "recovered_pair.png") as image:
        assert image.size == (1320, 594)
    monkeypatch.setitem(sys.modules, "nbis", None)  # saves its time
    evaluated(untrained, prints, out, Path("small"), capsys)
    assert (out / "before_after.png").exists()
    assert not (out / "recovered_pair.png").exists()


def test_a_sample_is_of_some_fingers(prints):
    shards = open_dataset(prints)
    pairs = pairs_of(shards, np.array([3, 5, 20]), 40)
    assert set(shards.fingers[pairs.mated].ravel()) == {3, 5, 20}
    assert set(shards.fingers[pairs.nonmated].ravel()) == {3, 5, 20}
    assert (len(pairs.mated), len(pairs.nonmated), pairs.nonmated_possible) == (18, 40, 48)
    assert (shards.fingers[pairs.mated[:, 0]] == shards.fingers[pairs.mated[:, 1]]).all()
    assert (shards.fingers[pairs.nonmated[:, 0]] != shards.fingers[pairs.nonmated[:, 1]]).all()


def test_nbis_compares_a_sample(prints):
    pytest.importorskip("nbis")
    from fingerprint_accel.data.nbis import Nbis, find_template
    from fingerprint_accel.evaluation.nbis_scores import nbis_scores

    shards = open_dataset(prints)
    pairs = pairs_of(shards, np.arange(1, 15, 2), 40)
    found = nbis_scores(shards, pairs, 300, progress=False)
    assert np.median(found.mated) > 40 > np.quantile(found.nonmated, 0.9)
    rows = pairs.nonmated[7].tolist()
    templates = [find_template(shards.image(row), shards.info.ppi) for row in rows]
    assert found.nonmated[7] == Nbis().compare(*templates)
    with pytest.raises(UserError, match=r"80 comparisons would take about \d+ s"):
        nbis_scores(shards, pairs, 0.01, progress=False)


def test_a_missing_before_and_a_missing_nbis_are_left_out(untrained, prints, tmp_path, capsys, monkeypatch):
    """A model from random weights has no before."""
    monkeypatch.setitem(sys.modules, "nbis", None)
    text = evaluated(untrained, prints, tmp_path / "evaluation", None, capsys)
    assert AFTER in text
    assert BEFORE not in text
    assert not (tmp_path / "evaluation" / "recovered_pair.png").exists()
    assert NBIS not in text
    assert "NBIS is left out: NIST's detector and matcher are not installed: pip install nbis-py." in text
