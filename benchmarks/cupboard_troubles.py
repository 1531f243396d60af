"""Files that an import must reject or report: damage, duplicates, links, and files without a print."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from cupboard_prints import Print
from cupboard_tree import Cupboard, rescaled
from print_files import LOSSLESS, png

DAMAGED, OTHER = "damaged", "not an image"


def cut_off(kind: str, cupboard_name: str, write: Callable[[Print], bytes]) -> Callable[[Cupboard, int], None]:
    """Return a function that writes the first part of a file."""

    def fill(cupboard: Cupboard, number: int) -> None:
        found = cupboard.take()
        data = write(found)
        cupboard.refused(
            f"cut off, {kind}", found.stem + cupboard_name, data[: len(data) * (2 + number % 3) // 6], DAMAGED
        )

    return fill


def changed_bytes(cupboard: Cupboard, _: int) -> None:
    """Write a PNG with changed bytes in its middle."""
    found = cupboard.take()
    data = bytearray(png(found.grey))
    for at in range(len(data) // 2, len(data) // 2 + 40):
        data[at] ^= 0x5A
    cupboard.refused("damaged, PNG", found.stem + ".png", bytes(data), DAMAGED)


def empty(cupboard: Cupboard, number: int) -> None:
    """Write an empty file."""
    stem = cupboard.take().stem
    cupboard.refused("empty", stem + (".png", ".wsq", ".an2", ".fir", "")[number % 5], b"", "empty file")


def no_image(cupboard: Cupboard, number: int) -> None:
    """Write text under the suffix of an image."""
    name = cupboard.take().stem + (".png", ".jpg", ".tif", ".wsq")[number % 4]
    cupboard.refused("text named as an image", name, b"<html><body>404 Not Found</body></html>" * 9, OTHER)


def no_print(cupboard: Cupboard, number: int) -> None:
    """Write a blank sheet, a scrap of a few pixels, or the plan of a house."""
    stem = cupboard.take().stem
    what, image, reason = (
        ("blank image", np.full((400, 400), 255, np.uint8), "blank"),
        ("scrap of a few pixels", np.arange(108, dtype=np.uint8).reshape(9, 12), "too small"),
        ("56 megapixels", np.zeros((7000, 8000), bool), "too large"),
    )[number % 3]
    cupboard.refused(what, f"{stem}.png", png(image), reason)


def bad_name(cupboard: Cupboard, number: int) -> None:
    """Write a name that states no finger."""
    found = cupboard.take()
    name = (f"IMG_{number}.png", f"scan {number}.bmp", f"{found.subject}_99_{number}.png")[number % 3]
    reason = "finger position 99" if number % 3 == 2 else "name does not look like --names"
    cupboard.refused("name without finger or impression", name, png(found.grey), reason)


def copies(cupboard: Cupboard, number: int) -> None:
    """Write a print twice: the same finger and impression in two folders, or in two formats."""
    found, what = cupboard.take(), "same finger and impression twice"
    suffix = (".png", ".bmp")[number % 2]
    folders = f"copies/{number}/a", f"copies/{number}/b"
    path = cupboard.write(what, f"{folders[0]}/{found.stem}.png", png(found.grey))
    cupboard.expect(what, path, found.finger_key, found.impression, print=found)
    other = png(found.grey) if suffix == ".png" else LOSSLESS["BMP"][1](found.grey)
    second = cupboard.write(what, f"{folders[1]}/{found.stem}{suffix}", other)
    cupboard.reject(what, second, "same finger and impression: as " + path)


def mislabelled(cupboard: Cupboard, _: int) -> None:
    """Write the picture of another finger. The import must take it under the name that it has."""
    shown, claimed, what = cupboard.take(), cupboard.take(), "mislabelled"
    path = cupboard.write(what, cupboard.place(claimed.stem + ".png"), png(shown.grey))
    cupboard.expect(what, path, claimed.finger_key, claimed.impression, print=shown)


def latin(cupboard: Cupboard, number: int) -> None:
    """Write a name in Latin-1."""
    folder = cupboard.root / "latin"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / os.fsdecode(b"M\xfcller%d_01_1.png" % number)).write_bytes(png(cupboard.take().grey))
    path = f"latin/M\ufffdller{number}_01_1.png"
    cupboard.kinds[path] = "name in Latin-1"
    cupboard.reject("name in Latin-1", path, "its name is not UTF-8")


def links(cupboard: Cupboard, number: int) -> None:
    """Write links into the tree, out of it, to nothing, and to the link itself."""
    folder = cupboard.root / "links" / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    cupboard.outside.mkdir(exist_ok=True)
    found = cupboard.take()
    away = cupboard.outside / f"{found.stem}.png"
    away.write_bytes(png(found.grey))
    inside = cupboard.root / cupboard.write(
        "PNG", f"links/{number}/{(plain := cupboard.take()).stem}.png", png(plain.grey)
    )
    cupboard.expect("PNG", f"links/{number}/{plain.stem}.png", plain.finger_key, plain.impression, print=plain)
    for name, target, reason in (
        ("again.png", inside, "a link to what is read anyway"),
        ("gone.png", folder / "nowhere.png", "a broken link"),
        ("round", cupboard.root, "a link to what is read anyway"),
        (away.name, away, ""),
    ):
        (folder / name).symlink_to(target)
        path = f"links/{number}/{name}"
        cupboard.kinds[path] = "link"
        if reason:
            cupboard.reject("link", path, reason)
        else:
            cupboard.expect("link", path, found.finger_key, found.impression, print=found)


def thumbnail(cupboard: Cupboard, number: int) -> None:
    """Write files that network storage, desktops and cameras leave behind."""
    found, what = cupboard.take(), "thumbnail or system file"
    small = png(rescaled(found.grey, 100))
    folder = cupboard.place(f"{number}")
    name = (
        f"@eaDir/{found.stem}.png/SYNOPHOTO_THUMB_M.png", f".thumbnails/{found.stem}.png", f"._{found.stem}.png",
        "Thumbs.db", "desktop.ini", ".DS_Store",
    )[number % 6]  # fmt: skip
    cupboard.reject(what, cupboard.write(what, f"{folder}/{name}", small), "a thumbnail or system file")


def stray(cupboard: Cupboard, number: int) -> None:
    """Write files that are no prints."""
    name, data = (
        ("notes.txt", b"card 7 is upside down\n"), ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0"),
        ("list.csv", b"path,finger,impression\n"), ("report.pdf", b"%PDF-1.4\n"), ("viewer.exe", b"MZ\x90\0"),
    )[number % 5]  # fmt: skip
    suffix = name[name.index(".") :]
    cupboard.reject(
        "stray file", cupboard.write("stray file", cupboard.place(f"{number}/{name}"), data), f"{OTHER} ({suffix})"
    )


def pipe(cupboard: Cupboard, number: int) -> None:
    """Make a named pipe. A program that opens it waits for ever."""
    path = cupboard.place(f"{cupboard.take().stem}{('.png', '.iso', '')[number % 3]}")
    (cupboard.root / path).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(cupboard.root / path)
    cupboard.kinds[path] = "named pipe"
    cupboard.reject("named pipe", path, "is not a regular file")
