"""The documentation site: it is built without a warning, and its reference has every key and command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from hfexp.commands import cli
from hfexp.core.keys import keys
from hfexp.core.options import GROUPS, list_options


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a warning, such as one about a link that leads nowhere, is an error."""
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-b", "html", "-d", place / "trees"]
    done = subprocess.run([*command, ROOT / "docs", place], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text())


def test_the_reference_has_every_key_with_a_text(site: Path) -> None:
    page = (site / "reference" / "keys.html").read_text()
    shown = set(re.findall(r'<span class="pre">([\w.]+)</span>', page))
    assert set(keys()) - {name for name, key in keys().items() if key.type == "section"} <= shown | set(GROUPS)
    assert "No text." not in page
    assert "The initial learning rate" in text_of(site / "reference" / "keys.html")


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    commands, options = text_of(site / "reference" / "commands.html"), text_of(site / "reference" / "options.html")
    for command in set(cli.COMMANDS) - {"train", "help", "version"}:
        assert f"hfexp {command}" in commands
    assert "--picture FILE" in commands
    for group in GROUPS:
        assert all(option.name in options for option in list_options(group))
    codes = text_of(site / "reference" / "exit-codes.html")
    assert all(str(code) in codes for code in (0, 1, 2, 129, 130, 141, 143))


def test_every_page_is_in_the_navigation(site: Path) -> None:
    index = (site / "index.html").read_text()
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    pages = {page for page in pages if not page.startswith(("results/", "genindex", "search", "index", "_"))}
    assert {page for page in pages if f'href="{page}"' not in index} == set()


def test_no_page_names_this_machine(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert str(Path.home()) not in page.read_text() or str(Path.home()) == "/", page
        assert str(ROOT) not in page.read_text(), page
