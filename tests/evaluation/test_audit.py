"""`inspect --audit`: what it finds in a dataset with known trouble, and what it does not."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from planted import compressed, mirrored, plant, records
from shard_writer import ShardWriter

from fingerprint_accel.cli.data import import_files, inspect
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.audit import command
from fingerprint_accel.evaluation.audit.bars import find_bars, nonmated_scores, tail
from fingerprint_accel.evaluation.audit.pictures import correlation
from fingerprint_accel.evaluation.audit.sheet import HEAD, LABEL, MOST, SIDE, shown
from fingerprint_accel.evaluation.audit.suspects import Suspect
from fingerprint_accel.evaluation.audit.templates import LEAST_ALONG, Reuse, fit


def found_in(path):
    """Suspects of a list, as `Plants` names them."""
    head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert head["kind"] == "audit" and head["basis"]
    found = []
    for line in lines:
        if line["kind"] == "one-finger-two-keys":
            at_fault = frozenset(print_["finger_key"] for print_ in line["prints"])
        else:
            at_fault = frozenset(f"{p['finger_key']}/{p['impression']}" for p in line["prints"] if p["at_fault"])
        found.append((line["kind"], at_fault))
    return found


@pytest.fixture(scope="session")
def audited(prints, tmp_path_factory):
    """What was planted, what was found, and where."""
    folder = tmp_path_factory.mktemp("audit")
    plants = plant(prints, folder / "planted")
    command.audit_command(folder / "planted", "small", folder / "audit.png")
    return plants, found_in(folder / "audit.jsonl"), folder


def test_everything_planted_is_found(audited):
    plants, found, _ = audited
    assert [each for each in plants.expected if each not in found] == []


def test_nothing_else_is_found(audited):
    plants, found, _ = audited
    assert [each for each in found if each not in plants.expected + plants.allowed] == []


def test_prints_without_trouble_are_no_suspects(prints, tmp_path, capsys):
    inspect(prints, out=tmp_path / "none.png", audit=True)
    assert found_in(tmp_path / "none.jsonl") == []
    assert "non-mated scores of 24 fingers of this dataset" in capsys.readouterr().out


def test_an_index_finds_the_same(audited, monkeypatch):
    pytest.importorskip("faiss")
    _, found, folder = audited
    monkeypatch.setattr(command, "EXACT_UP_TO", 20)
    command.audit_command(folder / "planted", "small", folder / "indexed.png")
    assert found_in(folder / "indexed.jsonl") == found


def test_a_large_set_without_faiss_is_refused_with_the_remedy(prints, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "EXACT_UP_TO", 20)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"more than 20 prints needs FAISS: pip install"):
        command.audit_command(prints, "small", tmp_path / "audit.png")
    assert list(tmp_path.iterdir()) == []


def test_outputs_replace_only_those_of_an_audit(audited, prints, tmp_path):
    _, _, folder = audited
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"mine\.jsonl: exists already and was not written by this command"):
        inspect(prints, out=tmp_path / "mine.png", audit=True)
    known, info = records(prints)
    with ShardWriter(tmp_path / "few", info.ppi, info.canvas) as writer:
        for those in list(known.values())[:2]:
            for record in those.values():
                writer.add(record)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name in ("audit.png", "audit.jsonl"):
        shutil.copy2(folder / name, outputs / name)
    before = (outputs / "audit.png").stat().st_mtime_ns
    command.audit_command(tmp_path / "few", "small", outputs / "audit.png")
    assert (outputs / "audit.png").stat().st_mtime_ns > before
    assert found_in(outputs / "audit.jsonl") == [] != found_in(folder / "audit.jsonl")
    assert sorted(path.name for path in [*folder.glob(".*"), *outputs.glob(".*")]) == []


def test_the_sheet_shows_every_suspect(audited):
    _, found, folder = audited
    with Image.open(folder / "audit.png") as sheet:
        assert sheet.height == HEAD + len(found) * (HEAD + LABEL + SIDE)


def test_a_sheet_has_room_for_some_of_each_kind():
    many = [Suspect("same-picture-one-finger", (row,), 1.0, "") for row in range(100)]
    few = [Suspect("wrong-finger", (row,), 1.0, "") for row in range(5)]
    chosen = shown([*many, *few])
    assert len(chosen) == MOST
    assert chosen[-5:] == few
    assert chosen[:-5] == many[: MOST - 5]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_tail_does_not_underestimate_what_a_larger_sample_counts(seed):
    """Cosines of random directions in 30 dimensions, to the share of which there are closed tables: 1e-6 at 0.74."""
    chance = np.random.default_rng(seed)
    z = chance.standard_normal(2_000_000)
    cosines = z / np.sqrt(z**2 + chance.chisquare(29, len(z)))
    found = tail(cosines[:20_000], (0.1, 0.01), 1e-6)
    assert 0.74 < found < 0.90
    assert tail(cosines, (0.1, 0.01), 1e-2) == pytest.approx(np.quantile(cosines, 0.99))


def test_small_sets_take_the_thresholds_of_the_model(calibrated_notes):
    vectors = np.eye(4, dtype=np.float32)
    fingers = np.array([0, 0, 1, 1])
    bars = find_bars(vectors, fingers, np.empty(0), 0, calibrated_notes({"0.01": 0.4, "0.001": 0.6}))
    slope = math.atanh(0.6) - math.atanh(0.4)  # for each tenth of the rate
    assert bars.same == pytest.approx(math.tanh(math.atanh(0.6) + 3 * slope))
    assert bars.apart == pytest.approx(0.4)
    assert "measured on 2,880 non-mated scores of prints (scans)" in bars.lines[0]


def test_nothing_is_said_of_keys_without_any_basis():
    bars = find_bars(np.eye(4, dtype=np.float32), np.arange(4), np.empty(0), 0, {})
    assert (bars.same, bars.apart) == (math.inf, -math.inf)
    assert "keys are not judged" in bars.lines[0]


def test_every_nonmated_pair_is_scored_once():
    vectors = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    fingers = np.arange(600) // 3
    expected = 600 * 599 // 2 - 200 * 3
    assert len(nonmated_scores(vectors, fingers, 0)) == expected


def test_copies_correlate_and_touches_do_not(prints):
    known, info = records(prints)
    first, second = (known["synthetic-3-000005"][number].image for number in (0, 1))
    moved = np.roll(first, (3, -7), (0, 1))
    assert correlation(first, np.roll(first, (4, -6), (0, 1)), info.ppi) == pytest.approx(1, abs=1e-3)
    assert correlation(first, compressed(moved), info.ppi) > 0.94
    assert correlation(first, second, info.ppi) < 0.6


def test_minutiae_fit_their_own_print(prints):
    known, info = records(prints)
    others = []
    for key in known:
        print_ = known[key][0]
        both = (print_.minutiae, mirrored(print_.minutiae, info.canvas))
        images = torch.from_numpy(np.stack([print_.image] * 2))
        (paper, along), (_, other) = fit(images, info.ppi, np.stack(both), np.array([len(print_.minutiae)] * 2))
        assert paper < 0.1 and along > 0.8
        others.append(other)
    assert np.mean(others) < LEAST_ALONG and np.mean(np.array(others) < LEAST_ALONG) > 0.5
    assert np.isnan(fit(images[:1], info.ppi, print_.minutiae[None], np.array([7]))).all()


def test_a_template_is_known_again_where_it_was_moved_and_cut():
    chance = np.random.default_rng(0)
    template = np.column_stack([chance.uniform(50, 250, (40, 2)), chance.uniform(0, 6, 40), np.ones(40)])
    others = [np.column_stack([chance.uniform(50, 250, (40, 2)), chance.uniform(0, 6, 40), np.ones(40)]) for _ in "12"]
    moved, reuse = np.array([17.5, -3, 0, 0]), Reuse()
    for row, minutiae in enumerate([template, *others, template + moved, template[4:]]):
        reuse.add(row, minutiae.astype(np.float32))
    (found,) = reuse.suspects(np.arange(5))
    assert found.rows == (0, 3, 4)
    assert reuse.suspects(np.zeros(5)) == []


@pytest.mark.parametrize("name", ["fvc2002_db1_b", "fvc2002_db3_b", "upek"])
def test_clean_real_sets_have_no_suspects(shared_data, tmp_path, name):
    import_files(shared_data / name, tmp_path / "set", layout="fvc", workers=1)
    inspect(tmp_path / "set", out=tmp_path / "audit.png", audit=True)
    assert found_in(tmp_path / "audit.jsonl") == []
