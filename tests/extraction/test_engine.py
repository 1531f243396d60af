"""A gallery in PostgreSQL gives the answers of a gallery folder, and forgets what is removed."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import engine as engine_module
from fingerprint_accel.extraction import engine_reader
from fingerprint_accel.extraction.engine import Engine
from fingerprint_accel.extraction.engine_connection import connect, shown
from fingerprint_accel.extraction.engine_queries import spellings
from fingerprint_accel.extraction.engine_rows import as_half, print_id
from fingerprint_accel.extraction.galleries import check_fits, open_enrolled, open_index, open_or_create
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.gallery_parts import Known

COUNT, DIMS, CELLS = 400, 64, 8
CLOSE = 2e-4  # the engine stores templates as float16


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def people(cells=0, seed=0):
    """Templates and records of 40 persons with ten fingers, some without a position."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((COUNT, DIMS))
    if cells:
        vectors.reshape(COUNT, cells, -1)[generator.random((COUNT, cells)) < 0.3] = 0
    known = [
        Known(f"scans/{row}.png", f"Zoë {row // 10}", row % 11, f"disk/{row}", (row % 3 - 1) % 2**63, row / 1000)
        for row in range(COUNT)
    ]
    return unit(vectors), known


def probes_of(vectors, cells, poses=3):
    """Mates of the first five prints, in some poses, that show three quarters of the finger."""
    generator = np.random.default_rng(1)
    noise = unit(generator.standard_normal((5, poses, DIMS)))
    probes = vectors[:5, None] + 0.8 * noise
    if cells:
        probes.reshape(5, poses, cells, -1)[:, :, 6:] = 0
    return unit(probes)


@pytest.mark.parametrize("cells", [0, CELLS])
def test_ranks_and_scores_are_those_of_a_folder(cells, database, tmp_path):
    vectors, known = people(cells)
    folder = Gallery.create(tmp_path / "known", DIMS, "tests", cells)
    engine = open_or_create(database, DIMS, "tests", cells)
    assert (folder.append(vectors, known), engine.append(vectors, known)) == (COUNT, COUNT)
    assert (len(engine), engine.dims, engine.model, engine.cells) == (COUNT, DIMS, "tests", cells)
    probes = probes_of(vectors, cells)
    for asked in (probes[:, 0], probes):
        for chosen in ((0, ""), (7, ""), (0, "Zoë 3"), (2, "Zoë 3")):
            ours, theirs = folder.selected(*chosen), engine.selected(*chosen)
            assert engine.count(theirs) == folder.count(ours)
            wanted, found = folder.search(asked, 10, among=ours), engine.search(asked, 10, among=theirs)
            np.testing.assert_allclose(found.similarity, wanted.similarity, atol=CLOSE)
            for ranks, rows, scores in zip(wanted.row, found.row, wanted.similarity, strict=True):
                ours_known, theirs_known = folder.known(ranks), engine.known(rows)
                ties = np.abs(np.diff(scores, prepend=9, append=-9)) < CLOSE  # of a print and the next, and so on
                for place, (one, other) in enumerate(zip(ours_known, theirs_known, strict=True)):
                    assert one == other or ties[place] or ties[place + 1] or place == len(ranks) - 1
                assert ours_known[0] == theirs_known[0]
    best = engine.search(probes, 1).row[:, 0]
    np.testing.assert_allclose(engine.vectors(best), vectors[:5], atol=CLOSE)
    assert ((engine.vectors(best) == 0) == (vectors[:5] == 0)).all()


@pytest.mark.parametrize("cells", [0, CELLS])
def test_the_index_selects_mates_and_scores_them_exactly(cells, database, monkeypatch):
    vectors, known = people(cells)
    engine = open_or_create(database, DIMS, "tests", cells)
    engine.append(vectors[:300], known[:300])
    monkeypatch.setattr(engine_reader, "RESCORED", 40)  # of 400 prints
    index = open_index(engine)
    assert index.added == 300
    engine.append(vectors[300:], known[300:])  # PostgreSQL keeps the index up to date
    assert open_index(engine).added == 0
    probes = probes_of(vectors, cells)
    exact, quick = engine.search(probes, 1), index.search(probes, 1)
    assert [each[0].name for each in map(engine.known, quick.row)] == [each.name for each in known[:5]]
    np.testing.assert_array_equal(quick.similarity, exact.similarity)
    assert index.search(probes, 3, engine.selected(7)).row.shape == (5, 3)


