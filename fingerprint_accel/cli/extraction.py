"""The verb `extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from fingerprint_accel.errors import one_line_errors


def extract(
    data: Positional[Path],
    out: Path,
    model: str = "small",
    ppi: int = 500,
    template: Literal["float32", "int8", "binary"] = "float32",
    length: int = 0,
    minimum_quality: float = 0.0,
    batch_size: int = 0,
    bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    cluster: str = "",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
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
        model: Bundled model, run folder (its best checkpoint), checkpoint folder, or exported model folder.
        ppi: Resolution of the images, pixels per inch; a dataset knows its own.
        template: float32: 4 bytes a number. int8: 1 byte. binary: 1 bit, the signs.
        length: Keep so many numbers, the first of each branch, for models that were trained for it; 0 for all.
        minimum_quality: Prints of less quality, 0 to 1, count as failure to extract; 0 keeps all.
        batch_size: Prints at a time; 0 for 8 on each thread of a CPU, 64 on a GPU.
        bf16: Run the network in bf16, faster where the hardware has it.
        cluster: Address or scheduler file of a Dask cluster that does the work; its workers see all folders.
        device: What embeds the prints; auto takes GPUs if there are any.
        overwrite: Replace OUT, and unfinished shards of another command beside it.
    """
    with one_line_errors("interrupted; the same command goes on from here"):
        from fingerprint_accel.extraction.bulk import Options, extract_all

        options = Options(template, length, minimum_quality, batch_size, bf16)
        summary = extract_all(data, out, model, ppi, options, cluster=cluster, device=device, overwrite=overwrite)
        summary.show()
