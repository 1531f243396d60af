"""Galleries that a kill, a disk or a stranger has left: each is opened, gone on with, or named in one line."""

import hashlib
import json
import os

import numpy as np
import pyarrow as pa
import pytest

from fingerprint_accel.durable import json_text
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import gallery_files
from fingerprint_accel.extraction.approximate import ApproximateSearch
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_parts import Known, is_intact
from fingerprint_accel.extraction.verifying import verify

DIMS = 16


def unit(count, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, DIMS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path):
    """A gallery of two files with five prints each."""
    gallery = Gallery.create(tmp_path / "gallery", DIMS, "tests")
    for go in range(2):
        gallery.append(unit(5, go), [Known(f"{go}-{i}", "Anna", i, "disk/a.png") for i in range(5)])
    return tmp_path / "gallery"


def parts(folder):
    return sorted(folder.glob("part-*"))


def rewritten(folder, change, **metadata):
    """Changes the first file of prints, and gives it the name that fits its content."""
    (path, *_) = parts(folder)
    batch = pa.ipc.open_file(path).get_batch(0)
    columns = change({name: batch[name] for name in batch.schema.names})
    stated = {**batch.schema.metadata, **{name.encode(): value for name, value in metadata.items()}}
    changed = pa.RecordBatch.from_pydict(columns).replace_schema_metadata(stated)
    path.unlink()
    with pa.ipc.new_file(str(folder / "new"), changed.schema) as writer:
        writer.write_batch(changed)
    (folder / "gallery.json").unlink()  # it lists the file by its old name
    digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:16]
    return (folder / "new").rename(folder / f"part-000000-{digest}.arrow")


LEFT = {
    "lock": [".lock"],
    "empty description": ["gallery.json"],
    "draft of the description": [".lock", ".gallery.json.tmp"],
    "draft of a part": [".host-1-2-part-000000.tmp"],
    "of the system": [".DS_Store"],
}


