"""The parsers to fuzz: a valid file of each, and the function with which commands read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import reading
from .material import CANVAS, PPI, training_words

Read = Callable[[Path], str]


class Refused(Exception):  # noqa: N818  (as UserError, for readers that return a reason)
    """Raised when a reader states a reason for not using a file. Commands list the file with this reason."""


@dataclass(frozen=True)
class Parser:
    """A format that the package reads.

    Attributes:
        name: Row of the table.
        folder: Folder of the material that is copied for each input.
        file: File in this folder that is mutated; may be a glob pattern.
        begin: Called once in each process; returns a function that reads the copied folder with commands' readers and
            returns what it found.
        kept: True if the format is written by this package with a checksum. Damage must then be noticed.
        accepts: False if the reader refuses even the valid file, with a reason.
    """

    name: str
    folder: str
    file: str
    begin: Callable[[Path], Read]
    kept: bool = False
    accepts: bool = True


def _image(name: str, record: bool = False) -> Callable[[Path], Read]:
    """Return the reader of an image file, or of all records of a file, as `import` reads them."""

    def begin(material: Path) -> Read:
        from fingerprint_accel.data.captures import read_records
        from fingerprint_accel.data.decoding import ImageError
        from fingerprint_accel.data.image_record import SLAPS, RecordError
        from fingerprint_accel.data.print_file import ImageFile, Reading, Target, prepare

        def read(folder: Path) -> str:
            path = folder / name
            try:
                records = read_records(path) if record else []
            except (RecordError, ImageError) as error:
                raise Refused(str(error)) from None
            wanted = [
                ImageFile(path, record=each.number, cut=finger if each.position in SLAPS else 0)
                for each in records
                for finger in each.fingers
            ] or [ImageFile(path)]
            results = [prepare(file, Reading(), Target(PPI, CANVAS)) for file in wanted[:8]]
            if all(result.reason for result in results):
                raise Refused(results[0].reason)
            return _sane(results)

        return read

    return begin


def _sane(results: list) -> str:
    """Check that prints are images of the right size with finite minutiae, and return a digest of them."""
    used = [result for result in results if not result.reason]
    for result in used:
        assert result.image.shape == (CANVAS, CANVAS), result.image.shape
        assert result.image.dtype == np.uint8
        assert np.isfinite(result.minutiae).all(), "minutiae that are not finite"
    return reading.digest(*(result.image for result in used), *(result.minutiae for result in used))


def _minutiae(name: str) -> Callable[[Path], Read]:
    def begin(material: Path) -> Read:
        from fingerprint_accel.data.print_file import ImageFile, Reading, Target, prepare

        def read(folder: Path) -> str:
            file = ImageFile(folder / "image.png", minutiae=folder / name)
            result = prepare(file, Reading(), Target(PPI, CANVAS))
            assert not result.reason, result.reason
            if result.minutiae_reason:
                raise Refused(result.minutiae_reason)
            return _sane([result])

        return read

    return begin


def _listing(material: Path) -> Read:
    from fingerprint_accel.data.listing import list_files

    def read(folder: Path) -> str:
        listing = list_files(folder / "listing.csv", "csv")
        return reading.digest(listing.table.to_pylist(), listing.rejected)

    return read


def _split(material: Path) -> Read:
    from fingerprint_accel.config import ReadingConfig
    from fingerprint_accel.data.shards import open_dataset
    from fingerprint_accel.data.splitting import split_prints

    shards = open_dataset(material / "prints")

    def read(folder: Path) -> str:
        split = split_prints(shards, ReadingConfig(split_by=str(folder / "subjects.csv"), validation_fraction=0.5))
        return reading.digest(split.validation, split.unit)

    return read


def _pairs(name: str) -> Callable[[Path], Read]:
    def begin(material: Path) -> Read:
        from fingerprint_accel.data.shards import open_dataset
        from fingerprint_accel.evaluation.pair_lists import read_pairs_file

        shards = open_dataset(material / "numbered")

        def read(folder: Path) -> str:
            found = read_pairs_file(folder / name, shards)
            return reading.digest(found.mated, found.nonmated) if hasattr(found, "mated") else reading.digest(found)

        return read

    return begin


def _yaml(material: Path) -> Read:
    from fingerprint_accel.config import Config, load_yaml

    return lambda folder: reading.digest(str(load_yaml(folder / "config.yaml", Config())))


def _weights(material: Path) -> Read:
    """Return a reader that loads weights into a network that exists already, which saves the time of making it."""
    from fingerprint_accel.extraction.extractor import FingerprintExtractor
    from fingerprint_accel.models.saved_model import find_model

    network = FingerprintExtractor.from_pretrained(material / "model").model

    def read(folder: Path) -> str:
        find_model(folder).load_into(network)
        return reading.digest(*(value.numpy() for value in network.state_dict().values()))

    return read


def _accelerate(material: Path) -> Read:
    from accelerate.commands.config import config_args

    from fingerprint_accel.cli import machine

    def read(folder: Path) -> str:
        config_args.default_config_file = str(folder / "default_config.yaml")
        return reading.digest(str(machine.this_machine().config))

    return read


def _history(material: Path) -> Read:
    from fingerprint_accel.evaluation.history import read_history
    from fingerprint_accel.training.meters import MetricsFile

    def read(folder: Path) -> str:
        train, validation = read_history(folder / "metrics.jsonl")
        MetricsFile(folder / "metrics.jsonl", 4).close()
        return reading.digest(*train.values(), *validation.values())

    return read


def _key(material: Path) -> Read:
    from fingerprint_accel.extraction.protection import read_key

    vectors = np.eye(4, 16, dtype=np.float32)
    return lambda folder: reading.digest(read_key(folder / "key").apply(vectors, 0))


def _flx(material: Path) -> Read:
    from fingerprint_accel.compat.flx_weights import convert

    return lambda folder: str(convert(folder / "best_model.pyt", folder / "converted"))


def resumed(material: Path) -> Read:
    """Return a reader that restores the newest checkpoint of a run, as `--resume auto` does."""
    from fingerprint_accel.config import Config, parse
    from fingerprint_accel.training.resume import checkpoint_to_resume, restore
    from fingerprint_accel.training.setup import set_up

    config = parse(Config(), "", [*training_words(material, 6), "--out", str(material / "run")])
    run = set_up(config)

    def read(folder: Path) -> str:
        found = checkpoint_to_resume(dataclasses.replace(config, out=str(folder)))
        if found is None:
            return "no checkpoint"
        progress = restore(run, found)
        state = run.torch_optimizer.state_dict()["state"]
        weights = [value.numpy() for value in (*run.bare.state_dict().values(), *run.ema.state_dict().values())]
        moments = [np.asarray(value) for entries in state.values() for value in entries.values()]
        return reading.digest(progress, *weights, *moments)

    return read


def _plain(read: Read) -> Callable[[Path], Read]:
    return lambda material: read


def _gallery_change(folder: Path) -> str:
    """Open a gallery in which a change was interrupted, which completes the change."""
    return reading.gallery(folder)


IMAGES = {
    "PNG": "image.png", "PNG, 16 bits": "image-16.png", "JPEG": "image.jpg", "BMP": "image.bmp", "TIFF": "image.tif",
    "TIFF, group 4": "image-g4.tif", "JPEG 2000": "image.jp2", "GIF": "image.gif", "PGM": "image.pgm",
    "WebP": "image.webp", "WSQ": "image.wsq",
}  # fmt: skip
RECORDS = {
    "ISO/IEC 19794-4:2005": "iso-2005.fir", "ISO/IEC 19794-4:2011": "iso-2011.fir", "INCITS 381": "incits-381.fir",
    "ANSI/NIST type 4 with WSQ": "type-4.an2", "ANSI/NIST types 9 and 14": "type-14.an2", "ANSI/NIST slap": "slap.an2",
}  # fmt: skip
MINUTIAE = {
    ".xyt": "minutiae.xyt", ".min": "minutiae.min", ".mnt": "minutiae.mnt", "ISO/IEC 19794-2:2005": "minutiae.iso",
    "ISO/IEC 19794-2:2011": "minutiae.fmr", "INCITS 378-2004": "minutiae.incits378", "INCITS 378-2009": "minutiae.ansi",
    "ISO/IEC 19794-2 on card": "minutiae.isocc",
}  # fmt: skip
STEP = "checkpoints/step-00000006"
PARSERS = {
    parser.name: parser
    for parser in (
        *(Parser(kind, "files", name, _image(name)) for kind, name in IMAGES.items()),
        *(Parser(kind, "files", name, _image(name, record=True)) for kind, name in RECORDS.items()),
        *(Parser(kind, "files", name, _minutiae(name)) for kind, name in MINUTIAE.items()),
        Parser("csv of prints", "files", "listing.csv", _listing),
        Parser("csv of subjects", "files", "subjects.csv", _split),
        Parser("csv of pairs", "files", "pairs.csv", _pairs("pairs.csv")),
        Parser("flx benchmark", "files", "pairs.json", _pairs("pairs.json")),
        Parser("flx checkpoint", "files", "best_model.pyt", _flx, accepts=False),
        Parser("key of --protect", "files", "key", _key),
        Parser("accelerate config", "files", "default_config.yaml", _accelerate),
        Parser("--config file", "run", "config.yaml", _yaml),
        Parser("dataset: fingerprint.json", "prints", "fingerprint.json", _plain(reading.dataset), kept=True),
        Parser("dataset: Arrow shard", "prints", "data-*.arrow", _plain(reading.dataset), kept=True),
        Parser("model: config.json", "calibrated", "config.json", _plain(reading.model), kept=True),
        Parser("model: weights", "model", "model.safetensors", _weights, kept=True),
        Parser("run: config.yaml", "last", "config.yaml", _plain(reading.model)),
        Parser("run: metrics.jsonl", "last", "metrics.jsonl", _history),
        Parser("run: best.json", "last", "best.json", _weights, kept=True),
        Parser("run: latest.json", "last", "latest.json", resumed, kept=True),
        Parser("checkpoint: state.json", "last", f"{STEP}/state.json", resumed, kept=True),
        Parser("checkpoint: weights", "last", f"{STEP}/model.safetensors", resumed, kept=True),
        Parser("checkpoint: optimizer", "last", f"{STEP}/training_state.safetensors", resumed, kept=True),
        Parser("checkpoint: average", "last", f"{STEP}/ema.safetensors", resumed, kept=True),
        Parser("gallery: gallery.json", "gallery", "gallery.json", _plain(reading.gallery), kept=True),
        Parser("gallery: part", "gallery", "part-000000-*.arrow", _plain(reading.gallery), kept=True),
        Parser("gallery: changes.json", "changing", "changes.json", _plain(_gallery_change), kept=True),
        Parser("gallery: index", "indexed", "index-*.faiss", _plain(reading.index), kept=True),
        Parser("embeddings: config.json", "embeddings", "config.json", _plain(reading.embeddings), kept=True),
        Parser("embeddings: templates", "embeddings", "embeddings-*", _plain(reading.embeddings), kept=True),
        Parser("embeddings: failed.jsonl", "embeddings", "failed.jsonl", _plain(reading.embeddings), kept=True),
    )
}  # fmt: skip
