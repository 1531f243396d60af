"""Templates that are protected by a key: compared as before with the same key, by chance across keys."""

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.cli.extraction import extract
from fingerprint_accel.cli.gallery import enroll, search
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.embeddings_folder import open_embeddings
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.protection import Protection, read_key
from fingerprint_accel.extraction.template_formats import TemplateFormat
from fingerprint_accel.similarity import fused, mask_of, similarity

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
DIMS, CELLS = 128, 16


def mates(cells, count=200, seed=0):
    """(2, count, DIMS): two impressions of each finger, of which each shows 70 % of the cells."""
    chance = np.random.default_rng(seed)
    fingers = chance.standard_normal((1, count, max(1, cells), DIMS // max(1, cells)))
    prints = fingers + 0.7 * chance.standard_normal((2, *fingers.shape[1:]))
    if cells:
        prints *= chance.uniform(size=(2, count, cells, 1)) < 0.7
    prints = prints.reshape(2, count, DIMS).astype(np.float32)
    return prints / np.linalg.norm(prints, axis=2, keepdims=True)


def key_file(folder, key=KEY, mode=0o600):
    path = folder / f"key-{key[0]}"
    path.write_text(key.hex() + "\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("cells", [0, CELLS])
def test_similarities_under_one_key_are_those_without(cells):
    first, second = mates(cells)
    protection = Protection(KEY)
    one, two = protection.apply(first, cells), protection.apply(second, cells)
    assert one.dtype == np.float32
    np.testing.assert_allclose(similarity(one, two, cells), similarity(first, second, cells), atol=1e-6)
    poses = np.stack([first, second], axis=1)
    np.testing.assert_allclose(
        similarity(protection.apply(poses, cells), two, cells), similarity(poses, second, cells), atol=1e-6
    )
    np.testing.assert_allclose(fused(one[:3], cells), protection.apply(fused(first[:3], cells), cells), atol=1e-6)
    assert not protection.apply(np.zeros((1, DIMS), np.float32), cells).any()


@pytest.mark.parametrize("cells", [0, CELLS])
@pytest.mark.parametrize("there", [Protection(OTHER), None], ids=["another key", "no key"])
def test_mates_across_keys_are_like_strangers(cells, there):
    first, second = mates(cells, 400)
    one = Protection(KEY).apply(first, cells)
    two = second if there is None else there.apply(second, cells)
    scores = similarity(one, two, cells)
    mated, nonmated = np.diag(scores), scores[~np.eye(400, dtype=bool)]
    assert abs(np.diag(similarity(first, second, cells)).mean() - 0.67) < 0.05
    assert abs(mated.mean()) < 4 * nonmated.std() / 20, "four standard errors"
    assert 0.9 < mated.std() / nonmated.std() < 1.1


def test_cells_are_permuted_and_keep_their_number():
    first, _ = mates(CELLS)
    before, after = mask_of(first, CELLS), mask_of(Protection(KEY).apply(first, CELLS), CELLS)
    assert (before.sum(axis=1) == after.sum(axis=1)).all()
    assert (before != after).any()
    assert sorted(before.sum(axis=0)) == sorted(after.sum(axis=0))


@pytest.mark.parametrize("cells", [0, CELLS])
def test_int8_templates_can_be_protected(cells):
    first, second = mates(cells)
    template = TemplateFormat("int8", DIMS, cells)
    stored = [template.decode(template.encode(Protection(KEY).apply(prints, cells))) for prints in (first, second)]
    np.testing.assert_allclose(similarity(*stored, cells), similarity(first, second, cells), atol=0.02)


def test_the_transform_never_changes():
    """Stored templates would be lost. Measured with numpy 2.3 and OpenBLAS."""
    values = Protection(KEY).apply(np.eye(8, dtype=np.float32)[:1], 0)[0]
    cells = Protection(KEY).apply(np.eye(8, dtype=np.float32)[:1], 2)[0]
    assert Protection(KEY).fingerprint == "ecb5fccd8f1ec31a"
    np.testing.assert_allclose(values[:4], [-0.2437836, -0.0287733, -0.6038737, -0.1197022], atol=1e-6)
    np.testing.assert_allclose(cells[:4], [0.2497884, 0.0329834, -0.5843017, -0.7714334], atol=1e-6)
    assert Protection(OTHER).fingerprint != Protection(KEY).fingerprint


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (KEY.hex(), 0o640, "other users have access to this key; run `chmod 600 "),
        (KEY.hex(), 0o602, "other users have access"),
        (KEY.hex()[:-1], 0o600, r"does not contain 64 hexadecimal digits; make one with `\(umask 077; openssl rand"),
        ("", 0o600, "does not contain 64"),
        ("x" * 64, 0o600, "does not contain 64"),
        (KEY.hex() * 1000, 0o600, "does not contain 64"),
    ],
)
def test_key_files_that_are_refused(tmp_path, text, mode, message):
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(UserError, match=f"{path}: {message}") as error:
        read_key(path)
    assert not text or text not in str(error.value), "the key is not printed"
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: no such file; make one"):
        read_key(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_key(tmp_path)


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


@pytest.fixture
def scans(tmp_path, prints):
    shards, folder = open_dataset(prints), tmp_path / "scans"
    folder.mkdir()
    for row in range(4):
        Image.fromarray(shards.image(row)).save(folder / f"{row}.png")
    return folder


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_a_protected_gallery_is_searched_with_its_key_alone(int8, model, scans, tmp_path, capsys):
    key, other, gallery = key_file(tmp_path), key_file(tmp_path, OTHER), tmp_path / "known"
    enroll(gallery, [scans / "0.png", scans / "1.png"], model, 300, protect=key, int8=int8)
    enroll(gallery, [scans], model, 300, protect=key)
    assert Gallery(gallery).template == ("int8" if int8 else "float32")
    enroll(tmp_path / "plain", [scans], model, 300, int8=int8)
    told = capsys.readouterr().out
    assert "2 prints enrolled (2 already enrolled), 4 in the gallery" in told
    tables = []
    for where, given in ((gallery, key), (tmp_path / "plain", None)):
        search(where, [scans / "2.png"], model, 300, protect=given)
        tables.append([line.split() for line in capsys.readouterr().out.splitlines()[1:5]])
    ranks, similarities = ([[row[column] for row in table] for table in tables] for column in (-1, 1))
    assert ranks[0] == ranks[1]
    assert ranks[0][0].endswith("2.png")
    protected, plain = (np.array(each, float) for each in similarities)
    assert protected[0] >= 0.999 - 0.001 * int8
    np.testing.assert_allclose(protected, plain, atol=0.01 if int8 else 0)
    stored, plain = (Gallery(folder).vectors(np.arange(4)) for folder in (gallery, tmp_path / "plain"))
    assert abs((stored * plain).sum(axis=1)).max() < 0.9
    for where, given, message in (
        (gallery, None, rf"known: its templates are protected by the key {read_key(key).fingerprint}; give the file"),
        (gallery, other, rf"known: its templates are protected by the key {read_key(key).fingerprint}, not "),
        (tmp_path / "plain", key, "plain: its templates are not protected; leave out --protect"),
    ):
        for act in (
            lambda where=where, given=given: search(where, [scans / "2.png"], model, 300, protect=given),
            lambda where=where, given=given: enroll(where, [scans / "3.png"], model, 300, protect=given),
        ):
            with pytest.raises(UserError, match=message):
                act()


def test_the_key_is_in_no_file_that_is_written(model, scans, tmp_path):
    key = key_file(tmp_path)
    enroll(tmp_path / "known", [scans], model, 300, protect=key)
    extract(scans, tmp_path / "out", model, 300, protect=key)
    for path in [*(tmp_path / "known").iterdir(), *(tmp_path / "out").iterdir()]:
        content = path.read_bytes()
        assert KEY not in content
        assert KEY.hex().encode() not in content.lower()


@pytest.mark.usefixtures("fresh_accelerator")
def test_extracted_templates_are_those_of_a_protected_gallery(model, scans, tmp_path):
    key = key_file(tmp_path)
    extract(scans, tmp_path / "out", model, 300, protect=key)
    extract(scans, tmp_path / "plain", model, 300)
    protected, plain = open_embeddings(tmp_path / "out"), open_embeddings(tmp_path / "plain")
    np.testing.assert_allclose(protected.vectors(), Protection(KEY).apply(plain.vectors(), 0), atol=1e-6)
    identity = FingerprintExtractor.from_pretrained(model).identity
    assert protected.config["model"]["identity"] == f"{identity}+{Protection(KEY).fingerprint}"
    assert plain.config["model"]["identity"] == identity
    enroll(tmp_path / "known", [scans], model, 300, protect=key)
    gallery = Gallery(tmp_path / "known")
    np.testing.assert_allclose(gallery.vectors(np.arange(4)), protected.vectors(), atol=1e-5)
    extract(scans, tmp_path / "out", model, 300, protect=key_file(tmp_path, OTHER), overwrite=True)
    assert abs((open_embeddings(tmp_path / "out").vectors() * protected.vectors()).sum(axis=1)).max() < 0.9


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_key_that_is_replaced_during_an_extraction_is_noticed(model, scans, tmp_path, monkeypatch):
    from fingerprint_accel.extraction import bulk

    key = key_file(tmp_path)
    job = bulk.ExtractJob(scans, model, 300, bulk.Options(protect=key), "cpu")
    key.write_text(OTHER.hex())
    bulk.open_work.cache_clear()  # as in another process
    with pytest.raises(UserError, match=f"{key}: the key was replaced during the extraction"):
        job.task(0)(tmp_path / "shard")
