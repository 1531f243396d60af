"""`enroll`, `search` and `remove` with a database print what they print with a folder."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.cli.extraction import demo
from fingerprint_accel.cli.gallery import enroll, remove, search
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import bulk, bulk_enrolment, enrolment
from fingerprint_accel.extraction.bulk import Options, extract_all
from fingerprint_accel.extraction.demo_server import PageServer, Upload
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.galleries import open_enrolled, open_or_create
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.untrusted import Fields

SHOWN = re.compile(r"postgresql://postgres@/prints_\d+")


@pytest.fixture(scope="module")
def made(prints, tmp_path_factory, spread_out):
    """Folder with a tiny model, four images, and embeddings of a dataset of 96 prints and of the images."""
    here, shards = tmp_path_factory.mktemp("made"), open_dataset(prints)
    torch.manual_seed(0)
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    extractor = FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
    spread_out(extractor, np.stack([shards.image(row) for row in range(24)]))
    extractor.save_pretrained(here / "tiny")
    (here / "scans").mkdir()
    for row in range(4):
        Image.fromarray(shards.image(24 * row)).save(here / "scans" / f"anna-left_index-{row}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "BATCHES_PER_SHARD", 2)  # six shards of 16 prints
        extract_all(prints, here / "embeddings", str(here / "tiny"), progress=False)
    extract_all(here / "scans", here / "of_scans", str(here / "tiny"), 300, progress=False)
    return here


def told(capsys, *galleries):
    """What was printed, without the places of galleries and times."""
    text = capsys.readouterr().out
    for gallery in galleries:
        text = text.replace(str(gallery), "GALLERY")
    return re.sub(r"in \d+ ms", "in T ms", SHOWN.sub("GALLERY", text))


NAMES = r"(?P<subject>[a-z]+)-(?P<position>[a-z_]+)-(?P<impression>[0-9]+)"


def test_the_verbs_print_the_same(made, database, tmp_path, capsys):
    model, scans, answers = str(made / "tiny"), sorted((made / "scans").iterdir()), []
    for gallery in (str(tmp_path / "known"), database):
        enroll(gallery, scans[:3], model, 300, names=NAMES)
        enroll(gallery, scans, model, 300, names=NAMES)
        enroll(gallery, embeddings=made / "embeddings")
        for options in ({}, {"position": "left_index"}, {"person": "anna", "position": "7"}):
            search(gallery, [scans[0]], model, 300, top=3, **options)
        search(gallery, scans[:3], model, 300, top=3, names=NAMES)
        remove(gallery, person="anna")
        remove(gallery, name=("synthetic-3-000003/1", "synthetic-3-000003/2"))
        with pytest.raises(UserError, match="no print of person anna is enrolled"):
            search(gallery, [scans[0]], model, 300, person="anna")
        answers.append(told(capsys, tmp_path / "known"))
    assert answers[0] == answers[1]
    assert "1 prints enrolled (3 already enrolled), 4 in the gallery" in answers[0]
    assert "GALLERY: 96 prints enrolled, 100 in the gallery" in answers[0]
    assert "compared with 4 of 100 prints (person anna, position left index or unknown) in T ms" in answers[0]
    assert re.search(r"rank +score +fingers +L2  person\n +1 +[.\d]+ +1 +[.\d]+  anna\n", answers[0])
    assert "3 probes compared with 100 prints in T ms\nno decision: thresholds hold for" in answers[0]
    assert answers[0].endswith("GALLERY: 4 prints deleted, 96 left\nGALLERY: 2 prints deleted, 94 left\n")


def test_the_index_of_a_database_is_built_once(made, database, capsys):
    model, scans = str(made / "tiny"), sorted((made / "scans").iterdir())
    enroll(database, embeddings=made / "embeddings")
    for line in ("96 prints added to the index", ""):
        capsys.readouterr()
        search(database, [scans[0]], model, 300, index=True)
        out, err = capsys.readouterr()
        assert line in err
        assert bool(err) == bool(line)
        assert "searched with an index: 96 prints in" in out


def test_records_of_embeddings(made, database):
    enroll(database, embeddings=made / "of_scans", names=NAMES)
    gallery = open_enrolled(database)
    known = gallery.known(gallery.search(np.eye(1, 16, dtype=np.float32), 4).row[0])
    assert sorted(each[:4] for each in known) == [
        (f"scans/anna-left_index-{row}.png", "anna", 7, f"anna-left_index-{row}.png") for row in range(4)
    ]
    assert all(0 < each.quality <= 1 for each in known)


def test_an_interrupted_bulk_enrolment_continues(made, database, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bulk_enrolment, "BATCH", 20)
    for gallery in (database, str(tmp_path / "known")):
        target, calls = open_or_create, []

        def interrupted(*arguments, target=target, calls=calls):
            opened = target(*arguments)
            append = opened.append

            def some(*values):
                calls.append(1)
                if len(calls) == 3:
                    raise KeyboardInterrupt
                return append(*values)

            opened.append = some
            return opened

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(bulk_enrolment, "open_or_create", interrupted)
            enroll(gallery, embeddings=made / "embeddings")
        assert len(open_enrolled(gallery)) == 64
        capsys.readouterr()
        enroll(gallery, embeddings=made / "embeddings")
        assert "32 prints enrolled (64 already enrolled), 96 in the gallery" in capsys.readouterr().out


def test_prints_of_another_command_are_not_counted(made, tmp_path, monkeypatch, capsys):
    """Two commands enrol into a gallery at the same time; none of them replaces a print."""
    model, scans, vector = str(made / "tiny"), sorted((made / "scans").iterdir()), np.eye(1, 16, dtype=np.float32)

    def disturbed(place, *arguments):
        opened = open_or_create(place, *arguments)
        append = opened.append

        def some(*values):
            for name in ("other", "another"):
                Gallery(place).append(vector, [f"{name}-{values[1][0].name}"])
            return append(*values)

        opened.append = some
        return opened

    for module in (enrolment, bulk_enrolment):
        monkeypatch.setattr(module, "open_or_create", disturbed)
    enroll(str(tmp_path / "known"), scans[:2], model, 300)
    enroll(str(tmp_path / "known"), embeddings=made / "embeddings")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "2 prints enrolled, 4 in the gallery",
        "96 prints enrolled, 102 in the gallery",
    ]


def test_embeddings_that_a_search_cannot_use_are_refused(made, database, prints, tmp_path):
    for options, message in (
        (Options(template="binary"), "binary templates of 16 numbers"),
        (Options(length=8), "float32 templates of 8 numbers"),
    ):
        extract_all(prints, tmp_path / "short", str(made / "tiny"), options=options, progress=False, overwrite=True)
        with pytest.raises(UserError, match=message):
            enroll(database, embeddings=tmp_path / "short")
    with pytest.raises(UserError, match="--from enrols embeddings as they are: leave out --fuse"):
        enroll(database, embeddings=made / "embeddings", fuse=True)
    with pytest.raises(UserError, match="no embeddings; `fingerprint-accel extract` writes them"):
        enroll(database, embeddings=tmp_path / "missing")


def test_the_demo_searches_a_database(made, database, monkeypatch):
    """The page shows no password. A database of another model is refused at the start."""
    scans, found = sorted((made / "scans").iterdir()), []
    url = database.replace("postgres:@", "postgres:secret@")
    enroll(url, [made / "scans"], str(made / "tiny"), 300)

    def served(server):
        assert re.search(r"postgresql://postgres@/prints_\d+\"", server.page)
        assert "secret" not in server.page
        values = Fields({"resolution": 300, "gallery": 0, "results": 2}, "page", "enter another value")
        found.append(server.actions["search"](values, [Upload("a.png", scans[1].read_bytes())]))
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, "serve_forever", served)
    demo(str(made / "tiny"), (url,), 0)
    assert found[0]["rows"][0][:2] == [1, "1.000"]
    assert scans[1].name in found[0]["rows"][0][-1]
    with pytest.raises(UserError, match=SHOWN.pattern + ": filled by another model"):
        demo("small", (url,), 0)
