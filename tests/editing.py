"""Change JSON files as a user would: the checksum goes with the first change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def edited(file: Path, **values: Any) -> dict[str, Any]:
    """Replace entries of a JSON file, of which None removes one, and the checksum; return what it then contains."""
    now = {**json.loads(file.read_text()), **values, "checksum": None}
    now = {name: value for name, value in now.items() if value is not None}
    file.write_text(json.dumps(now))
    return now
