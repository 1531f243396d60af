"""Mutate the bytes of files, for tests of the parsers that read files of strangers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

MOST = 2**17  # bytes; a mutation that repeats a part of the file does not grow it by more than this
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
EXTREMES = (
    *(b"0", b"-1", b"-0", b"1", b"255", b"256", b"65535", b"65536", b"2147483647", b"2147483648", b"4294967296"),
    *(b"9223372036854775807", b"9223372036854775808", b"1e300", b"-1e300", b"1e999", b"1e-320", b"nan", b"NaN"),
    *(b"inf", b"-inf", b"Infinity", b"9" * 400, b"0.5", b"", b"null", b"true", b"[]", b"{}", b'""', b'"\\u0000"'),
    *(b"0x10", b"1_000", b"\xd9\xa3", b"\xc2\xb2", b"\x00", b"../x", b"/dev/zero"),
)
SEPARATORS = b"\n\r\t ,;:.\"'{}[]()/\\#\x00\x1c\x1d\x1e\x1f\xff\xfe"


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Iterate over mutated copies of a file.

    A copy has one to four random changes: flipped bits, replaced, inserted or removed bytes, a truncated end, repeated
    or swapped sections, and numbers replaced by extreme ones, both in text and in binary big- and little-endian form.

    Args:
        data: Contents of the file.
        count: Number of copies.
        seed: Seed of the random changes. The same seed gives the same copies.
    """
    for number in range(count):
        yield mutation(data, seed, number)


def mutation(data: bytes, seed: int, number: int) -> bytes:
    """Return one of the copies of `mutations`, so that a finding can be repeated from its seed and number."""
    rng = random.Random(f"{seed}/{number}")
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(CHANGES)(changed, rng)
    return bytes(changed)


def _span(data: bytearray, rng: random.Random) -> slice:
    """Choose a section of a file. Short sections, and sections near the start, are more frequent."""
    start = min(rng.randrange(len(data) + 1), rng.choice((64, 512, len(data))))
    return slice(start, start + min(rng.choice((1, 2, 4, 16, 256, 4096)), len(data) - start))


def _flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if span := range(*_span(data, rng).indices(len(data))):
            data[span[0]] ^= 1 << rng.randrange(8)


def _replace_bytes(data: bytearray, rng: random.Random) -> None:
    span = _span(data, rng)
    size = span.stop - span.start
    data[span] = rng.choice((rng.randbytes(size), b"\0" * size, b"\xff" * size, b"\x7f" * size))


def _insert(data: bytearray, rng: random.Random) -> None:
    at, size = _span(data, rng).start, rng.choice((1, 1, 2, 8, 64, 1024))
    byte = bytes([rng.choice(SEPARATORS)])
    data[at:at] = rng.choice((rng.randbytes(size), byte * size, bytes(rng.choice(SEPARATORS) for _ in range(size))))


def _remove(data: bytearray, rng: random.Random) -> None:
    del data[_span(data, rng)]


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[_span(data, rng).start :]


def _repeat(data: bytearray, rng: random.Random) -> None:
    span = _span(data, rng)
    times = min(rng.choice((1, 2, 100, 10_000)), MOST // max(1, span.stop - span.start))
    data[span.stop : span.stop] = bytes(data[span]) * times


def _swap(data: bytearray, rng: random.Random) -> None:
    first, second = sorted((_span(data, rng), _span(data, rng)), key=lambda span: span.start)
    if first.stop <= second.start:
        data[first], data[second] = bytes(data[second]), bytes(data[first])


def _replace_number(data: bytearray, rng: random.Random) -> None:
    numbers = list(NUMBER.finditer(data, 0, MOST))
    if numbers:
        found = rng.choice(numbers)
        data[found.start() : found.end()] = rng.choice(EXTREMES)


def _replace_integer(data: bytearray, rng: random.Random) -> None:
    at, size = _span(data, rng).start, rng.choice((1, 2, 4, 8))
    if at + size <= len(data):
        value = rng.choice((0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data)))
        data[at : at + size] = (value % 256**size).to_bytes(size, rng.choice(("big", "little")))


def _replace_separator(data: bytearray, rng: random.Random) -> None:
    places = [at for at, byte in enumerate(data[:4096]) if byte in SEPARATORS]
    if places:
        data[rng.choice(places)] = rng.choice(SEPARATORS)


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip_bits, _replace_bytes, _insert, _remove, _truncate, _repeat, _swap, _replace_number, _replace_integer,
    _replace_separator,
)  # fmt: skip