@pytest.mark.parametrize("names", LEFT.values(), ids=LEFT)
def test_an_empty_gallery_is_gone_on_with(tmp_path, names):
    """What a killed first enrolment, or a crash of the machine, can leave: all of it refused for ever before."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    gallery = Gallery.open_or_create(folder, DIMS, "tests")
    assert gallery.append(unit(2), ["a", "b"]) == 2
    assert gallery.append(unit(2), ["a", "b"]) == 0
    assert len(Gallery(folder)) == 2
    assert not list(folder.glob("*part*.tmp")), "templates of the killed enrolment are gone"


def test_an_empty_gallery_takes_another_model(tmp_path):
    Gallery.create(tmp_path / "gallery", DIMS, "first")
    gallery = Gallery.open_or_create(tmp_path / "gallery", 8, "second")
    assert (gallery.model, gallery.dims) == ("second", 8)
    gallery.append(np.eye(8, dtype=np.float32)[:1], ["a"])
    with pytest.raises(UserError, match=r"filled by another model \(second, not first\)"):
        Gallery.open_or_create(tmp_path / "gallery", DIMS, "first")


def test_a_gallery_that_another_model_has_filled_in_the_meantime(tmp_path):
    slow = Gallery.create(tmp_path / "gallery", DIMS, "first")
    Gallery.open_or_create(tmp_path / "gallery", DIMS, "second").append(unit(1), ["a"])
    with pytest.raises(UserError, match="was filled by another model in the meantime"):
        slow.append(unit(1, 1), ["b"])


def test_files_of_somebody_else_are_not_replaced(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "gallery.json").write_text('{"pictures": ["a", "b"]}')
    with pytest.raises(UserError, match=r"gallery\.json: format_version is missing; delete it"):
        Gallery.open_or_create(folder, DIMS, "tests")
    (folder / "holiday.jpg").touch()
    with pytest.raises(UserError, match="exists already and is not a gallery folder"):
        Gallery.open_or_create(folder, DIMS, "tests")
    assert json.loads((folder / "gallery.json").read_text()) == {"pictures": ["a", "b"]}


@pytest.mark.parametrize("replace", [False, True])
def test_an_enrolment_killed_at_any_operation_enrols_once(folder, monkeypatch, replace):
    """Both with nothing and with something to replace."""
    new, prints = unit(3, 9), [Known("0-1" if replace else "a"), Known("b"), Known("c")]
    step, killed = 0, True
    while killed:
        step += 1
        copy = folder.with_name(f"copy-{step}")
        gallery = Gallery.open_or_create(copy, DIMS, "tests")
        gallery.append(unit(5), [f"0-{i}" for i in range(5)])
        with monkeypatch.context() as patch:
            killed = _dies_at(step, patch, lambda gallery=gallery: gallery.append(new, prints, replace))
        again = Gallery.open_or_create(copy, DIMS, "tests")
        added = again.append(new, prints, replace)
        assert added in (0, 3)
        assert again.append(new, prints, replace) == 0
        names = again.names(np.arange(len(again)))
        assert sorted(names) == sorted({*(f"0-{i}" for i in range(5)), *(each.name for each in prints)})
        assert verify(copy, progress=False)[0] == len(parts(copy))
    assert step > 4


class _KilledError(BaseException):
    """Not caught by anything that tidies up after errors."""


def _dies_at(step, patch, act):
    """Stops `act` at its `step`th operation on files, as a kill would; returns whether it came to that."""
    count = 0

    def dying(operation):
        def run(*arguments, **named):
            nonlocal count
            count += 1
            if count >= step:  # what would tidy up fails too
                raise _KilledError
            return operation(*arguments, **named)

        return run

    for owner, name in ((os, "fsync"), (gallery_files.Path, "rename"), (gallery_files.Path, "unlink")):
        patch.setattr(owner, name, dying(getattr(owner, name)))
    try:
        act()
    except _KilledError:
        return True
    return False


def test_a_gallery_without_its_description_is_verified(folder):
    (folder / "gallery.json").unlink()
    assert verify(folder, progress=False)[0] == 2
    assert len(Gallery(folder)) == 10


def test_a_changed_value_of_the_description_is_repaired(folder):
    description = folder / "gallery.json"
    whole = description.read_text()
    changed = [whole.replace('"dims": 16', f'"dims": {value}') for value in ("1e99", "NaN", "null", "17")]
    for damaged in (whole[:20], "", "{}", "[" * 9999, *changed):
        description.write_text(damaged)
        assert Gallery(folder).dims == DIMS
    with pytest.raises(UserError, match=r"gallery\.json: damaged \(differs from its checksum.*; delete it"):
        verify(folder, progress=False)
    Gallery(folder).append(unit(1, 7), ["new"])
    facts = json.loads(description.read_text())
    assert facts["parts"] == [path.name for path in parts(folder)]
    assert {**facts, "parts": "", "checksum": ""} == {**json.loads(whole), "parts": "", "checksum": ""}


def test_a_description_of_before_that_contradicts_the_prints(folder):
    """Earlier versions wrote no checksum."""
    facts = json.loads((folder / "gallery.json").read_text())
    del facts["checksum"]
    (folder / "gallery.json").write_text(json.dumps(facts))
    assert len(Gallery(folder)) == 10
    (folder / "gallery.json").write_text(json.dumps({**facts, "dims": 8}))
    with pytest.raises(UserError, match=r"gallery\.json: differs from its copy in the files of prints; delete it"):
        Gallery(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"new": {}, "gone": ["../victim"]}, "must list files of prints in this folder"),
        ({"new": {"../victim": "part-000007-0123456789abcdef.arrow"}, "gone": []}, "must list files of prints"),
        ({"new": {".a.tmp": "../part-000007-0123456789abcdef.arrow"}, "gone": []}, "must list files of prints"),
        ({"new": {}, "gone": ["gallery.json"]}, "must list files of prints"),
        ({"new": [], "gone": []}, "new must be an object"),
        ({"new": {}}, "must list files of prints"),
        ({"new": {".a.tmp": None}, "gone": []}, "must list files of prints"),
        ({"new": {".a.tmp": "part-000007-0123456789abcdef.arrow"}, "gone": []}, r"\.a\.tmp is missing; restore"),
        (None, "damaged"),
    ],
)
def test_changes_that_name_anything_else_are_refused(folder, values, message):
    (folder.parent / "victim").write_text("mine")
    (folder / "changes.json").write_text("" if values is None else json_text(values))
    with pytest.raises(UserError, match=rf"changes\.json: .*{message}"):
        Gallery(folder)
    assert (folder.parent / "victim").read_text() == "mine"
    assert len(parts(folder)) == 2


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_part_that_is_damaged_is_named(folder, size):
    (path, _) = parts(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match=rf"{path}: differs from its sha256; restore it from a copy, or delete it"):
        Gallery(folder)


def test_a_changed_bit_is_found_when_a_small_gallery_is_opened(folder, monkeypatch):
    (path, _) = parts(folder)
    data = bytearray(path.read_bytes())
    data[data.find(unit(5).tobytes()) + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path}: differs from its sha256"):
        Gallery(folder)
    monkeypatch.setattr(gallery_files, "MOST_COMPARED", 1000)  # as in a large one
    assert len(Gallery(folder)) == 10
    with pytest.raises(UserError, match=rf"{path}: differs from its sha256"):
        verify(folder, progress=False)


def _vectors(values):
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


CHANGES = {
    "another length": (
        lambda found: found | {"embedding": _vectors(unit(5)[:, :8])},
        "the column embedding has",
    ),
    "double": (
        lambda found: found | {"embedding": found["embedding"].cast(pa.list_(pa.float64(), DIMS))},
        "has the type",
    ),
    "null name": (lambda found: found | {"name": pa.array(["a", None, "c", "d", "e"])}, "the column name has missing"),
    "no name": (lambda found: found | {"name": pa.array(["a", "", "c", "d", "e"])}, "a print has no name"),
    "position -3": (lambda found: found | {"position": pa.array([-3] * 5, pa.int16())}, "a finger position is not"),
    "position 300": (lambda found: found | {"position": pa.array([300] * 5, pa.int16())}, "a finger position is not"),
    "not UTF-8": (lambda found: found | {"person": pa.array([b"\xff"] * 5).cast(pa.string(), safe=False)}, "UTF"),
    "integers": (lambda found: found | {"person": pa.array([1] * 5)}, "the column person has the type int64"),
    "no embedding": (lambda found: {"name": found["name"]}, "a column is missing"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_values_that_no_enrolment_writes_are_refused(folder, change, message):
    """With a name that fits the content, as in a gallery from a stranger."""
    path = rewritten(folder, change)
    assert is_intact(path)
    with pytest.raises(UserError, match=rf"{path}: damaged \(.*{message}.*\); restore it from a copy") as error:
        Gallery(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 5.0, -1e-3])
def test_embeddings_that_are_not_of_unit_length_are_never_answered(folder, value):
    vectors = unit(5)
    vectors[3, 2] = value
    path = rewritten(folder, lambda found: found | {"embedding": _vectors(vectors)})
    gallery = Gallery(folder)
    message = f"{path}: contains embeddings that are not finite and of unit length"
    for act in (
        lambda: gallery.search(unit(1, 4), 2),
        lambda: gallery.search(unit(4, 4)[None], 2),
        lambda: gallery.vectors(np.array([3])),
        lambda: ApproximateSearch(gallery),
    ):
        with pytest.raises(UserError, match=message):
            act()
    assert gallery.vectors(np.array([2])).shape == (1, DIMS)


@pytest.mark.parametrize("value", [np.nan, 3.0])
def test_such_embeddings_are_not_enrolled_and_not_searched_for(folder, value):
    gallery, wrong = Gallery(folder), unit(2, 5) * np.float32(value)
    with pytest.raises(UserError, match="not finite and of unit length; normalise them"):
        gallery.append(wrong, ["a", "b"])
    for probes in (wrong, wrong[None]):
        with pytest.raises(UserError, match="not finite and of unit length; normalise the probes"):
            gallery.search(probes)
    assert len(Gallery(folder)) == 10


def test_no_similarity_is_above_one(folder):
    gallery = Gallery(folder)
    every = gallery.vectors(np.arange(10))
    for probes in (every, np.stack([every, every], axis=1)):
        assert gallery.search(probes, 1).similarity.max() <= 1


def test_a_print_that_shows_no_cell_is_enrolled_once(tmp_path):
    """Its dense template is zero, so its cosine with itself is not 1."""
    gallery = Gallery.create(tmp_path / "gallery", DIMS, "tests", 4)
    assert gallery.append(np.zeros((1, DIMS), np.float32), ["blank"]) == 1
    assert gallery.append(np.zeros((1, DIMS), np.float32), ["blank"]) == 0


@pytest.mark.parametrize("known", [Known("a\udcff"), Known(""), Known("a", position=-1), Known("a", position=10**6)])
def test_records_that_cannot_be_kept_are_refused(folder, known):
    with pytest.raises(UserError, match="a print cannot be enrolled"):
        Gallery(folder).append(unit(1, 3), [known])
    assert len(Gallery(folder)) == 10


def test_a_part_of_another_gallery_is_named(folder, tmp_path):
    other = Gallery.create(tmp_path / "other", DIMS, "another model")
    other.append(unit(2, 6), ["x", "y"])
    (path,) = parts(tmp_path / "other")
    moved = path.rename(folder / path.name.replace("part-000000", "part-000009"))
    with pytest.raises(UserError, match=f"{moved}: belongs to another gallery; move it out of this folder"):
        Gallery(folder)


@pytest.mark.parametrize("name", ["part-000009-0123456789abcdef.arrow", "gallery.json", "changes.json"])
def test_a_pipe_does_not_hang(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == "gallery.json":
        assert len(Gallery(folder)) == 10, "the copy is read"
    else:
        with pytest.raises(UserError, match=f"{name}: "):
            Gallery(folder)


@pytest.fixture
def index(folder):
    pytest.importorskip("faiss")
    ApproximateSearch(Gallery(folder))
    return next(folder.glob("index-*"))


def test_the_index_is_verified(folder, index):
    assert is_intact(index)
    assert verify(folder, progress=False)[0] == 3
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(data)
    with pytest.raises(UserError, match=rf"{index}: differs from its sha256; delete it; the next `search --index`"):
        verify(folder, progress=False)


def test_a_damaged_index_is_built_again(folder, index, capsys):
    """FAISS reads beyond its memory, or asks for all of it, in such files; so they never reach it."""
    whole, probe = index.read_bytes(), unit(1, 8)
    wanted = ApproximateSearch(Gallery(folder)).search(probe, 3)
    chance = np.random.default_rng(0)
    for go in range(20):
        data = bytearray(whole)
        place = int(chance.integers(len(data) - 8))
        data[place : place + 8] = chance.bytes(8) if go % 2 else b"\xff" * 8
        index.unlink()  # a file that FAISS has mapped must not be cut
        index.write_bytes(data)
        search = ApproximateSearch(Gallery(folder))
        assert search.added == 10
        np.testing.assert_array_equal(search.search(probe, 3).row, wanted.row)
        assert f"{index}: damaged; the index is built again" in capsys.readouterr().err
        assert index.read_bytes() == whole


def test_an_index_of_before_is_built_again_without_a_word(folder, index, capsys):
    index.rename(folder / f"{index.stem[:-17]}.faiss")  # without the checksum of the file
    assert ApproximateSearch(Gallery(folder)).added == 10
    assert [path.name for path in folder.glob("index-*")] == [index.name]
    assert capsys.readouterr().err == ""


def test_enrolments_and_indexes_are_on_the_disk(tmp_path, synced):
    gallery = Gallery.create(tmp_path / "gallery", DIMS, "tests")
    gallery.append(unit(60), [str(number) for number in range(60)])
    ApproximateSearch(gallery)
    files = [path for path in gallery.folder.iterdir() if path.name != ".lock"]
    assert len(files) == 3
    assert [path for path in [gallery.folder, *files] if not synced(path)] == []
