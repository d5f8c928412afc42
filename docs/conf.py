"""The documentation as a site: `make docs`. Its source is the repository's Markdown, which reads as well without it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from RATE_model import __version__  # noqa: E402  after the path

project = "RATE"
author = "The RATE developers"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# The source directory is the repository, so that pages link to each other as they do in a checkout.
root_doc = "docs/index"
include_patterns = ["docs/**.md", "results/*.md", "*/README.md", "examples/*.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "tests"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
html_theme = "furo"
html_title = f"RATE {release}"
html_copy_source = False
