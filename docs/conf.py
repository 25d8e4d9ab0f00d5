"""How Sphinx builds these pages: `make docs`."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "snnkern"
author = "the snnkern developers"
copyright = author
release = runpy.run_path(str(ROOT / "snnkern/_version.py"))["__version__"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"snnkern {release}"
html_copy_source = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # "--" begins an option
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# Results are included from where benchmarks keep them, as they were written: with two tables of one
# title, and HTML of their own.
suppress_warnings = ["myst.header"]
