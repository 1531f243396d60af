"""What is known of the prints of a gallery, and that a deleted person is gone from every byte of it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fingerprint_accel.cli.gallery import remove, search
from fingerprint_accel.durable import draft_of, file_sha256
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import gallery_files
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_files import FACTS
from fingerprint_accel.extraction.gallery_parts import Known, as_facts
from fingerprint_accel.extraction.verifying import verify
from fingerprint_accel.outputs import exclusive_lock

DIMS = 16
ANNA = ["scans/annas-0.png", "scans/annas-1.png", "cards/9.an2#3-07"]


def unit(count, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, DIMS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def people():
    """Three enrolments of (templates, prints); Anna's prints lie in the first two, and the second holds nobody else."""
    first = [Known(ANNA[0], "Anna Zoë", 7, "disk/a.png"), *(Known(f"b{i}", "Ben", 2 + i) for i in range(50))]
    second = [Known(name, "Anna Zoë", 0, f"disk/{name}") for name in ANNA[1:]]
    third = [Known(f"c{i}") for i in range(30)]
    return [(unit(len(prints), seed), prints) for seed, prints in enumerate((first, second, third))]


@pytest.fixture
def folder(tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", DIMS, "tests")
    for vectors, prints in people():
        gallery.append(vectors, prints)
    return tmp_path / "gallery"


def test_words_that_are_not_utf8_are_refused(folder):
    word, probe = os.fsdecode(b"Zo\xff"), Path("missing.png")
    for call in (
        lambda: remove(str(folder), person=word),
        lambda: remove(str(folder), name=("b1", word)),
        lambda: search(str(folder), [probe], person=word),
    ):
        with pytest.raises(UserError, match=r"^--(person|name) Zo\ufffd: is not UTF-8; copy the text that `search`"):
            call()


def everything(folder):
    return b"\n".join(str(path).encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def traces(content):
    """What of Anna is in some bytes: her name, names and sources of her prints, any eight bytes of her templates."""
    (first, _), (second, _), _ = people()
    words = ["Anna", "Zoë", "annas", "9.an2", "disk"]
    templates = [vector.tobytes() for vector in (first[0], *second)]
    parts = [template[start : start + 8] for template in templates for start in range(0, 4 * DIMS, 8)]
    return [word for word in words if word.encode() in content] + [part for part in parts if part in content]


def test_a_person_is_gone_from_every_byte(folder, capsys):
    faiss = pytest.importorskip("faiss")
    from fingerprint_accel.extraction.approximate import ApproximateSearch

    assert faiss
    ApproximateSearch(Gallery(folder))
    draft_of(folder / "part-000009").write_bytes(b"of a killed enrolment: Anna" + people()[0][0][0].tobytes())
    assert len(traces(everything(folder))) == 5 + 3 * DIMS // 2
    remove(folder, person="Anna Zoë")
    assert capsys.readouterr().out == f"{folder}: 3 prints deleted, 80 left\n"
    assert traces(everything(folder)) == []
    assert sorted(path.name[:11] for path in folder.iterdir()) == ["gallery.jso", "part-000000", "part-000002"]
    gallery = Gallery(folder)
    (first, prints), _, (third, others) = people()
    assert gallery.known(np.arange(80)) == prints[1:] + others
    np.testing.assert_array_equal(gallery.vectors(np.arange(80)), np.concatenate([first[1:], third]))
    assert ApproximateSearch(gallery).added == 80
    assert traces(everything(folder)) == []
    assert verify(folder, progress=False)[0] == 3, "two files of prints and the index"


def test_single_prints_are_deleted_by_name(folder):
    assert Gallery(folder).remove(names=[ANNA[0], "c7"]) == 2
    assert b"annas-0" not in everything(folder)
    assert len(Gallery(folder)) == 81
    with pytest.raises(UserError, match="no print of name c7, c8x is enrolled"):
        Gallery(folder).remove(names=["c7", "c8", "c8x"])
    assert len(Gallery(folder)) == 81, "all or none"
    with pytest.raises(UserError, match="no print of person Carl is enrolled"):
        Gallery(folder).remove(person="Carl")
    for mistake in ({}, {"person": "Ben", "name": ("c8",)}):
        with pytest.raises(UserError, match="give either --person or --name"):
            remove(folder, **mistake)


def test_the_last_print_leaves_an_empty_gallery(tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", DIMS, "tests")
    gallery.append(unit(1), ["only"])
    assert gallery.remove(names=["only"]) == 1
    assert [path.name for path in gallery.folder.iterdir()] == [FACTS]
    assert gallery.append(unit(1), ["only"]) == 1


def test_a_name_typed_otherwise_is_the_same(folder):
    assert Gallery(folder).remove(person="Anna Zoe\u0308") == 3


STEPS = [(os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "unlink")]


def killed_at(step, act):
    """Does something in a process of its own that ends, without any tidying, before its `step`th operation on files;
    returns whether it came to that."""
    child = os.fork()
    if not child:
        count = 0

        def counted(operation):
            def run(*arguments, **named):
                nonlocal count
                count += 1
                if count == step:
                    os._exit(9)
                return operation(*arguments, **named)

            return run

        try:
            for owner, name in STEPS:
                setattr(owner, name, counted(getattr(owner, name)))
            act()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def outcomes(folder, act, known):
    """What a gallery holds after a kill before each operation of `act`, in order of the operations."""
    found, step = [], 1
    while True:
        copy = folder.with_name(f"killed-{step}")
        shutil.copytree(folder, copy)
        killed = killed_at(step, lambda copy=copy: act(Gallery(copy)))
        gallery = Gallery(copy)
        found.append(known(gallery))
        assert not (copy / gallery_files.CHANGES).exists(), "whoever opens it completes it"
        if not killed:
            return found
        act(gallery)
        assert known(Gallery(copy)) == known(gallery), "the same command goes on"
        step += 1


def test_a_killed_removal_leaves_all_or_nothing(folder):
    def known(gallery):
        assert len(gallery) == 80 or traces(everything(gallery.folder))
        assert len(gallery) == 83 or not traces(everything(gallery.folder))
        return len(gallery)

    def act(gallery):
        if len(gallery) == 83:
            gallery.remove(person="Anna Zoë")

    sizes = outcomes(folder, act, known)
    assert len(sizes) > 8
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {83, 80}


def test_a_killed_replacement_leaves_one_of_the_two(folder):
    new = unit(1, seed=9)

    def known(gallery):
        assert len(gallery) == 83
        names = gallery.names(np.arange(83))
        assert names.count("b3") == 1
        return bool(gallery.vectors(np.array([names.index("b3")]))[0] @ new[0] > 0.999)

    found = outcomes(folder, lambda gallery: gallery.append(new, ["b3"], replace=True), known)
    assert found == sorted(found)
    assert set(found) == {False, True}


def test_one_command_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(gallery_files, "PATIENCE", 0.1)
    gallery = Gallery(folder)
    with (
        exclusive_lock(folder / ".lock", "taken"),
        pytest.raises(UserError, match="another command is changing it; try again later"),
    ):
        gallery.remove(person="Ben")
    assert len(Gallery(folder)) == 83


def test_an_index_of_before_does_not_come_back(folder):
    pytest.importorskip("faiss")
    from fingerprint_accel.extraction.approximate import ApproximateSearch

    slow = Gallery(folder)
    Gallery(folder).remove(person="Anna Zoë")
    with pytest.raises(UserError, match="prints were deleted during the search; search again"):
        ApproximateSearch(slow)
    assert not list(folder.glob("*index*"))
    assert traces(everything(folder)) == []


def test_only_prints_of_a_position_and_of_none_are_compared(folder):
    gallery, probes = Gallery(folder), unit(5, seed=11)
    among = gallery.selected(7)
    every = gallery.known(np.arange(83))
    assert among.tolist() == [known.position in (0, 7) for known in every]
    scores = np.where(among, probes @ gallery.vectors(np.arange(83)).T, -np.inf)
    wanted = np.argsort(-scores, axis=1)[:, :4]
    for hypotheses in (probes, probes[:, None]):
        np.testing.assert_array_equal(gallery.search(hypotheses, 4, among=among).row, wanted)
    count = int(among.sum())
    assert (count, gallery.search(probes, 100, among=among).row.shape) == (34, (5, 34))
    pytest.importorskip("faiss")
    from fingerprint_accel.extraction.approximate import ApproximateSearch

    np.testing.assert_array_equal(ApproximateSearch(gallery).search(probes, 4, among).row, wanted)
    gallery.remove(names=[known.name for known in every if known.position in (0, 7)])
    with pytest.raises(
        UserError, match=r"no print of finger position 7 \(left_index\) is enrolled, and none of unknown"
    ):
        gallery.selected(7)


def test_galleries_of_before_are_read(tmp_path):
    """Files with names alone."""
    folder, vectors = tmp_path / "gallery", unit(3)
    gallery = Gallery.create(folder, DIMS, "tests")
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMS)
    batch = pa.record_batch([flat, pa.array(["a", "b", "c"])], names=["embedding", "name"])
    path = folder / "part"
    with pa.ipc.new_file(
        str(path), batch.schema.with_metadata({"gallery": json.dumps(as_facts(DIMS, "tests", 0))})
    ) as writer:
        writer.write_batch(batch)
    path.rename(folder / f"part-000000-{file_sha256(path)[:16]}.arrow")
    gallery = Gallery(folder)
    assert gallery.known(np.arange(3)) == [Known("a"), Known("b"), Known("c")]
    assert gallery.selected(7).all()
    gallery.append(unit(1, seed=1), [Known("d", "Dora", 7)])
    assert gallery.selected(2).tolist() == [True, True, True, False]
    named = [Known("a", "Anna"), Known("b"), Known("c")]
    assert gallery.append(vectors, named) == 0
    assert gallery.append(vectors, named, replace=True) == 1
    assert gallery.append(vectors, named, replace=True) == 0
    assert sorted(gallery.known(np.arange(4))) == [*named, Known("d", "Dora", 7)]
    assert gallery.remove(names=["b"]) == 1
    assert gallery.remove(person="Dora") == 1
    assert sorted(gallery.names(np.arange(2))) == ["a", "c"]
