"""`evaluate --by-person`: persons of a dataset, identified by several fingers."""

import json

import numpy as np
import pytest

from fingerprint_accel.cli.models import evaluate
from fingerprint_accel.data.persons import person_in
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.persons import PersonRates, prints_of_persons
from fingerprint_accel.extraction.extractor import FingerprintExtractor


@pytest.mark.parametrize(
    ("key", "person", "position"),
    [
        ("anna_07", "anna", 7),
        ("1_left_index", "1", 7),
        ("a/b_c_12", "a/b_c", 6),
        ("synthetic-7-p00001_03", "synthetic-7-p00001", 3),
        ("anna_00", "", 0),
        ("anna_13", "", 0),
        ("anna_77", "", 0),
        ("synthetic-7-000123", "", 0),
        ("101", "", 0),
    ],
)
def test_keys_state_person_and_position(key, person, position):
    assert person_in(key) == (person, position)


@pytest.fixture(scope="module")
def cards(tmp_path_factory, write_prints):
    """Six persons with three fingers of three impressions; the last has one finger of one impression."""
    names = {
        (f"person {person}_{position:02d}", impression): f"{person}/{position}_{impression}.png"
        for person in range(6)
        for position in (1, 2, 7)
        for impression in range(3)
        if person < 5 or (position, impression) == (2, 0)
    }
    return write_prints(tmp_path_factory.mktemp("cards") / "cards", names)


def test_persons_are_identified_and_reported(cards, tiny_model, tmp_path, capsys):
    evaluate(tiny_model, cards.folder, out=tmp_path / "out", by_person=True)
    embeddings = FingerprintExtractor.from_pretrained(tiny_model).extract(cards, progress=False)
    rates = PersonRates.measured(embeddings, prints_of_persons(cards), None, 0)
    assert [each.fingers for each in rates.searches] == [1, 2, 3]
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())["persons"]
    assert stored["persons"] == 6
    for each in rates.searches:
        closed = stored["fingers"][str(each.fingers)]["closed_set"]
        assert (closed["enrolled"], closed["searches"]) == (6, 10)
        assert closed["rank"]["1"] == each.closed.identified(1)
        assert closed["rank_interval_95"]["1"][0] <= closed["rank"]["1"] <= closed["rank_interval_95"]["1"][1]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("Identification<") < page.index("Identification of persons<") < page.index("Samples of")
    assert {"persons_cmc.png", "persons_det.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    out = capsys.readouterr().out
    assert "persons: 10 closed-set searches among 6 persons; " in out
    assert f"3        rank-1 identification  {rates.searches[2].closed.identified(1):.2%}" in out


def test_a_dataset_without_persons_ends_in_one_line(ten_fingers, write_prints, tiny_model, tmp_path):
    with pytest.raises(
        UserError, match=r"has 10 finger keys without a person and a finger position, such as 3; import"
    ):
        evaluate(tiny_model, ten_fingers.folder, out=tmp_path / "out", by_person=True)
    assert not (tmp_path / "out").exists()
    one = write_prints(tmp_path / "one", {("anna_01", 0): "a", ("anna_02", 0): "b"})
    with pytest.raises(UserError, match="has prints of one person; two or more are needed"):
        prints_of_persons(one)
    single = write_prints(tmp_path / "single", {("anna_01", 0): "a", ("bert_02", 0): "b"})
    with pytest.raises(UserError, match=r"no finger of .* has two prints; a search needs a probe and a reference"):
        prints_of_persons(single)


def test_orders_of_rows_and_names_do_not_matter(cards):
    found = prints_of_persons(cards)
    assert found.persons.shape == found.positions.shape == (46,)
    assert np.bincount(found.persons).tolist() == [9] * 5 + [1]
    assert sorted(set(found.positions.tolist())) == [1, 2, 7]
