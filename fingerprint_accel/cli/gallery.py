"""Verbs for galleries of known prints: `enroll`, `search`, `remove`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from fingerprint_accel.cli.arguments import (
    BatchSize,
    Flag,
    Gallery,
    Inverted,
    Key,
    Mirror,
    Model,
    Paths,
    Ppi,
    Protect,
    arg,
)
from fingerprint_accel.errors import require
from fingerprint_accel.text import aligned, printable


def enroll(
    gallery: Gallery,
    prints: Annotated[Positional[tuple[Path, ...]], arg("PRINTS ...", default="none")] = (),
    model: Model = "small",
    ppi: Ppi = 500,
    batch_size: BatchSize = 64,
    fuse: Flag = False,
    names: Annotated[str, arg("REGEX", default="none")] = "",
    key: Key = (),
    person: Annotated[str, arg("PERSON", default="as stated by names, records or csv")] = "",
    skip_bad: Flag = False,
    replace: Flag = False,
    inverted: Inverted = "auto",
    mirror: Mirror = False,
    protect: Protect = None,
    embeddings: Annotated[Path | None, arg("EMBEDDINGS", default="none"), tyro.conf.arg(name="from")] = None,
    int8: Flag = False,
) -> None:
    """Add prints to a gallery, which is created if it is missing.

    PRINTS can be image files, ANSI/NIST transactions, finger image records, folders of these, csv files as for `import
    --layout csv`, and datasets. Prints are named after their files (a.png, card.an2#3-07). Prints of a dataset are
    named FINGER/IMPRESSION. A gallery can only be used with the model that filled it.

    GALLERY is a folder, or a PostgreSQL database with pgvector for galleries that outgrow one machine
    (pip install 'fingerprint-accel[engine]').

    One call adds all of its prints or none. It stops at a print that cannot be read, unless --skip-bad is given. A
    print that is already enrolled is not added again. A different image with the same name is an error, unless
    --replace is given.

    --from enrols a folder of embeddings that `extract` has written, in batches. A killed command continues when you
    run it again.

    Examples:
      fingerprint-accel enroll known scans cards/anna.an2 --skip-bad
      fingerprint-accel enroll postgresql://me@db/prints --from embeddings/db1
      fingerprint-accel enroll known scans \\
          --names "(?P<subject>[a-z]+)-(?P<position>[a-z_]+)-(?P<impression>[0-9]+)"

    Args:
        prints: Files, folders, csv files and datasets.
        embeddings: Folder of embeddings, written by `extract`, to enrol instead of PRINTS.
        fuse: Fuse the prints of each finger into one template, which is named after the finger.
        names: Regular expression that reads person and finger from file names, as for `import`, or with --from from the
            finger keys of a dataset.
        person: Person to whom all of these prints belong.
        skip_bad: Skip prints that cannot be enrolled, and list each with its reason.
        replace: Replace enrolled prints that have the same name.
        int8: Create a gallery that stores each number of a template in one byte instead of four.
    """
    from fingerprint_accel.data.print_file import Reading
    from fingerprint_accel.extraction.bulk_enrolment import enroll_embeddings
    from fingerprint_accel.extraction.enrolment import enroll_prints
    from fingerprint_accel.extraction.enrolment_inputs import Wanted
    from fingerprint_accel.extraction.extractor import open_extractor
    from fingerprint_accel.extraction.galleries import check_fits, check_gallery, name_of
    from fingerprint_accel.extraction.gallery_parts import FLOAT32, INT8
    from fingerprint_accel.extraction.protection import read_key

    wanted = Wanted(names, key, person, fuse, skip_bad, replace, batch_size, INT8 if int8 else FLOAT32)
    if embeddings is not None:
        read = [
            word
            for word, given in (("--fuse", fuse), ("--key", key), ("--protect", protect), ("PRINTS", prints))
            if given
        ]
        require(not read, f"--from enrols embeddings as they are: leave out {read[0] if read else ''}")
        check_gallery(gallery, [embeddings])
        print(f"{name_of(gallery)}: {enroll_embeddings(gallery, embeddings, wanted).told(fuse)}")
        return
    require(bool(prints), "no PRINTS given: name one or more files, folders or datasets")
    require(ppi > 0, f"--ppi {ppi}: must be above 0")
    check_gallery(gallery, prints)
    protection = read_key(protect) if protect else None
    extractor = open_extractor(model)
    extractor.reading, extractor.protection = Reading(ppi, inverted, mirror), protection
    check_fits(gallery, extractor.identity, wanted.template)  # fails early if the gallery is another one
    print(f"{name_of(gallery)}: {enroll_prints(gallery, prints, extractor, ppi, wanted).told(fuse)}")


def search(
    gallery: Gallery,
    probes: Annotated[Paths, arg("PROBE ...")],
    model: Model = "small",
    ppi: Ppi = 500,
    top: Annotated[int, arg("N")] = 10,
    index: Flag = False,
    names: Annotated[str, arg("REGEX", default="none")] = "",
    key: Key = (),
    inverted: Inverted = "auto",
    mirror: Mirror = False,
    position: Annotated[str, arg("POSITION", default="all fingers")] = "",
    person: Annotated[str, arg("PERSON", default="all persons")] = "",
    protect: Protect = None,
) -> None:
    """Find the prints or person in a gallery most similar to probes.

    One image is compared with every print of the gallery. For galleries of a million prints and more, --index compares
    it only with the candidates of an approximate index.

    Several probes are prints of one person: images, ANSI/NIST transactions, folders and csv files as for `enroll`. A
    probe of a known finger is compared with references of the same and of unknown fingers. The table shows persons,
    their fused score, the number of compared fingers, and the similarity of each: R1 to R5 are the right hand from
    the thumb to the little finger, L1 to L5 the left hand.

    Examples:
      fingerprint-accel search known unknown.png --top 5 --position left_index
      fingerprint-accel search known card.an2
      fingerprint-accel search known booking \\
          --names "(?P<subject>[a-z]+)-(?P<position>[a-z_]+)"

    Args:
        probes: Image of a fingerprint, or several prints of one person.
        top: Number of prints or persons to show.
        index: Use an approximate index, which is stored in the gallery (pip install 'fingerprint-accel[faiss]' for
            a folder).
        names: Regular expression that reads person and finger of several probes from file names, as for `import`.
        position: Compare only with prints of this finger (for example 7 or left_index) and prints of unknown fingers.
        person: Compare only with prints of this person.
    """
    from fingerprint_accel.data.print_file import Reading
    from fingerprint_accel.extraction.extractor import open_extractor
    from fingerprint_accel.extraction.person_search import are_several, find_persons, read_probes, table
    from fingerprint_accel.extraction.protection import read_key
    from fingerprint_accel.extraction.search import columns, details, find, open_gallery, position_code

    require(bool(probes), "no PROBE given: name an image, or several prints of one person")
    _check_texts("--person", [person])
    code, several = position_code(position), are_several(probes, key)
    require(not (several and code), "--position is for one probe; --names or the records state the fingers of several")
    protection = read_key(protect) if protect else None
    extractor = open_extractor(model)
    extractor.reading, extractor.protection = Reading(ppi, inverted, mirror), protection
    opened = open_gallery(gallery, extractor)
    if several:
        prints = read_probes(probes, extractor, ppi, names, key)
        persons, fingers, told = find_persons(extractor, opened, prints, top, index, person)
        print(table(persons, fingers), "", *told, sep="\n")
        return
    rows, known, told = find(extractor, opened, probes[0], ppi, top, index, code, person)
    titles = columns(extractor)
    more, texts = details(known)
    words_of = [["name", *more], *([row[-1], *told_of] for row, told_of in zip(rows, texts, strict=True))]
    for (*cells, _), words in zip([titles, *rows], aligned(words_of).splitlines(), strict=True):
        print("  ".join([*(f"{cell:>{len(title)}}" for cell, title in zip(cells, titles, strict=False)), words]))
    print("", *told, sep="\n")


def remove(
    gallery: Gallery,
    person: Annotated[str, arg("PERSON", default="none")] = "",
    name: Annotated[tuple[str, ...], arg("NAME ...", default="none")] = (),
) -> None:
    """Delete a person or single prints from a gallery.

    The files of the gallery are rewritten without these prints, and the index of a folder is deleted. Names and
    templates of the deleted prints are then no longer in the folder, or in the tables of the database. If the command
    is killed, run it again. Copies, backups and the write-ahead log of a database are not changed.

    Examples:
      fingerprint-accel remove known --person anna
      fingerprint-accel remove known --name scans/anna-1.png card.an2#3-07

    Args:
        person: Person to delete, as shown by `search`.
        name: Names of the prints to delete, as shown by `search`.
    """
    from fingerprint_accel.extraction.galleries import name_of, open_enrolled

    require(bool(person) != bool(name), "give either --person or --name to choose the prints to delete")
    _check_texts("--person" if person else "--name", name or [person])
    known = open_enrolled(gallery)
    count = known.remove(person, name)
    print(f"{name_of(gallery)}: {count:,} prints deleted, {len(known):,} left")


def _check_texts(option: str, texts: Sequence[str]) -> None:
    """Raise a UserError if a word of the command line is not UTF-8. Galleries contain no other text."""
    for text in texts:
        is_utf8 = not any("\ud800" <= letter <= "\udfff" for letter in text)
        require(is_utf8, f"{option} {printable(text)}: is not UTF-8; copy the text that `search` shows")
