"""Mutate JSON documents by their structure, and make the checksums of mutated folders fit again.

A file with a wrong checksum only tests the comparison of checksums. A file with a checksum that fits, as an attacker
would write it, tests what comes after.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .mutations import mutation

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e300, -0.5, float("nan"), float("inf"), 100_000),
    *("", "x", "../x", "/dev/zero", "nan", "1", "\x00", "x" * 100_000, "\ud800", [], {}, [None], [[1]], {"": 0}),
)
LABELS = "xxh3_without_pixels"  # entry of `fingerprint.json` with a digest of each shard
DEEP = "[" * 3000 + "]" * 3000


def inputs(name: str, data: bytes, seed: str, number: int) -> bytes:
    """Return mutated copy `number` of a file.

    Args:
        name: Name of the file. Half of the copies of a JSON file are changed by structure.
        data: Content of the file.
        seed: Seed of the copies.
        number: Number of the copy.
    """
    chance = random.Random(f"{seed}/{number}/structure")
    if name.endswith((".json", ".jsonl")) and chance.random() < 0.5 and (lines := data.splitlines(keepends=True)):
        with contextlib.suppress(ValueError):
            if name.endswith(".json"):
                return _changed(data, chance)
            at = chance.randrange(len(lines))
            lines[at] = _changed(lines[at], chance) + b"\n"
            return b"".join(lines)
    return mutation(data, seed, number)


def _changed(data: bytes, chance: random.Random) -> bytes:
    """Replace, remove or add one value of a JSON document."""
    document = json.loads(data)
    parent, key = chance.choice(list(_places(document)) or [(None, None)])
    if parent is None:
        return json.dumps(chance.choice(VALUES)).encode(errors="replace")
    kind = chance.random()
    if kind < 0.15:
        del parent[key]
    elif kind < 0.25 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        parent[key] = chance.choice((*VALUES, "DEEP"))
    return json.dumps(document).replace('"DEEP"', DEEP).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Iterate over the container and the key of each value of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def sign(folder: Path, changed: Path) -> None:
    """Make the checksums in a folder fit its files, after one of the files was changed.

    Args:
        folder: Folder of any kind that the package writes.
        changed: The changed file. Its own entries are kept, except the checksum over them.
    """
    digest = hashlib.sha256(changed.read_bytes()).hexdigest()
    for file in sorted(folder.rglob("*.json"), key=lambda path: path == changed):
        try:
            values = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            continue
        if not isinstance(values, dict):
            continue
        if file != changed:
            values = _replaced(values, changed.name, digest)
            if changed.name in values.get(LABELS, {}):
                del values[LABELS]  # of everything but the pixels; readers accept datasets without it
        if "checksum" in values:
            del values["checksum"]
            with contextlib.suppress(ValueError, RecursionError):
                values["checksum"] = _checksum(values)
        with contextlib.suppress(RecursionError):
            file.write_text(json.dumps(values), errors="surrogatepass")
    if match := re.fullmatch(r"(part|index)-(\w+)-[0-9a-f]{16}(\.\w+)", changed.name):  # with its digest in its name
        changed.rename(changed.with_name(f"{match[1]}-{match[2]}-{digest[:16]}{match[3]}"))


def _replaced(values: Any, name: str, digest: str) -> Any:
    """Replace the digest of a file wherever a document states it."""
    if isinstance(values, dict):
        return {
            key: digest if key == name and isinstance(value, str) else _replaced(value, name, digest)
            for key, value in values.items()
        }
    return values


def _checksum(values: dict[str, Any]) -> str:
    from fingerprint_accel.durable import checksum_of

    return checksum_of(values)
