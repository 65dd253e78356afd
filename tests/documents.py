"""Sections of the documentation that tests write from what they have observed."""

import os
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def read_section(name: str, heading: str) -> str:
    """Read the part of a page below a heading, up to the next heading; empty if there is none."""
    found = _section(heading).search((DOCS / name).read_text())
    return found.group() if found else ""


def write_section(name: str, heading: str, text: str) -> None:
    """Write the part of a page below a heading anew, if `HFEXP_WRITE_DOCS=1`."""
    if os.environ.get("HFEXP_WRITE_DOCS") != "1":
        return
    path = DOCS / name
    section = f"{heading}\n\n{text.strip()}\n\n"
    page, found = _section(heading).subn(lambda _: section, path.read_text())
    path.write_text((page if found else f"{page.rstrip()}\n\n{section}").rstrip() + "\n")


def _section(heading: str) -> re.Pattern[str]:
    return re.compile(rf"^{re.escape(heading)}\n.*?(?=^#|\Z)", re.M | re.S)


def code_blocks(name: str) -> list[tuple[str, str]]:
    """Read the blocks of code of a page: pairs of a language and the code, in their order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / name).read_text(), re.M | re.S)
