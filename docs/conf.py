"""Settings of the documentation site, which `make docs` builds with Sphinx."""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import reference  # noqa: E402

from hfexp.core import __version__  # noqa: E402

project = "hfexp"
version = release = __version__
html_title = f"hfexp {__version__}"
author = "the hfexp authors"
copyright = "the hfexp authors, Apache License 2.0"  # noqa: A001

extensions = ["myst_nb", "sphinx_copybutton", "sphinxcontrib.mermaid"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebook` runs it, and keeps what it shows
exclude_patterns = ["_build"]
myst_fence_as_directive = ["mermaid"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
linkcheck_anchors = False  # GitHub makes its anchors in the browser


RESULTS = HERE.parent / "benchmarks" / "results"


def setup(app: Any) -> None:
    """Bring pages that lie elsewhere into the site before Sphinx reads it: the reference, and what was measured."""
    reference.write(HERE / "reference")
    (HERE / "results").mkdir(exist_ok=True)
    for path in RESULTS.glob("*.md"):
        copy = HERE / "results" / path.name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            copy.write_bytes(path.read_bytes())
    app.connect("source-read", link_to_copies)


def link_to_copies(app: Any, name: str, source: list[str]) -> None:
    """Let links to measurements lead to their copies; on a page of the repository they lead to the originals."""
    source[0] = source[0].replace("](../benchmarks/results/", "](results/")
