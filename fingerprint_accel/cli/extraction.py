"""Verbs that embed prints and compare them: `extract`, `compare`, `enroll`, `remove`, `search`, `minutiae`, `demo`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from fingerprint_accel.cli.data import Cluster, Flag, Inverted, Mirror, Overwrite
from fingerprint_accel.durable import write_file
from fingerprint_accel.errors import require
from fingerprint_accel.outputs import check_folder, check_picture
from fingerprint_accel.text import aligned

Model = Annotated[
    str,
    tyro.conf.arg(help="Bundled model, run folder (its best checkpoint), checkpoint folder, or exported model folder."),
]


def extract(
    data: Positional[Path],
    out: Path,
    model: Model = "small",
    ppi: int = 500,
    template: Literal["float32", "int8", "binary"] = "float32",
    length: int = 0,
    minimum_quality: float = 0.0,
    batch_size: int = 0,
    bf16: Flag = False,
    inverted: Inverted = "auto",
    mirror: Mirror = False,
    cluster: Cluster = "",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Embeds every print of a dataset, or of a folder of images, one row for each, in order.

    OUT holds:
      embeddings-*.safetensors  embeddings (N, D), quality (N), finger (N), impression (N); images: finger -1
      prints.parquet            where each row comes from
      failed.jsonl              rows of zeros: images without a print, prints below --minimum-quality
      config.json               model, template, arguments, versions, checksums

    All GPUs of the machine are used, or else all cores; the bytes do not depend on how many. If it is interrupted or
    killed, the same command goes on from there.

    fingerprint-accel extract datasets/db1 --out embeddings/db1

    fingerprint-accel extract scans --ppi 500 --out embeddings/scans --template int8 --length 128

    fingerprint-accel extract datasets/db1 --out embeddings/db1 --model runs/mine/model --cluster scheduler.json

    Args:
        data: Dataset folder, or folder of images (by path, subfolders included).
        out: Folder to write.
        ppi: Resolution of the images, pixels per inch; a dataset knows its own.
        template: float32: 4 bytes a number. int8: 1 byte. binary: 1 bit, the signs.
        length: Keep so many numbers, the first of each branch, for models that were trained for it; 0 for all.
        minimum_quality: Prints of less quality, 0 to 1, count as failure to extract; 0 keeps all.
        batch_size: Prints at a time; 0 for 8 on each thread of a CPU, 64 on a GPU.
        bf16: Run the network in bf16, faster where the hardware has it.
        device: What embeds the prints; auto takes GPUs if there are any.
    """
    from fingerprint_accel.extraction.bulk import Options, extract_all

    options = Options(template, length, minimum_quality, batch_size, bf16, inverted, mirror)
    extract_all(data, out, model, ppi, options, cluster=cluster, device=device, overwrite=overwrite).show()


def compare(
    reference: Positional[Path],
    probe: Positional[Path],
    model: Model = "small",
    ppi: int = 500,
    poses: bool = True,
    out: Path | None = None,
    probe_ppi: int = 0,
    inverted: Inverted = "auto",
    mirror: Mirror = False,
) -> None:
    """Says how alike two prints are, and whether they pass as one finger.

    The similarity lies between -1 and 1. A threshold at a false match rate (FMR) of 0.1 % lets one of 1,000 prints of
    other fingers pass, if they are like the prints that it was measured on. Decisions are shown where the model was
    calibrated on real prints (`calibrate`); the bundled models were not.

    fingerprint-accel compare a.png b.png

    fingerprint-accel compare a.bmp b.wsq --ppi 569 --probe-ppi 500 --model runs/db1 --out pair.png

    fingerprint-accel compare card.an2#4 slap.an2#3-07

    Args:
        reference: Image of a print, or FILE#RECORD of a file of several; FILE#RECORD-POSITION is a finger of a slap.
        probe: Another.
        ppi: Resolution of both images, pixels per inch; what a record states wins.
        probe_ppi: Of the probe, if it is another; 0 for --ppi.
        poses: Also try turns and shifts, and take the best agreement.
        out: PNG file to write: both prints side by side, and one on the other in the pose that compared best.
    """
    from fingerprint_accel.data.print_file import Reading
    from fingerprint_accel.extraction.comparison import compare_prints
    from fingerprint_accel.extraction.extractor import open_extractor
    from fingerprint_accel.extraction.poses import UPRIGHT

    require(ppi > 0, f"--ppi {ppi}: must be above 0")
    if out is not None:
        check_picture(out, (reference, probe))
    extractor = open_extractor(model)
    extractor.reading = Reading(ppi, inverted, mirror)
    found = compare_prints(extractor, reference, probe, ppi, None if poses else UPRIGHT, probe_ppi)
    rows = found.rows()
    if out is not None:
        from fingerprint_accel.extraction.pair_picture import pair_png  # matplotlib takes a second to import

        write_file(out, pair_png(found, (reference.name, probe.name), extractor))
        rows.append(("picture", str(out)))
    print(f"{aligned(rows)}\n{found.basis}")


