"""Settings of the documentation; the pages of the subpackages are made from their docstrings."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import pyro_mmvae

project = "pyro_mmvae"
author = "The pyro_mmvae developers"
copyright = f"2026, {author}"
release = version = pyro_mmvae.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "myst_parser",
]
exclude_patterns = ["methods/rows/*"]  # included by the methods' pages

# What __all__ says, in its order; what a class inherits from torch or Pyro is documented there.
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "training, arg_constraints"}
autodoc_inherit_docstrings = False  # torch and Pyro explain forward and the like at length
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the changelog's headings start at the page's own

html_theme = "furo"
html_title = f"pyro_mmvae {release}"

# Shapes are written (*batch, D) in the docstrings; outside of literals that star would begin an emphasis.
SHAPE_STAR = re.compile(r"``.*?``|`.*?`|(?<=[(\[ ])\*(?=\w+[,)])")


def escape_shapes(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape the star of a shape in prose, not in literals and examples."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[i] = SHAPE_STAR.sub(lambda match: "\\*" if match.group() == "*" else match.group(), line)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", escape_shapes)
