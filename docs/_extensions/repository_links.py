"""Sphinx extension: point links to repository files outside `docs/` to the public repository.

The pages are also read on GitHub, where `[timing](../benchmarks/throughput.py)` works as written. The site holds only
`docs/`, so that such a link is replaced with the address of the file in the repository. A link to a file that does not
exist is reported as a warning, which ends the build under `sphinx-build -W`.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
LINK = re.compile(r"(?P<start>(?<!!)\]\()(?P<path>[^)\s#:]+)(?P<rest>(?:#[^)\s]*)?\))")


def rewrite(text: str, folder: Path, docs: Path, root: Path, url: str, branch: str = "main") -> str:
    """Replace relative links that leave `docs` with addresses in the repository.

    Args:
        text: Markdown of a page.
        folder: Folder that the links are relative to.
        docs: Source folder of the site; links to files in it are left alone.
        root: Root of the repository.
        url: Address of the repository, without a slash at the end.
        branch: Branch that the addresses name.

    Returns:
        The page with the links replaced.
    """

    def replace(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / match["path"]))
        if target.is_relative_to(docs) or not target.is_relative_to(root):
            return match[0]
        if not target.exists():
            LOGGER.warning("link to %s: there is no such file", target.relative_to(root))
        kind = "tree" if target.is_dir() else "blob"
        return f"{match['start']}{url}/{kind}/{branch}/{target.relative_to(root).as_posix()}{match['rest']}"

    return LINK.sub(replace, text)


def _rewrite_in_place(app: Sphinx, folder: Path, content: list[str]) -> None:
    config = app.config
    content[0] = rewrite(content[0], folder, Path(app.srcdir), Path(config.repository_root), config.repository_url)


def _on_source(app: Sphinx, docname: str, content: list[str]) -> None:
    _rewrite_in_place(app, Path(app.env.doc2path(docname)).parent, content)


def _on_include(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    _rewrite_in_place(app, (Path(app.srcdir) / path).resolve().parent, content)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_config_value("repository_url", "", "env")
    app.add_config_value("repository_root", "", "", types=[str])
    app.connect("source-read", _on_source)
    app.connect("include-read", _on_include)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