def test_what_is_enrolled_is_skipped_replaced_or_refused(database):
    vectors, known = people()
    engine = open_or_create(database, DIMS, "tests")
    assert engine.append(vectors[:30], known[:30]) == 30
    assert engine.append(vectors[:40], known[:40]) == 10
    with pytest.raises(UserError, match=r"scans/30.png: already enrolled from another image; --replace replaces it"):
        engine.append(vectors[:40], known[30:70])
    assert len(engine) == 40
    assert engine.append(vectors[:20], known[30:50], replace=True) == 20
    assert engine.append(vectors[:20], known[30:50], replace=True) == 0
    assert engine.append(vectors[:1], [known[30]._replace(person="Ada")], replace=True) == 1
    assert len(engine) == 50
    ids = np.array([print_id(f"scans/{row}.png") for row in (30, 49)])
    np.testing.assert_allclose(engine.vectors(ids), vectors[[0, 19]], atol=CLOSE)
    assert [each.person for each in engine.known(ids)] == ["Ada", "Zoë 4"]
    with pytest.raises(UserError, match="two different prints have this name"):
        engine.append(vectors[:2], ["same", "same"])
    with pytest.raises(UserError, match="zero byte"):
        engine.append(vectors[:1], ["a\0b"])
    other = open_enrolled(database)
    assert (other.append(vectors[300:], known[300:]), engine.append(vectors[300:], known[300:])) == (100, 0)


def test_a_lost_connection_loses_no_batch_and_enrols_nobody_twice(database, monkeypatch):
    vectors, known = people()
    engine, batches = open_or_create(database, DIMS, "tests"), []

    def enrol(gallery):
        return sum(
            gallery.append(vectors[start : start + 100], known[start : start + 100]) for start in range(0, COUNT, 100)
        )

    def ended(embeddings, prints, cells):
        pieces = list(engine_module.copy_rows.__wrapped__(embeddings, prints, cells))
        batches.append(len(prints))
        yield pieces[0] + pieces[1]
        if len(batches) == 3:
            with connect(database) as killer:
                killer.execute("SELECT pg_terminate_backend(%s)", (engine.connection.info.backend_pid,))
        yield from pieces[2:]

    real = engine_module.copy_rows
    ended.__wrapped__ = real
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "copy_rows", ended)
        with pytest.raises(UserError, match="what is enrolled already is skipped"):
            enrol(engine)
    again = open_enrolled(database)
    assert len(again) == 200
    assert enrol(again) == 200
    assert len(again) == COUNT
    assert len({each.name for each in again.known(again.search(vectors[:1], COUNT).row[0])}) == COUNT


def data_files(postgres, engine):
    """Contents of the data files, after the server has written its memory to them. The log (pg_wal) is not included."""
    postgres.psql("CHECKPOINT;")
    (oid,) = engine._rows("SELECT oid FROM pg_database WHERE datname = current_database()", {})[0]
    folders = (postgres.pgdata / "base" / str(oid), postgres.pgdata / "global")
    return b"".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())


def traces(content, vectors, rows):
    words = [f"scans/{row}.png" for row in rows] + [f"disk/{row}" for row in rows] + ["Zo\u00eb 7"]
    halves = [as_half(vector[None])[0].tobytes() for vector in vectors[rows]]
    signs = [np.packbits(vector > 0).tobytes() for vector in vectors[rows]]
    return [word for word in [word.encode() for word in words] + halves + signs if word in content]


