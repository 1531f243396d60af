"""Searches for a person by several prints, against plain loops over all references."""

from types import SimpleNamespace

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import approximate, person_search
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_parts import Known
from fingerprint_accel.extraction.person_search import Probes, find_persons, table
from fingerprint_accel.extraction.search import find

DIMS, PERSONS, POSITIONS = 32, 40, (1, 2, 7)
EXTRACTOR = SimpleNamespace(device="cpu")  # all that a search needs of an extractor


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def noisy(centres, seed, noise=1.0):
    other = np.random.default_rng(seed).standard_normal(centres.shape)
    return unit(centres + noise * unit(other))


@pytest.fixture(scope="module")
def fingers():
    """Centres of the fingers (PERSONS, positions, DIMS)."""
    return unit(np.random.default_rng(0).standard_normal((PERSONS, len(POSITIONS), DIMS)))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, fingers):
    """References of persons: some fingers are missing, some have two references or an unknown position."""
    made = Gallery.create(tmp_path_factory.mktemp("gallery") / "known", DIMS, "tests")
    vectors, known, draws = [], [], np.random.default_rng(1)
    for person in range(PERSONS):
        for place, position in enumerate(POSITIONS):
            for number in range(draws.integers(0, 3) if person else 1):
                stated = position if draws.random() < 0.7 or not person else 0
                name = f"{person}-{position}-{number}"
                known.append(Known(name, f"person {person}" if person % 7 else "", stated))
                vectors.append(noisy(fingers[person, place], [2, person, place, number]))
    made.append(np.stack(vectors), known)
    return made


def by_loops(gallery, probes):
    """Name and fused score of each person, best first."""
    rows = np.arange(len(gallery))
    known, vectors = gallery.known(rows), gallery.vectors(rows)
    best = {}
    for number, (poses, position) in enumerate(zip(probes.embeddings, probes.positions, strict=True)):
        finger = position or f"unknown {number}"
        for each, vector in zip(known, vectors, strict=True):
            if not position or each.position in (0, position):
                score = max(float(vector @ pose) for pose in np.atleast_2d(poses))
                of_probe = best.setdefault(each.person or each.name, {}).setdefault(finger, {})
                of_probe[number] = max(of_probe.get(number, -1.0), score)
    fused = {}
    for name, of_finger in best.items():
        means = [np.mean(list(each.values())) for each in of_finger.values()]
        fused[name] = sum(means) / len(means) ** 0.5
    return sorted(fused.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("candidates", [1000, 12])
@pytest.mark.parametrize("positions", [(1, 2, 7), (7, 7, 0), (0, 0)], ids=str)
def test_the_fused_scores_are_those_of_plain_loops(gallery, fingers, monkeypatch, positions, candidates):
    monkeypatch.setattr(person_search, "CANDIDATES", candidates)
    places = [POSITIONS.index(position) if position else 1 for position in positions]
    poses = np.stack([noisy(fingers[0, place], [3, place, each], 0.7) for each, place in enumerate(places)])
    for embeddings in (poses, np.stack([poses, noisy(poses, 4, 0.3)], axis=1)):
        probes = Probes(embeddings, list(positions))
        found, codes, told = find_persons(EXTRACTOR, gallery, probes, 5)
        wanted = by_loops(gallery, probes)[: 5 if candidates > 12 else 1]
        assert [each.person for each in found][: len(wanted)] == [name for name, _ in wanted]
        np.testing.assert_allclose([each.score for each in found][: len(wanted)], [s for _, s in wanted], atol=1e-5)
        assert codes == {(1, 2, 7): [1, 2, 7], (7, 7, 0): [7, 0], (0, 0): [0, 0]}[positions]
    assert told[0].startswith(f"{len(positions)} probes compared with {len(gallery)} prints in ")


def test_persons_without_a_finger_and_the_table(gallery, fingers):
    probes = Probes(noisy(fingers[1], 5, 0.7), list(POSITIONS))
    found, codes, _ = find_persons(EXTRACTOR, gallery, probes, 100)
    lines = table(found, codes).splitlines()
    assert lines[0].split() == ["rank", "score", "fingers", "R1", "R2", "L2", "person"]
    counts = [int((~np.isnan(each.fingers)).sum()) for each in found]
    assert set(counts) == {1, 2, 3}
    for line, each, count in zip(lines[1:], found, counts, strict=True):
        cells = line.split(maxsplit=6)
        assert cells[1:3] == [f"{each.score:.3f}", str(count)]
        assert cells[6] == each.person
        assert cells[3:6].count("-") == 3 - count


def test_a_person_alone_and_positions_that_nobody_has(gallery, fingers, capsys):
    probes = Probes(noisy(fingers[2], 6, 0.7), list(POSITIONS))
    (found,), _, _ = find_persons(EXTRACTOR, gallery, probes, 3, person="person 2")
    assert found.person == "person 2"
    with pytest.raises(UserError, match="no print of person nobody and finger position 1 "):
        find_persons(EXTRACTOR, gallery, probes, 3, person="nobody")
    with pytest.raises(UserError, match="--top 0: must be at least 1"):
        find_persons(EXTRACTOR, gallery, probes, 0)


def test_a_print_is_not_the_person_of_the_same_name(tmp_path, fingers):
    gallery = Gallery.create(tmp_path / "known", DIMS, "tests")
    gallery.append(fingers[:2, 0], [Known("of 101", "101", 1), Known("101")])
    found, _, _ = find_persons(EXTRACTOR, gallery, Probes(fingers[:1, 0], [0]), 3)
    assert [each.person for each in found] == ["101", "101"]
    np.testing.assert_allclose([each.score for each in found], [1, fingers[0, 0] @ fingers[1, 0]], atol=1e-6)


def test_an_index_that_finds_too_little_names_nobody_else(gallery, monkeypatch):
    """It visits one of several cells, and fills its results with the first print of the gallery."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "FEWEST_CELLS", 1)
    monkeypatch.setattr(approximate, "SHARE_OF_CELLS", 1000)
    monkeypatch.setattr(approximate, "REFERENCES_PER_CELL", 10)
    extractor = SimpleNamespace(device="cpu", notes={}, search_poses=(), embed_to_compare=lambda probes, *_: probes[0])
    shown, enrolled = 0, 0
    for name in ("person 2", "person 3", "person 4", "person 5"):
        own = gallery.vectors(gallery.of_persons([name]))
        found, _, _ = find_persons(EXTRACTOR, gallery, Probes(own[:1], [0]), 3, True, name)
        assert [each.person for each in found] == [name]
        _, known, _ = find(extractor, gallery, own[:1], 500, 10, True, 0, name)
        assert {each.person for each in known} == {name}
        shown, enrolled = shown + len(known), enrolled + len(own)
    assert 4 <= shown < enrolled
