"""The card of a model states its metrics for hubs and for readers."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.model_card import model_card
from fingerprint_accel.models.saved_model import bundled_models, find_model

METRICS = [
    {"dataset": "FVC2002 DB1_B", "metric": "eer", "value": 0.025, "name": "EER, as it is"},
    {"dataset": "FVC2002 DB1_B", "metric": "fnmr", "value": 0.085, "args": {"fmr": 0.001}},
    {"dataset": "UPEK", "metric": "eer", "value": 0},
]


def card(notes):
    return model_card("mine", ModelConfig(variant="Tex", trunk="compact"), 300, 320, False, notes)


def test_hubs_find_every_number(calibrated_notes):
    text = card(
        {"licence": "Apache-2.0, all of it", "metrics": METRICS, **calibrated_notes({"0.001": 0.41}, {"0.01": 0.5})}
    )
    facts = yaml.safe_load(text.split("---\n")[1])
    assert (facts["license"], [index["name"] for index in facts["model-index"]]) == ("apache-2.0", ["mine"])
    name, results = model_index_to_eval_results(facts["model-index"])
    assert name == "mine"
    assert {(result.task_type, result.verified) for result in results} == {("fingerprint-verification", False)}
    assert [(r.dataset_name, r.metric_type, r.metric_value, r.metric_name) for r in results] == [
        ("FVC2002 DB1_B", "eer", 0.025, "EER, as it is"),
        ("FVC2002 DB1_B", "fnmr", 0.085, "fnmr"),
        ("UPEK", "eer", 0.0, "eer"),
        ("scans", "eer", 0.05, "EER, as they are"),
        ("scans", "fnmr", 0.41, "FNMR at FMR 0.1 %, as they are"),
        ("scans", "eer", 0.05, "EER, best of 45 poses"),
        ("scans", "fnmr", 0.5, "FNMR at FMR 1 %, best of 45 poses"),
    ]
    assert results[1].metric_args == {"fmr": 0.001}
    assert results[4].metric_args == {"protocol": "all-pairs", "poses": 1, "fmr": 0.001}
    assert results[3].dataset_type == "fingerprints"
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert data.eval_results == results, "the hub's own reader takes the whole card"
    assert (data.library_name, data.pipeline_tag) == ("fingerprint_accel", "image-feature-extraction")


def test_readers_find_the_metrics_as_a_table():
    extra = {"dataset": "UPEK", "metric": "d-prime", "value": 4.25, "name": "d'"}
    measured = {**METRICS[2], "args": {"interval_95": [0, 0.012]}}
    text = card({"metrics": [*METRICS[:2], measured, extra]})
    assert "| dataset | EER, as it is | fnmr | eer | d' |\n|---|--:|--:|--:|--:|\n" in text
    assert "| FVC2002 DB1_B | 2.50 % | 8.50 % |  |  |\n| UPEK |  |  | 0.00 % (0.00 to 1.20) | 4.25 |\n" in text
    assert "In parentheses: 95 % intervals" in text
    assert "In parentheses" not in card({"metrics": METRICS})
    assert "- metrics:" not in text, "not among the facts, where it would be a line of code"


def test_synthetic_prints_are_another_dataset(calibrated_notes):
    facts = yaml.safe_load(card(calibrated_notes({"0.01": 0.4}, synthetic=True)).split("---\n")[1])
    assert facts["model-index"][0]["results"][0]["dataset"] == {"type": "synthetic-fingerprints", "name": "scans"}


def test_without_numbers_there_is_no_index():
    assert "model-index" not in card({"made_by": "me"})


@pytest.mark.parametrize("metrics", [[{"dataset": "a"}], [{"dataset": "a", "metric": "eer", "value": "low"}], [3], 3])
def test_metrics_that_cannot_be_read_are_named(metrics):
    with pytest.raises(UserError, match="the metrics of the model"):
        card({"metrics": metrics})


@pytest.mark.parametrize("name", bundled_models())
def test_the_bundled_cards_are_those_of_their_notes(name):
    saved = find_model(name)
    wanted = model_card(name, saved.model, saved.ppi, saved.canvas, saved.enhanced, saved.notes)
    assert (saved.folder / "README.md").read_text() == wanted
    index = yaml.safe_load(wanted.split("---\n")[1])["model-index"]
    eer = saved.notes["calibration"]["ways"][0]["eer"]
    assert index[0]["results"][-1]["metrics"][0]["value"] == eer


@pytest.mark.parametrize("name", bundled_models())
def test_the_bundled_cards_state_the_rates_of_the_benchmark(name):
    """On the FVC sets and UPEK, as prints are and as `compare` compares them."""
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "epyc-2-cores" / "real.json"
    measured = json.loads(results.read_text())["results"][name]
    stated = {
        (result.dataset_type, result.metric_type, result.metric_args["poses"]): result
        for result in ModelCard.load(find_model(name).folder / "README.md").data.eval_results
        if result.dataset_type in measured
    }
    assert len(stated) == 6 * 2 * 2
    for dataset, ways in measured.items():
        for poses, way in ((1, "as it is"), (6, "compare")):
            eer, fnmr = (stated[dataset, metric, poses] for metric in ("eer", "fnmr"))
            assert eer.metric_value == round(ways[way]["eer"], 5)
            assert eer.metric_args["interval_95"] == [round(end, 5) for end in ways[way]["eer_interval_95"]]
            assert fnmr.metric_value == round(ways[way]["fnmr_at_fmr_1_percent"], 5)
            assert fnmr.metric_args["fmr"] == 0.01
            assert not eer.verified and not fnmr.verified
    assert stated["fvc2002_db4_b", "eer", 1].dataset_name == "FVC2002 DB4_B (synthetic, SFinGe)"
