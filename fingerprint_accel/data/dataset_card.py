"""Write the dataset card, which is the file `README.md` of a dataset folder, for readers and the Hugging Face Hub.

The front matter follows https://github.com/huggingface/hub-docs/blob/main/datasetcard.md. The card has no date, and its
bytes do not depend on the number of workers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from fingerprint_accel.data.arrow_shard import schema
from fingerprint_accel.data.import_summary import kind_of
from fingerprint_accel.data.shard_writing import CARD, REJECTED, DatasetInfo
from fingerprint_accel.data.truth import GRID
from fingerprint_accel.durable import write_file

SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M", 1e8: "10M<n<100M"}
"""Size categories of the Hugging Face Hub. The key is the number of rows that a category stays below."""
MEANING = {
    "image": "canvas of {canvas} x {canvas} uint8 pixels, row by row; 0 is black, ridges are dark{packed}",
    "finger": "number of the finger in this dataset; numbers may have gaps",
    "impression": "number of the impression of the finger",
    "finger_key": "identifier of the finger that its owner uses",
    "source": "origin of the print: the path of its image, or `synthetic/QUALITY/PATTERN` for a synthetic print",
    "minutiae": "x, y, angle and quality of each minutia, one after the other; canvas pixels from the top left corner, "
    "and radians counter-clockwise from the x axis",
    "pose": "rotation (radians) and shift along x and y (canvas pixels) of the finger; NaN if unknown",
    "contact": f"contact area: {GRID} x {GRID} cells of the canvas, one bit each; zeros if unknown",
    "nfiq2": "NFIQ 2 quality score from 0 to 100; -1 if unknown",
}
PRIVACY = (
    "**Fingerprints are personal data.** They identify people and cannot be changed. Store this dataset encrypted, "
    "restrict access to it, and share it only if the law and the consent of the people allow it."
)
SYNTHETIC = (
    "All prints are synthetic and show no finger of a person. Fingerprints are personal data: protect every dataset "
    "that also contains prints of real fingers."
)
BODY = """
# {title}

Dataset of fingerprints, written by `fingerprint-accel {verb}` (fingerprint_accel {version}).

{privacy}

The licence is not known. Set `license` in the header of this file before you share the dataset.

## Contents

{contents}

{rejected}## Columns

{columns}

## How it was made

`fingerprint-accel {verb}`{sources}, with these options:

{options}

{versions}

## How to open it

With the library `datasets`:

```python
import numpy as np
{pyarrow}from datasets import load_from_disk

dataset = load_from_disk("FOLDER")  # this folder
pixels = {pixels}
image = np.frombuffer(pixels, np.uint8).reshape({canvas}, {canvas})
```

With fingerprint_accel:

```python
from fingerprint_accel.data.shards import open_dataset

shards = open_dataset("FOLDER")
image = shards.image(0)  # ({canvas}, {canvas}) uint8
key = shards.key_of_finger[shards.fingers[0]]
minutiae, counts = shards.minutiae(np.array([0]))
```

