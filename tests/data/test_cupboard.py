"""A mixed cupboard of every kind of file: imported by one command, and every file accounted for."""

import json

import pytest
from cupboard import compare, table
from cupboard_kinds import KINDS, fill
from cupboard_tree import NAMES, RAW_SIZE, Cupboard, files_below

from fingerprint_accel.cli.data import import_files


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    cupboard = Cupboard(folder / "cupboard")
    fill(cupboard, 150)
    import_files(cupboard.root, folder / "dataset", names=NAMES, raw_size=RAW_SIZE, workers=1)
    return cupboard, folder / "dataset"


def test_every_print_is_what_it_is_and_every_file_has_its_reason(imported):
    cupboard, dataset = imported
    outcomes, wrong = compare(cupboard, dataset)
    assert wrong == []
    assert len(outcomes) > len(KINDS), "kinds of kinds count too"
    assert sum(outcome.files for outcome in outcomes.values()) == len(cupboard) >= 150
    assert f"| **together** | {len(cupboard)} |" in table(outcomes)


def test_nothing_is_uncounted(imported):
    cupboard, dataset = imported
    rejected = [json.loads(line)["path"] for line in (dataset / "rejected.jsonl").read_text().splitlines()]
    rejected = {path.removeprefix(f"{cupboard.root}/").partition("#")[0] for path in rejected}
    sources = {source.partition("#")[0] for source in cupboard.expected}
    sources |= {source[:-3] for source in sources if source[-3:-2] == "-"}  # fingers of a slap
    stems = {expected.source.rpartition(".")[0] for expected in cupboard.expected.values() if expected.minutiae}
    unknown = {
        path
        for path in files_below(cupboard.root)
        if path not in rejected and path not in sources and path.rpartition(".")[0] not in stems and path not in stems
    }
    assert unknown == set()


def test_a_record_of_either_type_gives_the_same_print(imported):
    cupboard, dataset = imported
    outcomes, _ = compare(cupboard, dataset)
    same = ("ANSI/NIST type 4, NONE", "ANSI/NIST type 14, NONE", "ANSI/NIST type 14, PNG", "raw pixels", "BMP")
    assert [outcomes[what].difference for what in same] == [0.0] * len(same)
    assert all(outcomes[what].prints for what in same)
