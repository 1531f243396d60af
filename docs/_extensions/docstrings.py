"""Sphinx extension: adapt autodoc and napoleon to dataclasses and named tuples."""

from typing import Any

from sphinx.application import Sphinx

ATTRIBUTES = ("attribute", "data", "property")


def _skip_unnamed_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out fields of named tuples that have only the docstring that Python gives them."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def _shorten_factories(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Replace `<factory>`, which Sphinx cannot parse, in the signature of a dataclass."""
    return signature and signature.replace("<factory>", "..."), returns


class _AttributeDocstrings:
    """Undo napoleon's changes to docstrings of attributes: it takes the words before a colon for a type."""

    def __init__(self) -> None:
        self.originals: dict[str, list[str]] = {}

    def keep(self, app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        if what in ATTRIBUTES:
            self.originals[name] = list(lines)

    def restore(self, app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        if what in ATTRIBUTES:
            lines[:] = self.originals.pop(name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    attributes = _AttributeDocstrings()
    app.connect("autodoc-skip-member", _skip_unnamed_fields)
    app.connect("autodoc-process-signature", _shorten_factories)
    app.connect("autodoc-process-docstring", attributes.keep, priority=100)  # napoleon has the default of 500
    app.connect("autodoc-process-docstring", attributes.restore, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