def test_a_removed_person_is_gone_from_the_data_files(postgres, database, capsys):
    vectors, known = people()
    rows = list(range(70, 80))
    engine = open_or_create(database, DIMS, "tests")
    engine.append(vectors, known)
    open_index(engine)  # collects the statistics of PostgreSQL too
    assert len(traces(data_files(postgres, engine), vectors, rows)) == 41
    with connect(database) as backup, backup.transaction():
        backup.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        backup.execute("SELECT count(*) FROM pg_class")  # an older transaction, which may still see the prints
        assert engine.remove(person="Zoë 7") == 10
        assert "another transaction is open" in capsys.readouterr().err
        assert len(engine) == COUNT - 10
    with pytest.raises(UserError, match="no print of person Zoë 7 is enrolled"):
        engine.remove(person="Zoë 7")  # completes what the open transaction has prevented
    assert capsys.readouterr().err == ""
    assert traces(data_files(postgres, engine), vectors, rows) == []
    names = ["scans/80.png", "scans/81.png"]
    with pytest.raises(UserError, match=r"no print of name scans/70\.png is enrolled"):
        engine.remove(names=[*names, "scans/70.png"])
    assert engine.remove(names=names) == 2
    assert len(engine) == COUNT - 12
    assert traces(data_files(postgres, engine), vectors, [80, 81]) == []
    engine.connection.execute("INSERT INTO fingerprint_erasures VALUES ('fingerprint_prints_00', '1000000000000')")
    engine.remove(person="Zoë 9")  # as after pg_restore: a transaction of another server, later than all of this one
    assert engine._rows("SELECT * FROM fingerprint_erasures", {}) == []
    assert capsys.readouterr().err == ""


def test_spellings_of_a_person():
    assert spellings("Zoe\u0308") == ("Zoe\u0308", "Zo\u00eb")
    assert spellings("Anna") == ("Anna",)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE fingerprint_prints SET template = template + template",
            "not finite and of unit length",
        ),
        ("UPDATE fingerprint_prints SET quality = 'NaN'", "a record that no enrolment writes"),
        ("UPDATE fingerprint_prints SET position = 100", "a record that no enrolment writes"),
        ("UPDATE fingerprint_prints SET impression = -2", "a record that no enrolment writes"),
        ("UPDATE fingerprint_gallery SET dims = 0", "dims must be an integer from 1"),
        ("UPDATE fingerprint_gallery SET format_version = 9", "format_version must be an integer from 1 to 1"),
        ("DELETE FROM fingerprint_gallery", "has 0 rows, not one"),
        (
            "ALTER TABLE fingerprint_prints DROP COLUMN bits, DROP COLUMN quality",
            "its tables were made by another program",
        ),
        ("DROP TABLE fingerprint_prints", "`fingerprint-accel enroll` makes a gallery"),
    ],
)
def test_rows_that_no_enrolment_writes_are_refused(statement, message, database):
    vectors, known = people()
    engine = open_or_create(database, DIMS, "tests")
    engine.append(vectors[:5], known[:5])
    engine.connection.execute(statement)
    with pytest.raises(UserError, match=message) as error:
        again = open_enrolled(database)
        again.known(again.search(vectors[:1], 5).row[0])
    assert "\n" not in str(error.value)


def test_another_model_is_refused_and_an_empty_gallery_takes_any(database):
    vectors, known = people()
    open_or_create(database, 32, "before", 4)
    check_fits(database, "tests")
    engine = open_or_create(database, DIMS, "tests")
    engine.append(vectors[:5], known[:5])
    for refused in (lambda: open_or_create(database, DIMS, "x"), lambda: check_fits(database, "x")):
        with pytest.raises(UserError, match=r"filled by another model \(tests, not x\)"):
            refused()
    with pytest.raises(UserError, match="contains embeddings of 64 numbers, the probes have 8"):
        engine.search(unit(np.ones((1, 8))))


def test_a_print_that_is_enrolled_between_two_probes(database, monkeypatch):
    vectors, known = people()
    engine, other = open_or_create(database, DIMS, "tests"), open_or_create(database, DIMS, "tests")
    engine.append(vectors[:5], known[:5])
    real, asked = engine_reader.distance_of, []

    def distance_of(probe, cells):
        asked.append(other.append(vectors[5:6], known[5:6]) if asked else 0)
        return real(probe, cells)

    monkeypatch.setattr(engine_reader, "distance_of", distance_of)
    hits = engine.search(vectors[:2], 10)
    assert asked == [0, 1]
    assert hits.row.shape == hits.similarity.shape == (2, 5)
    assert hits.row[:, 0].tolist() == [print_id(each.name) for each in known[:2]]


