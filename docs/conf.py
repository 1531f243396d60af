"""Configuration of the documentation site: `sphinx-build -W docs docs/_build/html`. The build needs no network."""

import os
import shutil
import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "_extensions")]

# No import of the package may reach for a hub.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

from fingerprint_accel import __version__  # noqa: E402

metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "fingerprint_accel"
author = "The fingerprint_accel authors"
copyright = f"2026, {author}"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_help",
    "docstrings",
    "repository_links",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates", "_extensions"]
templates_path = ["_templates"]
default_role = "code"

# The only address of the repository; pyproject.toml holds it.
repository_url = metadata["urls"]["Repository"]
repository_root = str(ROOT)

myst_heading_anchors = 4
suppress_warnings = [
    "misc.highlighting_failure",  # an example of JSON may leave parts out as `...`
    "myst.header",  # GitHub shows a page whose first section is of the third level as well
    "ref.python",  # a name in a docstring may be that of several classes, such as a re-exported one
]

# Pages of modules that have been renamed would stay.
shutil.rmtree(DOCS / "reference" / "generated", ignore_errors=True)
autosummary_generate = True
autosummary_context = {"packages": [path.parent.name for path in (ROOT / "fingerprint_accel").rglob("*/__init__.py")]}
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # docstrings of torch and the standard library are not ours
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
highlight_language = "none"  # of blocks without a language, which show output
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"fingerprint_accel {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_exclude = ".linenos, .gp, .go"
