"""The card of a model tells hubs and people what was measured."""

import pytest
import yaml
from huggingface_hub import ModelCard
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
    assert {result.task_type for result in results} == {facts["pipeline_tag"]}
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
    assert ModelCard(text).data.eval_results == results, "the hub's own reader takes the whole card"


def test_people_find_the_metrics_as_a_table():
    text = card({"metrics": METRICS})
    assert "| FVC2002 DB1_B | EER, as it is | 0.025 |\n" in text
    assert "- metrics:" not in text, "not among the facts, where it would be a line of code"


def test_synthetic_prints_are_another_dataset(calibrated_notes):
    facts = yaml.safe_load(card(calibrated_notes({"0.01": 0.4}, synthetic=True)).split("---\n")[1])
    assert facts["model-index"][0]["results"][0]["dataset"] == {"type": "synthetic-fingerprints", "name": "scans"}


def test_without_numbers_there_is_no_index():
    assert "model-index" not in card({"made_by": "me"})


@pytest.mark.parametrize("metrics", [[{"dataset": "a"}], [{"dataset": "a", "metric": "eer", "value": "low"}], [3], 3])
def test_metrics_that_cannot_be_read_are_named(metrics):
    with pytest.raises(UserError, match="the model's metrics cannot be read"):
        card({"metrics": metrics})


@pytest.mark.parametrize("name", bundled_models())
def test_the_bundled_cards_are_those_of_their_notes(name):
    saved = find_model(name)
    wanted = model_card(name, saved.model, saved.ppi, saved.canvas, saved.enhanced, saved.notes)
    assert (saved.folder / "README.md").read_text() == wanted
    index = yaml.safe_load(wanted.split("---\n")[1])["model-index"]
    eer = saved.notes["calibration"]["ways"][0]["eer"]
    assert index[0]["results"][-1]["metrics"][0]["value"] == eer
