"""Every file below a folder is met once, and is something or has a reason."""

import os

import numpy as np
import pytest
from record_files import iso_2011, noise, transaction, type_4

from fingerprint_accel.data.templates import iso_bytes
from fingerprint_accel.data.walking import CONTAINER, IMAGE, SYSTEM, TEMPLATE, walk

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def cupboard(tmp_path):
    folder = tmp_path / "scans"
    files = {
        "a/1.png": b"", "a/1.TIF": b"", "a/1.jpx": b"", "a/1.iso": b"", "a/1.mnt": b"",
        "a/1_4": PNG, "a/card.an2": transaction(type_4(1, noise(), 1)), "a/card": transaction(type_4(1, noise(), 1)),
        "a/wrong.dat": iso_2011([(noise(), 1, "NONE")]), "a/photo.heic": b"\0\0\0\x18ftypheic", "a/notes.txt": b"x",
        "a/empty": b"", "a/raw.bin": bytes(300),
        "a/Thumbs.db": b"x", "a/.DS_Store": b"x", "a/._1.png": b"x", "a/@eaDir/1.png/SYNO.jpg": b"x",
        "b/.thumbnails/2.png": b"x", "b/2.png": b"",
    }  # fmt: skip
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_every_file_is_something_or_has_a_reason(cupboard):
    met = {found.path: found.reason or found.kind for found in walk(cupboard, raw_bytes=300)}
    assert met == {
        "a/1.png": IMAGE, "a/1.TIF": IMAGE, "a/1.jpx": IMAGE, "a/1.iso": TEMPLATE, "a/1.mnt": TEMPLATE,
        "a/1_4": IMAGE, "a/card.an2": CONTAINER, "a/card": CONTAINER, "a/wrong.dat": CONTAINER,
        "a/photo.heic": "not an image (.heic)", "a/notes.txt": "not an image (.txt)",
        "a/empty": "empty file: copy it again",
        "a/raw.bin": IMAGE, "a/Thumbs.db": SYSTEM, "a/.DS_Store": SYSTEM, "a/._1.png": SYSTEM,
        "a/@eaDir/1.png/SYNO.jpg": SYSTEM, "b/.thumbnails/2.png": SYSTEM, "b/2.png": IMAGE,
    }  # fmt: skip


def test_links_are_followed_once_and_never_in_circles(cupboard, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "3.png").write_bytes(b"")
    (elsewhere / "back").symlink_to(cupboard)
    (elsewhere / "round").symlink_to(elsewhere)
    (cupboard / "carl").symlink_to(elsewhere)
    (cupboard / "carl2").symlink_to(elsewhere)
    (cupboard / "inner").symlink_to(cupboard / "b")
    (cupboard / "outer").symlink_to(tmp_path)
    (cupboard / "one.png").symlink_to(elsewhere / "deep" / "3.png")
    (cupboard / "gone.png").symlink_to(tmp_path / "nowhere.png")
    met = {
        found.path: found.reason or found.kind for found in walk(cupboard) if not found.path.startswith(("a/", "b/"))
    }
    assert met == {
        "carl/back": "a link to what is read anyway",
        "carl/deep/3.png": IMAGE,
        "carl/round": "a link to what was read already",
        "carl2": "a link to what was read already",
        "gone.png": "a broken link",
        "inner": "a link to what is read anyway",
        "one.png": IMAGE,
        "outer": "a link to a folder that holds this one",
    }


def test_names_that_are_no_text_are_one_file_with_a_reason(tmp_path):
    (tmp_path / "scans").mkdir()
    os.mkdir(os.fsencode(tmp_path / "scans") + b"/Zo\xeb")  # noqa: PTH102
    for name in (b"/Zo\xeb/1.png", b"/M\xfcller.png"):
        with open(os.fsencode(tmp_path / "scans") + name, "wb") as file:  # noqa: PTH123
            file.write(PNG)
    (tmp_path / "scans" / "2.png").write_bytes(PNG)
    met = {found.path: found.reason or found.kind for found in walk(tmp_path / "scans")}
    assert sorted(met) == ["2.png", "M\ufffdller.png", "Zo\ufffd/1.png"]
    assert met["2.png"] == IMAGE
    assert (
        met["M\ufffdller.png"] == met["Zo\ufffd/1.png"] == "its name is not UTF-8: rename it, for example with convmv"
    )


def test_folders_that_cannot_be_read_are_said(cupboard):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (cupboard / "b").chmod(0)
    assert any(found.reason == "folder cannot be read: Permission denied" for found in walk(cupboard))
    (cupboard / "b").chmod(0o700)


def test_pipes_are_not_opened(tmp_path):
    for name in ("1.png", "2.iso", "3"):
        os.mkfifo(tmp_path / name)
    assert [found.reason for found in walk(tmp_path)] == ["is not a regular file"] * 3


def test_content_decides_where_the_suffix_may_mean_minutiae_or_images(tmp_path):
    images, minutiae = iso_2011([(noise(), 1, "NONE")]), iso_bytes(np.ones((3, 4)), 50, 60, 500)
    files = {
        "1.iso": images, "2.iso": minutiae, "3.iso": PNG, "3.xyt": PNG, "4.iso": images, "4.png": PNG,
        "5": minutiae, "5.tpl": bytes(60) + minutiae, "6.mnt": b"BM_6\n0 9 9\n", "6.isocc": b"BM1", "7.iso": b"none",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert {found.path: found.kind for found in walk(tmp_path)} == {
        "1.iso": CONTAINER, "2.iso": TEMPLATE, "3.iso": IMAGE, "3.xyt": IMAGE, "4.iso": TEMPLATE, "4.png": IMAGE,
        "5": TEMPLATE, "5.tpl": TEMPLATE, "6.mnt": TEMPLATE, "6.isocc": TEMPLATE, "7.iso": TEMPLATE,
    }  # fmt: skip
