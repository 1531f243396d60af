"""What `enroll` takes, what is kept of it, and what `search` tells of it; with a network that has learned nothing."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from record_files import transaction, type_2, type_14
from slap_images import slap

from fingerprint_accel.cli.extraction import compare, extract
from fingerprint_accel.cli.gallery import enroll, remove, search
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.embeddings_folder import open_embeddings
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.model_notes import LEAST_AREA
from fingerprint_accel.extraction.search import position_code


@pytest.fixture(scope="module")
def model(tmp_path_factory, prints, spread_out):
    torch.manual_seed(0)
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    extractor = FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
    shards = open_dataset(prints)
    spread_out(extractor, np.stack([shards.image(row) for row in range(16)]))
    folder = tmp_path_factory.mktemp("model") / "tiny"
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(prints):
    shards = open_dataset(prints)
    return [shards.image(row) for row in range(12)]


@pytest.fixture
def cupboard(tmp_path, pictures):
    """Prints as somebody keeps them: images, a card with a palm on it, a list, a damaged file, and what is no print."""
    folder = tmp_path / "scans"
    (folder / "anna").mkdir(parents=True)
    for number, name in enumerate(("anna/1.png", "anna/2.png", "ben-left_ring-1.png")):
        Image.fromarray(pictures[number]).save(folder / name)
    card = [type_14(4 + i, pictures[4 + i], position, "PNG", per_unit=300) for i, position in enumerate((2, 7, 20))]
    (folder / "card.an2").write_bytes(transaction(type_2(f018="DOE, Jane"), *card))
    (folder / "damaged.png").write_bytes((folder / "anna/1.png").read_bytes()[:900])
    (folder / "notes.txt").write_text("mine")
    (folder / "Thumbs.db").write_bytes(b"x")
    for number, name in enumerate(("x.png", "y.png"), start=8):
        Image.fromarray(pictures[number]).save(tmp_path / name)
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "finger", "impression", "position", "person"])
        rows.writerows([["x.png", "carl-thumb", 0, "left_thumb", "Carl"], ["y.png", "carl-thumb", 1, "", ""]])
    return folder


def known_in(folder):
    gallery = Gallery(folder)
    return {known.name: known[1:4] for known in gallery.known(np.arange(len(gallery)))}


def test_any_mixture_is_enrolled_and_what_is_known_is_kept(model, cupboard, prints, tmp_path, capsys):
    gallery, listed = tmp_path / "known", tmp_path / "list.csv"
    enroll(gallery, [cupboard, listed, prints, tmp_path / "x.png"], model, 300, key=("2.018",), skip_bad=True)
    out, err = capsys.readouterr()
    told = "103 prints enrolled (1 already enrolled), 103 in the gallery; 1 skipped; 3 other files or records ignored"
    assert out == f"{gallery}: {told}\n"
    skipped = [line for line in err.replace("\r", "\n").splitlines() if "skipped" in line]
    assert len(skipped) == 1
    assert f"skipped: {cupboard / 'damaged.png'}: " in skipped[0]
    known, shards = known_in(gallery), open_dataset(prints)
    key, source = shards.table["finger_key"][5].as_py(), shards.table["source"][5].as_py()
    for name in ("anna/1.png", "anna/2.png", "ben-left_ring-1.png"):
        assert known[f"{cupboard}/{name}"] == ("", 0, f"{cupboard}/{name}")
    for number, position in ((3, 2), (4, 7)):
        name = f"{cupboard}/card.an2#{number}"
        assert known[name] == ("DOE, Jane", position, name)
    assert known[f"{tmp_path}/x.png"] == ("Carl", 6, f"{tmp_path}/x.png")
    assert known[f"{tmp_path}/y.png"] == ("", 0, f"{tmp_path}/y.png")
    assert known[f"{key}/{shards.impressions[5]}"] == ("", 0, source)


def test_the_first_bad_file_is_the_error_and_nothing_is_added(model, cupboard, tmp_path):
    gallery = tmp_path / "known"
    with pytest.raises(UserError, match=r"damaged.png: .*; --skip-bad enrols the others") as caught:
        enroll(gallery, [cupboard], model, 300)
    assert "\n" not in str(caught.value)
    assert not gallery.exists()
    for name in ("none", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"no image")
    for given, message in (("none", "none of the prints could be enrolled"), ("empty", "none of the prints")):
        with pytest.raises(UserError, match=message):
            enroll(gallery, [tmp_path / given], model, 300, skip_bad=True)
    assert not gallery.exists()


def test_names_tell_person_and_position(model, cupboard, tmp_path, capsys):
    gallery, pattern = tmp_path / "known", r"(?P<subject>[a-z]+)-(?P<position>[a-z_]+)-(?P<impression>\d+)"
    enroll(gallery, [cupboard / "ben-left_ring-1.png"], model, 300, names=pattern)
    enroll(gallery, [cupboard / "anna"], model, 300, person="anna")
    assert known_in(gallery) == {
        f"{cupboard}/{name}": (person, position, f"{cupboard}/{name}")
        for name, person, position in (
            ("ben-left_ring-1.png", "ben", 9), ("anna/1.png", "anna", 0), ("anna/2.png", "anna", 0),
        )
    }  # fmt: skip
    capsys.readouterr()
    search(gallery, [cupboard / "ben-left_ring-1.png"], model, 300, top=1)
    titles, found = capsys.readouterr().out.splitlines()[:2]
    assert titles.split() == ["rank", "similarity", "name", "person", "finger"]
    assert found.split() == ["1", "1.000", f"{cupboard}/ben-left_ring-1.png", "ben", "left", "ring"]
    remove(gallery, person="anna")
    assert list(known_in(gallery)) == [f"{cupboard}/ben-left_ring-1.png"]


def test_search_of_one_finger(model, cupboard, prints, tmp_path, capsys):
    gallery = tmp_path / "known"
    enroll(gallery, [cupboard / "card.an2", cupboard / "anna" / "1.png"], model, 300)
    card = f"{cupboard / 'card.an2'}"
    capsys.readouterr()
    search(gallery, [Path(f"{card}#3")], model, 300)
    best = capsys.readouterr().out.splitlines()[1]
    assert best.split()[2] == f"{card}#3"
    assert best.endswith("right index")
    for position in ("7", "left_index", "L2"):
        search(gallery, [Path(f"{card}#3")], model, 300, position=position)
        lines = capsys.readouterr().out.splitlines()
        assert sorted(line.split()[2] for line in lines[1:3]) == [f"{cupboard}/anna/1.png", f"{card}#4"]
        told = "compared with 2 of 3 prints (position left index or unknown) in "
        assert next(line for line in lines if line.startswith("compared")).startswith(told)
    search(gallery, [cupboard / "card.an2"], model, 300, key=("2.018",))  # both fingers of one person
    titles, first, *_ = capsys.readouterr().out.splitlines()
    assert titles.split() == ["rank", "score", "fingers", "R2", "L2", "person"]
    assert first.split() == ["1", "1.414", "2", "1.000", "1.000", "TCN42"]
    with pytest.raises(UserError, match="--position is for one probe; --names or the records state the fingers"):
        search(gallery, [cupboard / "card.an2"], model, 300, position="7")
    for text in ("13", "left_nose", "0", "99"):
        with pytest.raises(UserError, match=f"--position {text}: "):
            position_code(text)


def test_the_fingers_of_a_slap(model, tmp_path):
    """Of a record, which states the hand, and of an image, for which a csv does."""
    image, _ = slap(3)
    (tmp_path / "card.an2").write_bytes(transaction(type_2(), type_14(1, image, 13, "PNG")))
    Image.fromarray(image).save(tmp_path / "four.png")
    (tmp_path / "list.csv").write_text("path,finger,impression,position,person\nfour.png,eve,0,13,Eve\n")
    enroll(tmp_path / "known", [tmp_path / "card.an2", tmp_path / "list.csv"], model, 500)
    found = known_in(tmp_path / "known")
    assert [facts[:2] for facts in found.values()] == [
        *(("TCN42", position) for position in (2, 3, 4, 5)),
        *(("Eve", position) for position in (2, 3, 4, 5)),
    ]
    assert list(found)[::4] == [f"{tmp_path}/card.an2#3-02", f"{tmp_path}/four.png-02"]


def test_the_same_name_again(model, cupboard, pictures, tmp_path, capsys):
    gallery, image = tmp_path / "known", cupboard / "anna" / "1.png"
    enroll(gallery, [cupboard / "anna"], model, 300)
    Image.fromarray(pictures[9]).save(image)
    with pytest.raises(UserError, match=f"{image}: already enrolled from another image; --replace"):
        enroll(gallery, [cupboard / "anna"], model, 300)
    assert len(Gallery(gallery)) == 2
    capsys.readouterr()
    enroll(gallery, [cupboard / "anna"], model, 300, replace=True)
    assert "1 prints enrolled (1 replaced, 1 already enrolled), 2 in the gallery" in capsys.readouterr().out


def test_fused_templates_keep_what_all_their_prints_say(model, cupboard, tmp_path):
    enroll(tmp_path / "known", [tmp_path / "list.csv", cupboard / "anna"], model, 300, fuse=True)
    anna = f"{cupboard}/anna"
    assert known_in(tmp_path / "known") == {
        "carl-thumb": ("", 0, f"{tmp_path}/x.png + {tmp_path}/y.png"),
        anna: ("", 0, f"{anna}/1.png + {anna}/2.png"),
    }


@pytest.fixture
def patch(pictures, tmp_path):
    """4.2 mm of the middle of a print, and a whole one."""
    small, whole = tmp_path / "patches" / "patch.png", tmp_path / "patches" / "whole.png"
    small.parent.mkdir()
    Image.fromarray(np.ascontiguousarray(pictures[0][135:185, 135:185])).save(small)
    Image.fromarray(pictures[0]).save(whole)
    return small, whole


def test_a_patch_is_too_small_for_the_bundled_models(patch, prints, tmp_path, capsys):
    small, whole = patch
    gallery = tmp_path / "known"
    for name in ("small", "base"):
        message = rf"^{small}: too small: \d+ mm\^2 of ridges, the model needs about 50"
        extractor = FingerprintExtractor.from_pretrained(name)
        for act in (
            lambda name=name: compare(whole, small, name, 300),
            lambda name=name: enroll(gallery, [whole, small], name, 300),
            lambda extractor=extractor: extractor.compare(whole, small, 300),
            lambda extractor=extractor: extractor.on_canvas(small, 300),
        ):
            with pytest.raises(UserError, match=message):
                act()
    assert not gallery.exists()
    capsys.readouterr()
    enroll(gallery, [whole, small], "small", 300, skip_bad=True)
    out, err = capsys.readouterr()
    assert out == f"{gallery}: 1 prints enrolled, 1 in the gallery; 1 skipped\n"
    assert f"skipped: {small}: too small: " in err
    with pytest.raises(UserError, match="too small"):
        search(gallery, [small], "small", 300)


def test_a_patch_is_imported_and_extracted(patch, tmp_path):
    small, whole = patch
    extract(small.parent, tmp_path / "embeddings", "small", 300)
    found = open_embeddings(tmp_path / "embeddings")
    assert found.quality.tolist() == pytest.approx(sorted(found.quality)), "the patch comes first, and is worse"
    extractor = FingerprintExtractor.from_pretrained("small")
    templates = extractor.extract([small, whole], 300, progress=False)
    np.testing.assert_allclose(templates[0] @ templates[0], 1, atol=1e-5)
    import_dataset(
        small.parent, tmp_path / "set", "folders", names="(?P<finger>.+)", workers=1, progress=False, ppi=300
    )
    assert len(open_dataset(tmp_path / "set")) == 2
    with pytest.raises(UserError, match=r"set: patch/0: too small: "):
        enroll(tmp_path / "known", [tmp_path / "set"], "small")


def test_other_models_take_prints_of_any_size(model, patch):
    extractor = FingerprintExtractor.from_pretrained(model)
    assert LEAST_AREA not in extractor.notes
    assert -1 <= extractor.compare(*patch, 300) <= 1
    extractor.notes[LEAST_AREA] = 10_000
    with pytest.raises(UserError, match="the model needs about 10000"):
        extractor.compare(*patch, 300)
