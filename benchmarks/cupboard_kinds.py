"""Kinds of files in a mixed tree: images, containers and minutiae of prints, and files with defects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from cupboard_prints import PPI, SIDE, Print
from cupboard_tree import LIGHT, LOSSY, RESCALED, SAME, Cupboard, both_forms, rescaled
from cupboard_troubles import (
    bad_name,
    changed_bytes,
    copies,
    cut_off,
    empty,
    latin,
    links,
    mislabelled,
    no_image,
    no_print,
    pipe,
    stray,
    thumbnail,
)
from PIL import Image
from print_files import LOSSLESS as LOSSLESS_FILES
from print_files import LOSSY as LOSSY_FILES
from print_files import exif_jpeg, png, saved
from record_files import (
    Tagged,
    extended_minutiae,
    incits_minutiae,
    iso_2005,
    iso_2011,
    legacy_minutiae,
    rows,
    tagged,
    transaction,
    type_2,
    type_4,
    type_14,
)
from slap_images import slap
from template_files import WRITERS

CBEFF = bytes(range(1, 61))  # a header in front of a record
LOSSLESS_RECORDS = ("NONE", "PNG", "JP2")
SLAP_SEED = 9000


def image_file(kind: str) -> Callable[[Cupboard, int], None]:
    """Return a function that writes a print as an image of this format."""
    suffix, write = {**LOSSLESS_FILES, **LOSSY_FILES}[kind]
    tolerance = SAME if kind in LOSSLESS_FILES else LOSSY

    def fill(cupboard: Cupboard, _: int) -> None:
        found = cupboard.take()
        cupboard.imported(kind, found, suffix, write(found.grey), tolerance=tolerance)

    return fill


def exif(cupboard: Cupboard, number: int) -> None:
    """Write images in all eight EXIF orientations."""
    found = cupboard.take()
    cupboard.imported("JPEG, turned by EXIF", found, ".jpeg", exif_jpeg(found.grey, number % 8 + 1), tolerance=LOSSY)


def light(cupboard: Cupboard, number: int) -> None:
    """Write a print with light ridges on a dark background."""
    found, (suffix, write) = cupboard.take(), (LOSSLESS_FILES["PNG"], LOSSY_FILES["WSQ"])[number % 2]
    cupboard.imported(
        "light ridges on dark", found, suffix, write(255 - found.grey), tolerance=(SAME, LOSSY)[number % 2], note=LIGHT
    )


def fine(cupboard: Cupboard, number: int) -> None:
    """Write a print of 1,000 ppi, as stated by its name."""
    found, (suffix, write) = cupboard.take(), (LOSSLESS_FILES["PNG"], LOSSLESS_FILES["TIFF"])[number % 2]
    data = write(rescaled(found.grey, 1000))
    cupboard.imported("1,000 ppi in its name", found, suffix, data, f"{found.stem}_1000", tolerance=RESCALED)


def wrong_ppi(cupboard: Cupboard, _: int) -> None:
    """Write a print of 500 ppi whose tags state 1,000 ppi."""
    found, what = cupboard.take(), "1,000 ppi in its tags alone"
    path = cupboard.write(what, cupboard.place(found.stem + ".png"), png(rescaled(found.grey, 1000), dpi=(1000, 1000)))
    cupboard.expect(what, path, found.finger_key, found.impression, note="its tags say 1000 ppi, 500 were used")


def dated(cupboard: Cupboard, number: int) -> None:
    """Write a print with date and time as the number of the impression."""
    found, when = cupboard.take(), 20190401120000 + number
    what = "date as number of the impression"
    path = cupboard.write(what, cupboard.place(f"{found.finger_key}_{when}.png"), png(found.grey))
    cupboard.expect(what, path, found.finger_key, when, print=found)


def worded(cupboard: Cupboard, _: int) -> None:
    """Write a print whose name spells the finger out."""
    found = cupboard.take()
    hand, digit = divmod(found.position - 1, 5)
    word = f"{('right', 'left')[hand]}_{('thumb', 'index', 'middle', 'ring', 'little')[digit]}"
    cupboard.imported(
        "finger named in words", found, ".png", png(found.grey), f"{found.subject}_{word}_{found.impression}"
    )


def no_suffix(cupboard: Cupboard, number: int) -> None:
    """Write an image without a suffix, or with an unknown one."""
    found, (_, write) = cupboard.take(), list({**LOSSLESS_FILES, **LOSSY_FILES}.values())[number % 17]
    tolerance = SAME if number % 17 < len(LOSSLESS_FILES) else LOSSY
    suffix = ("", ".dat", ".img_old")[number % 3]
    cupboard.imported("image without or with unknown suffix", found, suffix, write(found.grey), tolerance=tolerance)


def wrong_suffix(cupboard: Cupboard, number: int) -> None:
    """Write an image with the suffix of another format."""
    found, (_, write) = cupboard.take(), list({**LOSSLESS_FILES, **LOSSY_FILES}.values())[number % 17]
    tolerance = SAME if number % 17 < len(LOSSLESS_FILES) else LOSSY
    suffix = (".bmp", ".wsq", ".jpg", ".iso", ".xyt")[number % 5]
    cupboard.imported("image with a wrong suffix", found, suffix, write(found.grey), tolerance=tolerance)


def pages(cupboard: Cupboard, number: int) -> None:
    """Write a TIFF with further pages, or a GIF with further frames."""
    found, what = cupboard.take(), "several pages"
    others = [Image.fromarray(np.roll(found.grey, 40 * page, axis=1)) for page in (1, 2)]
    suffix, kind = ((".tif", "TIFF"), (".gif", "GIF"))[number % 2]
    data = saved(Image.fromarray(found.grey), kind, save_all=True, append_images=others)
    path = cupboard.imported(what, found, suffix, data)
    cupboard.reject(what, path, "further pages: only the first of 3")


def accents(cupboard: Cupboard, number: int) -> None:
    """Write prints of one finger with composed and with decomposed accents in its name, as macOS does."""
    what = "accents composed and decomposed: one finger"
    for impression, subject in enumerate(both_forms(f"Jürgen{number}é")):
        found = cupboard.take()
        path = cupboard.write(what, cupboard.place(f"{subject}_01_{impression}.png"), png(found.grey))
        cupboard.expect(what, path, both_forms(f"Jürgen{number}é")[0] + "_01", impression, print=found)


def raw(cupboard: Cupboard, number: int) -> None:
    """Write raw pixels."""
    found = cupboard.take()
    cupboard.imported("raw pixels", found, (".raw", "", ".bin")[number % 3], found.grey.tobytes())


def transaction_of(kind: int, algorithm: str) -> Callable[[Cupboard, int], None]:
    """Return a function that writes a print as an ANSI/NIST transaction."""
    write: Callable[..., Tagged] = type_4 if kind == 4 else type_14
    what = f"ANSI/NIST type {kind}, {algorithm}"

    def fill(cupboard: Cupboard, number: int) -> None:
        found = cupboard.take()
        data = transaction(type_2(), write(1, found.grey, found.position, algorithm))
        suffix = (".an2", ".eft", ".nst", "", ".png")[number % 5]
        tolerance = SAME if algorithm in LOSSLESS_RECORDS else LOSSY
        cupboard.imported(what, found, suffix, data, record=3, tolerance=tolerance)

    return fill


def fine_transaction(cupboard: Cupboard, number: int) -> None:
    """Write a record that states 1,000 ppi: in pixels per mm, per inch, or per cm."""
    found = cupboard.take()
    grey = rescaled(found.grey, 1000)
    record = (
        type_4(1, grey, found.position, "NONE", native=1),
        type_14(1, grey, found.position, "PNG", per_unit=1000),
        type_14(1, grey, found.position, "PNG", per_unit=394, units=2),
    )[number % 3]
    data = transaction(record, header={11: "39.37", 12: "39.37"})
    cupboard.imported("ANSI/NIST at 1,000 ppi", found, ".an2", data, record=2, tolerance=RESCALED)


def transaction_minutiae(cupboard: Cupboard, number: int) -> None:
    """Write minutiae in one of the three blocks of a type 9 record."""
    found = cupboard.take()
    points = [(x, y, np.degrees(angle), quality) for x, y, angle, quality in found.minutiae.tolist()]
    kind, record = (
        ("legacy", legacy_minutiae(1, points, PPI, SIDE)),
        ("INCITS", incits_minutiae(1, points, PPI)),
        ("extended", extended_minutiae(1, points, PPI)),
    )[number % 3]
    image = (type_4, type_14)[number // 3 % 2](1, found.grey, found.position, "NONE")
    data = transaction(image, record)
    cupboard.imported(f"ANSI/NIST with minutiae, {kind}", found, ".an2", data, record=2, minutiae=True)


def ten_prints(cupboard: Cupboard, number: int) -> None:
    """Write a card with ten fingers, a palm and a face."""
    prints, what = [cupboard.take() for _ in range(10)], "ANSI/NIST card of ten fingers with palm and face"
    images = [type_14(at, found.grey, at, "WSQ20") for at, found in enumerate(prints, start=1)]
    palm = type_14(11, prints[0].grey, 25, "PNG", kind=15)
    face = 10, 12, tagged(10, {2: "12", 3: "FACE"}, b"\xff\xd8\xff")
    card = f"card{number:04d}"
    data = transaction(type_2(), *images, palm, face, header={9: card})
    path = cupboard.write(what, cupboard.place(f"ten-print-{number}.an2"), data)
    for at, found in enumerate(prints, start=1):
        cupboard.expect(what, f"{path}#{at + 2}", f"{card}_{at:02d}", print=found, impression=None, tolerance=LOSSY)
    cupboard.reject(what, f"{path}#13", "a palm (record type 15)")
    cupboard.reject(what, f"{path}#14", "a face or body part (record type 10)")


def shared_number(cupboard: Cupboard, number: int) -> None:
    """Write two transactions of two persons with the same number. The file names distinguish them."""
    what = "two ANSI/NIST files of one number"
    for copy in "ab":
        prints = [cupboard.take(), cupboard.take()]
        data = transaction(*[type_14(at, found.grey, at, "PNG") for at, found in enumerate(prints, 1)], header={9: "1"})
        path = cupboard.write(what, cupboard.place(f"job-{number}{copy}.an2"), data)
        for at, found in enumerate(prints, start=1):
            key = path.removesuffix(".an2") + f"_{at:02d}"
            cupboard.expect(what, f"{path}#{at + 1}", key, None, print=found)


def finger_record(kind: str) -> Callable[[Cupboard, int], None]:
    """Return a function that writes a print as a finger image record."""
    what = f"finger image record, {kind}"

    def fill(cupboard: Cupboard, number: int) -> None:
        found, algorithm = cupboard.take(), ("NONE", "WSQ20", "PNG", "JP2", "JPEGB")[number % 5]
        prints = [(found.grey, found.position, algorithm)]
        data = {
            "ISO 2005": lambda: iso_2005(prints),
            "ISO 2011": lambda: iso_2011(prints),
            "INCITS 381": lambda: iso_2005(prints, incits=True),
            "wrapped in CBEFF": lambda: CBEFF + iso_2005(prints),
        }[kind]()
        suffix = (".fir", ".iso-fir", ".iso", ".bin")[number % 4]
        cupboard.imported(
            what, found, suffix, data, record=1, tolerance=SAME if algorithm in LOSSLESS_RECORDS else LOSSY
        )

    return fill


def two_fingers(cupboard: Cupboard, _: int) -> None:
    """Write a finger image record of two fingers. Its name states the person, and the records state the finger."""
    first, second, what = cupboard.take(), cupboard.take(), "finger image record of two fingers"
    data = iso_2011([(first.grey, 2, "PNG"), (second.grey, 7, "PNG")])
    path = cupboard.write(what, cupboard.place(f"two-{first.number}.fir"), data)
    stem = path.removesuffix(".fir")
    cupboard.expect(what, f"{path}#1", f"{stem}_02", None, print=first)
    cupboard.expect(what, f"{path}#2", f"{stem}_07", None, print=second)


def slap_image(cupboard: Cupboard, number: int) -> None:
    """Write an image of four fingers whose name states the hand."""
    what, left = "slap whose name tells the hand", number % 2 == 1
    paper, _ = slap(SLAP_SEED + number, left)
    person, position = f"h{number:04d}", 14 if left else 13
    path = cupboard.write(what, cupboard.place(f"{person}_{position}_1.png"), png(paper))
    for finger in range(7, 11) if left else range(2, 6):
        cupboard.expect(what, f"{path}-{finger:02d}", f"{person}_{finger:02d}", 1)


def slap_record(cupboard: Cupboard, number: int) -> None:
    """Write a record of four fingers, every second time with their boxes."""
    left, boxed = number % 2 == 1, number // 2 % 2 == 1
    what = "ANSI/NIST slap" + (", boxes stated" if boxed else "")
    paper, boxes = slap(SLAP_SEED + 500 + number, left)
    fingers = (10, 9, 8, 7) if left else (2, 3, 4, 5)
    stated = [(finger, x, right, y, bottom) for finger, (x, y, right, bottom) in zip(fingers, boxes, strict=True)]
    fields: dict[str, Any] = {"f21": rows(*stated)} if boxed else {}
    data = transaction(type_14(1, paper, 14 if left else 13, "WSQ20", **fields), header={9: f"slap{number:04d}"})
    path = cupboard.write(what, cupboard.place(f"slap-{number}.nist"), data)
    for finger in fingers:
        cupboard.expect(what, f"{path}#2-{finger:02d}", f"slap{number:04d}_{finger:02d}", None)


def slap_of_unknown_hand(cupboard: Cupboard, number: int) -> None:
    """Write an image of four fingers under the name of one finger."""
    paper, _ = slap(SLAP_SEED + 800 + number)
    cupboard.refused("slap named as one finger", f"u{number:04d}_02_1.png", png(paper), "several fingers on one image")


def with_minutiae(suffix: str) -> Callable[[Cupboard, int], None]:
    """Return a function that writes an image and its minutiae file."""
    what = f"minutiae beside the image, {suffix}"

    def fill(cupboard: Cupboard, number: int) -> None:
        found = cupboard.take()
        path = cupboard.imported(what, found, ".png", png(found.grey), minutiae=True)
        data = WRITERS[suffix](found.minutiae, SIDE, SIDE, found.position if suffix != ".isocc" else 0)
        cupboard.write(what, path.removesuffix(".png") + (suffix.upper() if number % 4 == 3 else suffix), data)

    return fill


def unknown_minutiae(cupboard: Cupboard, number: int) -> None:
    """Write a minutiae record without a suffix, or with an unknown one."""
    found, what = cupboard.take(), "minutiae record with unknown suffix"
    path = cupboard.imported(what, found, ".png", png(found.grey), minutiae=True)
    data = WRITERS[".ist"](found.minutiae, SIDE, SIDE, found.position)
    cupboard.write(what, path.removesuffix(".png") + ("", ".tpl")[number % 2], data)


def bad_minutiae(cupboard: Cupboard, number: int) -> None:
    """Write an image with a damaged minutiae file. The import must use the image alone."""
    found, what = cupboard.take(), "damaged minutiae file"
    path = cupboard.imported(what, found, ".png", png(found.grey))
    suffix = (".ist", ".ansi", ".min")[number % 3]
    data = WRITERS[suffix](found.minutiae, SIDE, SIDE, found.position)
    template = cupboard.write(what, path.removesuffix(".png") + suffix, data[: 2 * len(data) // 3])
    cupboard.reject(what, template, "minutiae: ")


def second_minutiae(cupboard: Cupboard, _: int) -> None:
    """Write two minutiae files for one image. The import must use the more exact one and list the other."""
    found, what = cupboard.take(), "two minutiae files of one image"
    path = cupboard.imported(what, found, ".png", png(found.grey), minutiae=True)
    for suffix in (".iso", ".xyt"):
        data = WRITERS[suffix](found.minutiae, SIDE, SIDE, found.position)
        other = cupboard.write(what, path.removesuffix(".png") + suffix, data)
    cupboard.reject(what, other, "the image has another minutiae file: ")


def lone_minutiae(cupboard: Cupboard, number: int) -> None:
    """Write a minutiae file without an image."""
    found, what = cupboard.take(), "minutiae file without an image"
    data = WRITERS[".iso"](found.minutiae, SIDE, SIDE, found.position)
    cupboard.refused(
        what, f"{found.stem}{('.iso', '.fmr')[number % 2]}", data, "a minutiae file that no image belongs to"
    )


def _written(write: Callable[[np.ndarray], bytes], found: Print) -> bytes:
    """Write a print as an image file."""
    return write(found.grey)


# Files of each kind among two thousand, and the function that writes one.
KINDS: list[tuple[int, Callable[[Cupboard, int], None]]] = [
    *[(25, image_file(kind)) for kind in (*LOSSLESS_FILES, *LOSSY_FILES)],
    (40, exif), (50, light), (50, fine), (8, wrong_ppi), (30, dated), (20, worded), (51, no_suffix), (51, wrong_suffix),
    (20, pages), (20, accents), (45, raw),
    *[(25, transaction_of(4, algorithm)) for algorithm in ("WSQ20", "NONE")],
    *[(25, transaction_of(14, algorithm)) for algorithm in ("WSQ20", "JP2", "PNG", "JPEGB", "NONE")],
    (24, fine_transaction), (72, transaction_minutiae), (20, ten_prints), (4, shared_number),
    *[(25, finger_record(kind)) for kind in ("ISO 2005", "ISO 2011", "INCITS 381", "wrapped in CBEFF")],
    (10, two_fingers), (16, slap_image), (16, slap_record), (6, slap_of_unknown_hand),
    *[(36, with_minutiae(suffix)) for suffix in WRITERS],
    (12, unknown_minutiae), (18, bad_minutiae), (12, second_minutiae), (10, lone_minutiae),
    *[(9, cut_off(kind, suffix, partial(_written, write)))
      for kind, (suffix, write) in {**LOSSLESS_FILES, **LOSSY_FILES}.items()
      if kind in ("PNG", "TIFF", "BMP", "PGM", "GIF", "WebP", "JPEG", "JPEG 2000", "WSQ")],
    (9, cut_off("ANSI/NIST", ".an2", lambda found: transaction(type_14(1, found.grey, 1, "WSQ20")))),
    (9, cut_off("finger image record", ".fir", lambda found: iso_2011([(found.grey, 1, "PNG")]))),
    (9, changed_bytes), (15, empty), (12, no_image), (9, no_print), (15, bad_name), (40, copies), (20, mislabelled),
    (8, latin), (20, links), (36, thumbnail), (25, stray), (6, pipe),
]  # fmt: skip


def fill(cupboard: Cupboard, files: int) -> None:
    """Fill a tree with a number of files. Each kind has its share of `KINDS`, but at least one file."""
    for share, make in KINDS:
        goal = len(cupboard) + max(1, round(share * files / 2000))
        number = 0
        while len(cupboard) < goal:
            make(cupboard, number)
            number += 1
    plain = image_file("PNG")
    while len(cupboard) < files:
        plain(cupboard, 0)
