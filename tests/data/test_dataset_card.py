"""The card of a dataset folder: right for readers, hubs and `datasets`, and the same for any number of workers."""

import json
import re
import shutil

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image

from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shard_writing import DATASET
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.extraction.verifying import verify
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.synthesis.writing import write_synthetic_dataset
from tests.data.small_datasets import QUIET, ridges

SMALL = {"dataset_ppi": 200, "canvas": 96}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two fingers with two impressions each, a file that is no image, and one without a label."""
    folder = tmp_path_factory.mktemp("home") / "ann's scans"
    folder.mkdir()
    for finger in (1, 2):
        for impression in (1, 2):
            Image.fromarray(ridges(finger + impression)).save(folder / f"{finger}_{impression}.png")
    (folder / "3_1.png").write_bytes(b"nothing")
    Image.fromarray(ridges(0)).save(folder / "thumb.png")
    return folder


@pytest.fixture(scope="module")
def sets(scans, tmp_path_factory):
    """One folder of every command that writes datasets."""
    folder = tmp_path_factory.mktemp("sets")
    import_dataset(scans, folder / "import", "fvc", 400, encoding="lz4", **SMALL, **QUIET)
    write_synthetic_dataset(folder / "synth", 3, 2, seed=5, **QUIET)
    merge([folder / "import", folder / "synth"], folder / "merge", MergeOptions(seed=9), **QUIET)
    return folder


def facts_of(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def rows_of(folder, heading):
    """Cells of the first table below a heading."""
    part = (folder / "README.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line[:1] == "|"][
        2:
    ]


@pytest.mark.parametrize("verb", ["import", "synth", "merge"])
def test_hubs_can_read_it(sets, verb):
    text = (sets / verb / "README.md").read_text()
    card = DatasetCard(text)
    assert isinstance(card.data, DatasetCardData)
    facts = card.data.to_dict()
    assert (facts["license"], facts["license_name"], facts["size_categories"]) == ("other", "unknown", ["n<1K"])
    assert facts["task_categories"] == ["image-feature-extraction"]
    assert {"fingerprint", "biometrics"} <= set(facts["tags"])
    assert ("synthetic" in facts["tags"]) == (verb == "synth")
    assert (
        facts["pretty_name"]
        == {
            "import": "4 fingerprints of 2 fingers",
            "synth": "6 synthetic fingerprints of 3 fingers",
            "merge": "10 fingerprints of 5 fingers",
        }[verb]
    )
    assert "{" not in text.replace("{verb", "{"), "every field is filled in"


@pytest.mark.parametrize("verb", ["import", "synth", "merge"])
def test_its_columns_are_those_of_the_dataset(sets, verb, tmp_path):
    whole = datasets.load_from_disk(str(sets / verb))
    stated = datasets.Features._from_yaml_list(facts_of(sets / verb)["dataset_info"]["features"])
    assert stated == whole.features
    assert [row[0].strip("`") for row in rows_of(sets / verb, "Columns")] == list(whole.features)
    (files,) = facts_of(sets / verb)["configs"][0]["data_files"]
    pattern = {files["split"]: str(sets / verb / files["path"])}
    by_files = datasets.load_dataset("arrow", data_files=pattern, split="train", cache_dir=str(tmp_path))
    assert (by_files.features, by_files.num_rows) == (whole.features, whole.num_rows)
    assert by_files[0]["finger_key"] == whole[0]["finger_key"]


@pytest.mark.parametrize("verb", ["import", "synth", "merge"])
def test_its_code_opens_the_dataset(sets, verb):
    codes = re.findall(r"```python\n(.*?)```", (sets / verb / "README.md").read_text(), re.DOTALL)
    found = {}
    for code in codes:
        names = {}
        exec(code.replace("FOLDER", str(sets / verb)), {"np": np}, names)
        found[len(found)] = names["image"]
    assert len(found) == 2
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], open_dataset(sets / verb).image(0))


def test_it_states_counts_options_and_sources(sets, scans):
    contents = dict(rows_of(sets / "import", "Contents"))
    assert contents["prints"] == "4" and contents["fingers"] == "2" and contents["rejected files"] == "2"
    assert contents["canvas"] == "96 x 96 pixels (12.2 mm)"
    text = (sets / "import" / "README.md").read_text()
    assert "`fingerprint-accel import` of `ann's scans`" in text
    rejected = [json.loads(line)["reason"] for line in (sets / "import" / "rejected.jsonl").read_text().splitlines()]
    assert text.count(": 1\n") == len(rejected) == 2
    options = dict(rows_of(sets / "import", "How it was made"))
    expected = {"layout": "`fvc`", "ppi": "400", "encoding": "`lz4`", "seed": "0", "enhance": "no", "nfiq2": "no"}
    assert expected.items() <= options.items()
    assert str(scans.parent) not in text, "folders of the user stay private"
    assert dict(rows_of(sets / "merge", "How it was made"))["seed"] == "9"
    assert "of `import`, `synth`" in (sets / "merge" / "README.md").read_text()
    assert "rejected files" not in dict(rows_of(sets / "merge", "Contents"))
    made = json.loads((sets / "synth" / "synthesis.json").read_text())
    assert dict(rows_of(sets / "synth", "How it was made"))["fingers"] == str(made["fingers"])
    assert f"torch {made['torch']}" in (sets / "synth" / "README.md").read_text()


def test_it_warns_of_personal_data(sets):
    for verb, words in (
        ("import", "identify people"),
        ("merge", "identify people"),
        ("synth", "All prints are synthetic"),
    ):
        text = (sets / verb / "README.md").read_text()
        assert "Fingerprints are personal data" in text
        assert words in text


def test_a_merge_of_synthetic_prints_is_synthetic(sets, tmp_path):
    merge([sets / "synth"], tmp_path / "out", **QUIET)
    assert "synthetic" in facts_of(tmp_path / "out")["tags"]
    assert "All prints are synthetic" in (tmp_path / "out" / "README.md").read_text()


def test_it_does_not_depend_on_workers_or_folders(scans, sets, tmp_path):
    shutil.copytree(scans, tmp_path / "elsewhere" / scans.name)
    import_dataset(
        tmp_path / "elsewhere" / scans.name, tmp_path / "out", "fvc", 400, encoding="lz4", workers=2, progress=False,
        **SMALL,
    )  # fmt: skip
    assert (tmp_path / "out" / "README.md").read_bytes() == (sets / "import" / "README.md").read_bytes()


def test_a_folder_with_a_card_is_recognised_verified_and_replaced(scans, sets, tmp_path, capsys):
    shutil.copytree(sets / "import", tmp_path / "set")
    check_folder(tmp_path / "set", DATASET)
    files = len(list((tmp_path / "set").iterdir()))
    assert verify(tmp_path / "set", progress=False)[0] == files - 1, "all but the description"
    (tmp_path / "set" / "README.md").write_text("edited")
    assert verify(tmp_path / "set", progress=False)[0] == files - 2, "the card may be edited"
    note = (
        f"note: {tmp_path / 'set' / 'README.md'}: differs from its sha256; restore it from a copy unless you edited it"
    )
    assert capsys.readouterr().err == f"{note}\n"
    import_dataset(scans, tmp_path / "set", "fvc", 500, overwrite=True, **SMALL, **QUIET)
    assert (tmp_path / "set" / "README.md").read_text().startswith("---\n")
    (tmp_path / "set" / "README.md").unlink()
    assert open_dataset(tmp_path / "set").info.prints == 4
