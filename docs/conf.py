"""The documentation site: `make docs` builds it into docs/_build/html, without a network."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "lifelong-edit"
copyright = "the authors of lifelong-edit"
release = version = installed("lifelong-edit")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "math_as_mathml",
    "names_of_modules",
    "repository_pages",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

# What the repository's host shows as it is, read as a directive: ```math is a formula there and here.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

# Docstrings are prose with names in single backquotes; those that are documented become links.
default_role = "py:obj"
smartquotes = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"lifelong-edit {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def readable(*event: str | None) -> tuple[str, str | None] | None:
    """A default that is made afresh for each object is no expression, and would leave the signature as one string."""
    *_, signature, returns = event
    return (signature.replace("<factory>", "..."), returns) if signature else None


def setup(app: Sphinx) -> None:
    """Sphinx calls it when it has read this file."""
    app.connect("autodoc-process-signature", readable)
