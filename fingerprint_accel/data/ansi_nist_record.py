"""Fields of a record of an ANSI/NIST-ITL transaction."""

from __future__ import annotations

import re
from dataclasses import dataclass

FIELD, SUBFIELD, ITEM = b"\x1d", b"\x1e", b"\x1f"
CM_PER_INCH = 2.54
LARGEST = 1e6  # largest absolute value of a number


@dataclass(frozen=True)
class Record:
    """One record of a transaction.

    Attributes:
        kind: record type, for example 14.
        data: all bytes of the record.
        idc: information designation character, an integer. A minutiae record has the same value as the record of its
            image.
        fields: dictionary from field number to value, without the image; empty for binary record types.
        image: bytes of the image: field 999, or the bytes after the header of a binary record. Empty if there are none.
    """

    kind: int
    data: memoryview
    idc: int
    fields: dict[int, bytes]
    image: memoryview

    def text(self, number: int) -> str:
        """Return the value of field `number` as text; empty if the record lacks the field."""
        return self.fields.get(number, b"").decode("utf-8", "replace").strip()

    def number(self, number: int) -> float:
        """Return the first item of field `number` as a float; 0 if it is missing or not a number.

        Raises:
            ValueError: if the number is not finite or implausibly large.
        """
        try:
            value = float(re.split(rb"[\x1e\x1f]", self.fields.get(number, b"0"), maxsplit=1)[0])
        except ValueError:
            return 0.0
        if not abs(value) <= LARGEST:
            raise ValueError(f"the number {value:g} in field {self.kind}.{number:03d}")
        return value

    def rows(self, number: int) -> list[list[bytes]]:
        """Return the subfields of field `number`, each as a list of its items."""
        value = self.fields.get(number, b"")
        return [row.split(ITEM) for row in value.split(SUBFIELD)] if value else []
