"""The suite notices defects that are planted."""

import json
import os
from pathlib import Path

import pytest
import starting

from tests.faults.disk import Disk
from tests.faults.documents import inputs
from tests.faults.endurance import Sample, growth
from tests.faults.results import Outcome, Records, Trial
from tests.faults.tracing import Operation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = starting.run(["-m", "tests.faults.planted", folder], environment=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_every_kind_of_failure_of_a_parser_is_noticed(planted):
    assert planted["fuzzed"] == {
        "silent": {"silent": 2},
        "raises": {"traceback": 2},
        "crashes": {"crash": 2},
        "large": {"beyond budget": 2},
        "nameless": {"traceback": 2},
        "good": {"named": 2},
    }


def test_a_writer_that_does_not_sync_loses_its_file(planted):
    if planted["cut"] is None:
        pytest.skip("needs strace")
    assert planted["cut"] == {"careless": ["", "\0" * 7, "con", "content"], "careful": ["content"]}


def test_states_of_a_disk_after_a_power_cut(tmp_path):
    (tmp_path / "old").write_bytes(b"before")
    disk = Disk(tmp_path)
    disk.apply(Operation("create", "new"))
    disk.apply(Operation("write", "new", offset=0, data=b"content"))
    disk.apply(Operation("rename", "new", "old"))
    states = dict(disk.states())
    assert states["killed"] == {"old": b"content"}
    assert states["power cut, unsynced data is missing"] == {"old": b""}
    assert states["power cut, only synced names are there"] == {"old": b"before"}
    disk.apply(Operation("sync", "old"))
    disk.apply(Operation("sync", "."))
    assert {tuple(tree.items()) for _, tree in disk.states()} == {(("old", b"content"),)}


def test_growth_of_resources_is_noticed():
    flat = [Sample(100 + second % 3, 10, 4) for second in range(60)]
    assert growth(flat) == ""
    leaking = [Sample(100 + second, 10 + second // 10, 4) for second in range(60)]
    assert growth(leaking) == "megabytes from 122 to 152, descriptors from 12 to 15"


def test_inputs_repeat_and_half_of_those_of_json_stay_json():
    data = json.dumps({"a": {"b": [1, 2]}, "c": "text"}).encode()
    some = [inputs("x.json", data, "0", number) for number in range(100)]
    assert some == [inputs("x.json", data, "0", number) for number in range(100)]
    assert sum(_is_json(text) for text in some) > 40


def _is_json(text):
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def test_records_are_continued_and_counted(tmp_path):
    trial = Trial("kills", "SIGKILL", "import, 2 workers", 3)
    assert Trial.of(trial.key) == trial
    Records(tmp_path).add(trial, Outcome().note("recovered").note("lost", "a file"))
    with (tmp_path / "outcomes.jsonl").open("a") as file:
        file.write('{"key": "cut o')  # by a kill
    again = Records(tmp_path)
    assert again.done == {trial.key}
    assert again.failures() == [f"--only {trial.key!r}: lost: a file"]
    faults, parsers = again.tables().split("\n\n")
    assert len(parsers.splitlines()) == 2
    assert faults.splitlines()[-1] == "| SIGKILL | 2 | 1 | 0 | 1 | 0 | 0 | 0 | 0 | 0 | 0.00 | 0 |"