def test_an_enrolment_that_has_begun_keeps_its_gallery(database):
    vectors, known = people()
    engine, waiting = open_or_create(database, DIMS, "tests"), "SELECT FROM pg_locks WHERE NOT granted"
    with ThreadPoolExecutor() as pool, connect(database) as observer:
        with engine._changing():
            engine._copy(vectors[:5], known[:5])
            other = pool.submit(open_or_create, database, DIMS, "x")
            while not observer.execute(waiting).fetchall():
                assert not other.done()
        with pytest.raises(UserError, match=r"filled by another model \(tests, not x\)"):
            other.result()
    assert len(engine) == 5


def test_troubles_end_in_one_line(postgres, database, monkeypatch):
    host = postgres.pgdata
    cases = {
        "postgresql://me:secret@127.0.0.1:9/db": "postgresql://me@127.0.0.1:9/db: Connection refused; check that the "
        "server runs and can be reached; then run the same command again$",
        "postgresql://me:se%ZZcret@db/prints": "postgresql://me@db/prints: not a valid URL; write it as",
        "postgresql:/me:secret@db/prints": "postgresql:/me@db/prints: not a valid URL; write it as",
        f"postgresql://postgres@/nowhere?host={host}": 'database "nowhere" does not exist; create the database',
        f"postgresql://nobody@/postgres?host={host}": 'role "nobody" does not exist; correct the user of the URL',
        database: "holds no gallery; `fingerprint-accel enroll` makes one",
    }
    for url, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            open_enrolled(url)
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no schema has been selected|pgvector is older than 0.7 or outside"):
        Engine.open_or_create(f"{database}&options=-csearch_path%3Dmissing", DIMS, "tests")
    open_or_create(database, DIMS, "tests")
    postgres.psql("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN;")
    with pytest.raises(UserError, match="permission denied for table fingerprint_gallery; ask the owner"):
        open_enrolled(database.replace("postgres:@", "reader@"))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        UserError, match=r"^postgresql://me@db/x: needs psycopg: pip install 'fingerprint-accel\[engine\]'$"
    ):
        open_enrolled("postgresql://me:secret@db/x")


def test_rights_of_those_who_search_enrol_and_remove(postgres, database, capsys):
    """The rights that the documentation lists are enough."""
    vectors, known = people()
    owner = open_or_create(database, DIMS, "tests")
    owner.append(vectors[:10], known[:10])
    postgres.psql("DROP ROLE IF EXISTS searcher, enroller; CREATE ROLE searcher LOGIN; CREATE ROLE enroller LOGIN;")
    owner.connection.execute("GRANT SELECT ON fingerprint_gallery, fingerprint_prints TO searcher")
    owner.connection.execute("GRANT SELECT, UPDATE ON fingerprint_gallery TO enroller")
    owner.connection.execute("GRANT SELECT, INSERT, DELETE ON fingerprint_prints, fingerprint_erasures TO enroller")
    searcher, enroller = (
        open_enrolled(database.replace("postgres:@", f"{name}@")) for name in ("searcher", "enroller")
    )
    assert searcher.known(searcher.search(vectors[:1], 1).row[0]) == known[:1]
    with pytest.raises(UserError, match="permission denied for table fingerprint_gallery; ask the owner"):
        searcher.append(vectors[10:], known[10:])
    with pytest.raises(UserError, match="must be owner of table fingerprint_prints; ask the owner"):
        open_index(searcher)
    assert enroller.append(vectors[10:], known[10:]) == COUNT - 10
    assert enroller.remove(person="Zoë 7") == 10
    assert "you do not own the table" in capsys.readouterr().err
    owner.remove(person="Zoë 8")  # rewrites both
    assert owner._rows("SELECT * FROM fingerprint_erasures", {}) == []


def test_no_password_is_shown():
    assert (
        shown("postgresql://me:secret@a:1,b:2/prints?password=secret&sslmode=require")
        == "postgresql://me@a:1,b:2/prints"
    )
    assert shown("postgres:///prints") == "postgres:///prints"
    pytest.importorskip("psycopg")
    for password in ("a#secret", "a?secret", "a@secret", "a/secret", "a@?secret", "a/?secret"):
        url = f"postgresql://me:{password}@127.0.0.1:9/prints?user=me@corp"
        assert shown(url) == "postgresql://me@127.0.0.1:9/prints"
        with pytest.raises(UserError, match="not a valid URL" if {"@", "/"} & {*password} else "refused") as error:
            connect(url)
        assert "secret" not in str(error.value)