- `fingerprint-accel inspect FOLDER` shows counts and a contact sheet.
- `fingerprint-accel verify FOLDER` compares the shards with their checksums.
- `accelerate launch --quiet recipes/finetune.py --data FOLDER --out RUN` fine-tunes a bundled model on the dataset.
"""
PIXELS = {
    "raw": 'dataset[0]["image"]',
    "lz4": 'pa.Codec("lz4_raw").decompress(dataset[0]["image"], {canvas} * {canvas})',
}
"""Python expressions for the pixels of the first print, by encoding."""


@dataclass(frozen=True)
class Origin:
    """Command that made a dataset, with its options and versions.

    Attributes:
        verb: name of the command: `import`, `merge` or `synth`.
        options: dictionary from the name to the value of each option, without paths of the user's folders.
        versions: dictionary from the name to the version of each software package that affects the dataset.
        sources: names of the source folders.
        synthetic: whether all prints are synthetic.
    """

    verb: str
    options: dict[str, Any]
    versions: dict[str, str]
    sources: Sequence[str] = field(default_factory=tuple)
    synthetic: bool = False


def origin_of(
    verb: str, arguments: dict[str, Any], versions: Sequence[str], sources: Sequence[str] = (), synthetic: bool = False
) -> Origin:
    """Return the origin of a dataset from the arguments of the job that made it.

    Args:
        verb: name of the command.
        arguments: arguments of the job, `Job.arguments`.
        versions: names of the arguments that are versions of software. All other arguments are options.
        sources: names of the source folders.
        synthetic: whether all prints are synthetic.
    """
    known = {name: str(arguments[name]) for name in versions if arguments.get(name)}
    options = {name: value for name, value in arguments.items() if name not in versions}
    return Origin(verb, options, known, sources, synthetic)


def write_dataset_card(folder: Path, origin: Origin, truth: bool = False, nfiq2: bool = False) -> None:
    """Write the card of a dataset folder. All other files of the folder must be complete.

    Args:
        folder: dataset folder.
        origin: command that made the dataset.
        truth: whether the dataset has the columns `pose` and `contact`.
        nfiq2: whether the dataset has the column `nfiq2`.
    """
    info = DatasetInfo.read(folder)
    write_file(folder / CARD, dataset_card(info, schema(truth, nfiq2), origin, _rejected(folder)))


def dataset_card(info: DatasetInfo, columns: pa.Schema, origin: Origin, rejected: Counter[str] | None = None) -> str:
    """Return the card of a dataset as Markdown with YAML front matter.

    Args:
        info: properties of the dataset.
        columns: columns of the dataset.
        origin: command that made the dataset.
        rejected: number of rejected files for each reason; None for commands that do not reject files.
    """
    title = f"{info.prints:,} {'synthetic ' if origin.synthetic else ''}fingerprints of {info.fingers:,} fingers"
    side = {"canvas": info.canvas}
    packed = ", compressed as one lz4 block" if info.encoding == "lz4" else ""
    body = BODY.format(
        title=title,
        verb=origin.verb,
        version=origin.versions.get("fingerprint_accel", ""),
        privacy=SYNTHETIC if origin.synthetic else PRIVACY,
        contents=_contents(info, rejected),
        rejected=_reasons(rejected) if rejected else "",
        columns=_table(
            ("column", "type", "meaning"),
            [
                (f"`{column.name}`", _type(column.type), MEANING[column.name].format(**side, packed=packed))
                for column in columns
            ],
        ),
        sources=" of " + ", ".join(f"`{source}`" for source in origin.sources) if origin.sources else "",
        options=_table(("option", "value"), [(name, _text(value)) for name, value in origin.options.items()]),
        versions="Versions: " + ", ".join(f"{name} {version}" for name, version in origin.versions.items()) + ".",
        pyarrow="import pyarrow as pa\n" if info.encoding == "lz4" else "",
        pixels=PIXELS[info.encoding].format(**side),
        **side,
    )
    return f"---\n{_front_matter(title, info, columns, origin)}---\n{body}"


def _front_matter(title: str, info: DatasetInfo, columns: pa.Schema, origin: Origin) -> str:
    """Return the YAML front matter of a card, which the Hugging Face Hub reads.

    The entry `configs` lists the data files. Without it, the Hub would also read the JSON files of the folder as data.
    """
    facts = {
        "pretty_name": title,
        "license": "other",
        "license_name": "unknown",
        "task_categories": ["image-feature-extraction"],
        "tags": ["fingerprint", "biometrics", *(["synthetic"] if origin.synthetic else [])],
        "size_categories": [next((name for most, name in SIZES.items() if info.prints < most), "100M<n<1B")],
        "dataset_info": {"features": [_feature(column) for column in columns]},
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data-*.arrow"}]}],
    }
    return yaml.safe_dump(facts, sort_keys=False, width=120)


def _feature(column: pa.Field) -> dict[str, Any]:
    """Return the description of a column for the entry `dataset_info` of the front matter."""
    if not pa.types.is_nested(column.type):
        return {"name": column.name, "dtype": str(column.type)}
    size = {"length": column.type.list_size} if pa.types.is_fixed_size_list(column.type) else {}
    return {"name": column.name, "list": _scalar(column.type.value_type), **size}


def _scalar(kind: pa.DataType) -> str:
    """Return the name of a scalar Arrow type in the library `datasets`, for example `float32` for `float`."""
    return {"float": "float32"}.get(str(kind), str(kind))


def _type(kind: pa.DataType) -> str:
    """Return the name of an Arrow type for readers of the card, for example `list of 3 float32`."""
    if not pa.types.is_nested(kind):
        return _scalar(kind)
    count = f" of {kind.list_size}" if pa.types.is_fixed_size_list(kind) else ""
    return f"list{count} {_scalar(kind.value_type)}"


def _contents(info: DatasetInfo, rejected: Counter[str] | None) -> str:
    """Return the counts and properties of a dataset as a Markdown table."""
    rows = [
        ("prints", f"{info.prints:,}"),
        ("fingers", f"{info.fingers:,}"),
        ("prints with minutiae", f"{info.with_minutiae:,}"),
        ("resolution", f"{info.ppi} ppi"),
        ("canvas", f"{info.canvas} x {info.canvas} pixels ({info.canvas / info.ppi * 25.4:.1f} mm)"),
        ("encoding of images", info.encoding),
        ("ridges enhanced", "yes" if info.enhanced else "no"),
        ("shards", f"{len(info.sha256):,}"),
    ]
    if rejected is not None:
        rows.append(("rejected files", f"{rejected.total():,}"))
    return _table(("", ""), rows)


def _reasons(rejected: Counter[str]) -> str:
    """Return a Markdown list of the reasons for rejected files, with the number of files for each reason."""
    lines = "".join(f"- {reason}: {count:,}\n" for reason, count in sorted(rejected.items()))
    return f"Rejected files by reason (`{REJECTED}` lists each of them):\n\n{lines}\n"


def _rejected(folder: Path) -> Counter[str] | None:
    """Return the number of rejected files for each reason; None if the folder has no list of rejected files."""
    if not (folder / REJECTED).is_file():
        return None
    with (folder / REJECTED).open() as lines:
        return Counter(kind_of(json.loads(line)["reason"]) for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with a header and rows of text cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _text(value: Any) -> str:
    """Return the value of an option as text for readers of the card."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value in (None, "") else f"`{value}`" if isinstance(value, str) else str(value)