def enroll(
    gallery: Positional[Path],
    prints: Positional[list[Path]],
    model: Model = "small",
    ppi: int = 500,
    batch_size: int = 64,
    fuse: Flag = False,
    names: str = "",
    key: tuple[str, ...] = (),
    person: str = "",
    skip_bad: Flag = False,
    replace: Flag = False,
    inverted: Inverted = "auto",
    mirror: Mirror = False,
) -> None:
    """Adds prints to a gallery that `search` looks in; makes the gallery if it is not there.

    PRINTS may be mixed: image files, ANSI/NIST transactions and finger image records with all their prints, folders of
    these, csv files as `import --layout csv` reads them, and dataset folders. Files are named by their path, as a.png
    or card.an2#3-07, prints of a dataset FINGER/IMPRESSION. Person and finger position are kept where records, names or
    a csv state them, and so is the source.

    One call adds all of its prints or none. A print that cannot be read, or is too small for the model, ends it, unless
    --skip-bad is given. Prints that are enrolled already, by name and image, are not added again. Another image of the
    same name is refused, unless --replace is given. A gallery belongs to the model that filled it.

    fingerprint-accel enroll known scans cards/anna.an2 --skip-bad

    fingerprint-accel enroll known scans.csv datasets/db1 --model runs/db1

    fingerprint-accel enroll known scans --names "(?P<subject>[a-z]+)-(?P<position>[a-z_]+)-(?P<impression>[0-9]+)"

    fingerprint-accel enroll known scans/anna-left-thumb --person anna --fuse

    Args:
        gallery: Gallery folder.
        prints: Files and folders, see above.
        ppi: Resolution of the images, pixels per inch; what a record, a csv or a dataset states wins.
        batch_size: Prints at a time.
        fuse: Join the prints of each finger in one template, named by the finger: of a dataset, a csv, records and
            names by theirs, of other images by the folder that they lie in.
        names: Regular expression that reads person and finger from the names of images, as of `import`.
        key: Fields of ANSI/NIST files that name the person, as 2.018; by default 1.009, or the file's name.
        person: Whose prints these are, all of them.
        skip_bad: Go on behind a print that cannot be enrolled; each is listed with its reason.
        replace: Put prints in the place of enrolled ones of the same name.
    """
    from fingerprint_accel.data.print_file import Reading
    from fingerprint_accel.extraction.enrolment import Wanted, enroll_prints
    from fingerprint_accel.extraction.extractor import open_extractor
    from fingerprint_accel.extraction.gallery_files import KIND
    from fingerprint_accel.extraction.search import open_gallery

    require(ppi > 0, f"--ppi {ppi}: must be above 0")
    check_folder(gallery, KIND, inputs=prints)
    extractor = open_extractor(model)
    extractor.reading = Reading(ppi, inverted, mirror)
    if gallery.is_dir() and any(gallery.iterdir()):
        open_gallery(gallery, extractor)  # asked before the work; an empty gallery is made after it
    wanted = Wanted(names, key, person, fuse, skip_bad, replace, batch_size)
    print(f"{gallery}: {enroll_prints(gallery, prints, extractor, ppi, wanted).told(fuse)}")


def remove(gallery: Positional[Path], person: str = "", name: tuple[str, ...] = ()) -> None:
    """Deletes a person, or single prints, from a gallery for good.

    The files of the gallery are written again without these prints, and an index is deleted, so that neither name nor
    template is left in the folder. If it is killed, the gallery is as before or as after; the same command goes on.
    Copies and backups of the folder are not touched.

    fingerprint-accel remove known --person anna

    fingerprint-accel remove known --name scans/anna-1.png card.an2#3-07

    Args:
        gallery: Gallery folder, see `enroll`.
        person: Whose prints to delete, as `search` shows it.
        name: Names of the prints to delete, as `search` shows them.
    """
    from fingerprint_accel.extraction.gallery import Gallery

    require(bool(person) != bool(name), "give either --person or --name: what to delete")
    known = Gallery(gallery)
    count = known.remove(person, name)
    print(f"{gallery}: {count:,} prints deleted, {len(known):,} left")


