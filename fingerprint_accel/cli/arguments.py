"""Annotated types for options that several verbs share. The annotations hold placeholders and texts for `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional


def arg(metavar: str = "", help: str = "", default: str = "") -> Any:
    """Return an annotation for a parameter of a verb, which describes the option in `--help`.

    Args:
        metavar: Placeholder for the value of the option, in capitals. By default, tyro derives it from the type.
        help: Text of one sentence. By default, the text is in the docstring of the verb.
        default: Text to show for the default value, if the value does not explain itself, for example 0 or "".
    """
    hint = f"(default: {default})" if default else None
    return tyro.conf.arg(metavar=metavar or None, help=help or None, help_behavior_hint=hint)


Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(default="off")]  # --flag without --no-flag
Switch = Annotated[bool, arg(default="on")]  # --switch and --no-switch
Paths = Annotated[Positional[list[Path]], tyro.conf.arg(help_behavior_hint="(one or more)")]
OutFolder = Annotated[Path, arg("OUT")]
Dataset = Annotated[Positional[Path], arg("DATASET", "Dataset folder.")]

MODELS = "Bundled model (small, base), run folder, checkpoint folder, or exported model folder."
Model = Annotated[str, arg("MODEL", MODELS)]
ModelPlace = Annotated[Positional[Path], arg("MODEL", MODELS)]
Gallery = Annotated[Positional[str], arg("GALLERY", "Gallery folder, or postgresql://USER@HOST/DATABASE.")]
Ppi = Annotated[
    int, arg("PPI", "Resolution of images in pixels per inch, unless a record, csv or file name states one.")
]
DatasetPpi = Annotated[int, arg("PPI", "Resolution of the dataset, in pixels per inch.")]
Canvas = Annotated[int, arg("PIXELS", "Side of a print in the dataset, in pixels.")]
Inverted = Annotated[
    Literal["auto", "yes", "no"],
    arg(help="Whether ridges are light on a dark background. auto decides for each print."),
]
Mirror = Annotated[Flag, tyro.conf.arg(help="Flip images from left to right, for example of prints lifted with tape.")]
Key = Annotated[
    tuple[str, ...],
    arg("FIELD ...", "ANSI/NIST fields that identify the person, for example 2.018.", "1.009, or the file name"),
]

Protect = Annotated[
    Path | None,
    arg("KEY_FILE", "Protect templates by the secret key in this file (openssl rand -hex 32 makes one).", "none"),
]

Workers = Annotated[int, arg("N", "Number of processes on the CPU.", "one per core")]
Cluster = Annotated[
    str,
    arg("ADDRESS", "Run on a Dask cluster: its address or scheduler file. Workers must see all folders.", "none"),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], arg(help="Device to compute on. auto uses all GPUs if there are any.")
]
BatchSize = Annotated[int, arg("N", "Number of prints in a batch.")]
Overwrite = Annotated[Flag, tyro.conf.arg(help="Replace OUT, and unfinished shards of another command.")]
Seed = Annotated[int, arg("N")]
