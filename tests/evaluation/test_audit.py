"""`inspect --audit`: what it finds in a dataset with known trouble, and what it does not."""

import json
import math

import numpy as np
import pytest
import torch
from planted import mirrored, plant, records
from PIL import Image

from fingerprint_accel.cli.data import inspect
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.audit import command
from fingerprint_accel.evaluation.audit.bars import find_bars, nonmated_scores, tail
from fingerprint_accel.evaluation.audit.pictures import correlation
from fingerprint_accel.evaluation.audit.sheet import MOST, shown
from fingerprint_accel.evaluation.audit.suspects import Suspect
from fingerprint_accel.evaluation.audit.templates import Reuse, fit


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