def search(
    gallery: Positional[Path],
    probe: Positional[Path],
    model: str = "small",
    ppi: int = 500,
    top: int = 10,
    index: Flag = False,
    inverted: Inverted = "auto",
    mirror: Mirror = False,
    position: str = "",
) -> None:
    """Finds the prints of a gallery that are most like one print; compares with every one of them, or with --index with
    those that an index proposes, which is for a million prints and more.

    fingerprint-accel search known unknown.png --top 5

    fingerprint-accel search known unknown.png --position left_index

    Args:
        gallery: Gallery folder, see `enroll`.
        probe: Image of a print, ridges dark.
        model: The model that filled the gallery.
        ppi: Resolution of the image, pixels per inch.
        top: How many to show.
        index: Search by an index, kept in the gallery (pip install 'fingerprint_accel[faiss]').
        position: Compare only with prints of this finger, 7 or left_index, and with those whose finger is not known.
    """
    from fingerprint_accel.data.print_file import Reading
    from fingerprint_accel.extraction.extractor import open_extractor
    from fingerprint_accel.extraction.search import columns, details, find, open_gallery, position_code

    code = position_code(position)
    extractor = open_extractor(model)
    extractor.reading = Reading(ppi, inverted, mirror)
    rows, known, told = find(extractor, open_gallery(gallery, extractor), probe, ppi, top, index, code)
    titles = columns(extractor)
    more, texts = details(known)
    words_of = [["name", *more], *([each.name, *told_of] for each, told_of in zip(known, texts, strict=True))]
    for (*cells, _), words in zip([titles, *rows], aligned(words_of).splitlines(), strict=True):
        print("  ".join([*(f"{cell:>{len(title)}}" for cell, title in zip(cells, titles, strict=False)), words]))
    print("", *told, sep="\n")


def minutiae(
    images: Positional[list[Path]],
    model: str,
    out: Path,
    format: Literal["xyt", "iso"] = "xyt",
    ppi: int = 500,
    threshold: float = 0.2,
) -> None:
    """Finds the minutiae of prints, with a model that has a minutia branch; writes one file per image.

    Models of the variants Minu, TexMinu, LocMinu and LocTexMinu draw where minutiae lie. The bundled one has no such
    branch; `--model.variant TexMinu` of the recipes trains one.

      xyt   as NIST's mindtct writes: x, y from the bottom, degrees, score in percent
      iso   ISO/IEC 19794-2:2005, at most 255 minutiae

    fingerprint-accel minutiae scans/*.png --model runs/minutiae --out minutiae

    fingerprint-accel minutiae a.wsq --model runs/minutiae --out templates --format iso --ppi 500

    Args:
        images: Image files, ridges dark.
        model: Run folder (its best checkpoint), checkpoint folder, or exported model folder.
        out: Folder to write; files are called as their images, with another suffix.
        format: What to write, see above.
        ppi: Resolution of the images, pixels per inch.
        threshold: Least score, 0 to 1: lower finds more minutiae, and more that are none.
    """
    from fingerprint_accel.extraction.extractor import open_extractor
    from fingerprint_accel.extraction.minutiae_readout import FOLDER, read_minutiae, write_minutiae

    require(ppi > 0, f"--ppi {ppi}: must be above 0")
    require(0 < threshold <= 1, f"--threshold {threshold}: must be above 0 and at most 1")
    stem, count = Counter(image.stem for image in images).most_common(1)[0]
    require(count == 1, f"{count} images are called {stem}, and so would their minutiae be; take them one by one")
    check_folder(out, FOLDER)
    extractor = open_extractor(model)
    found = read_minutiae(extractor, images, ppi, threshold, progress=len(images) > 16)
    write_minutiae(out, images, found, {"format": format, "ppi": ppi, "model": extractor.identity})
    counts = sorted(map(len, found))
    print(f"{out}: minutiae of {len(images):,} prints, {counts[0]} to {counts[-1]}, median {median(counts):.0f}")


def demo(model: Model = "small", gallery: Path | None = None, port: int = 7860) -> None:
    """Opens a page in the browser to drop two prints on, or to search a gallery; Ctrl-C ends it.

    The page shows each print as the network is given it, both laid on each other in the pose that compared best, their
    similarity and what the model's thresholds say, and minutiae where the model has a minutia branch. It is served to
    this machine alone and asks nothing of any other. Dropped prints are deleted when it ends, also by a signal.

    Needs `pip install 'fingerprint-accel[demo]'`.

    fingerprint-accel demo

    fingerprint-accel demo --gallery known --model runs/db1 --port 8000

    Args:
        gallery: Gallery folder to search, see `enroll`; another can be named on the page.
        port: Where the page is served, http://127.0.0.1:PORT.
    """
    from fingerprint_accel.extraction.demo import demo_command

    demo_command(model, gallery, port)
