"""Escape names and values for Markdown, so that they stay plain text on one line: no markup, no HTML."""

import html
import re

from hfexp.core.console import printable

_CODE = re.compile(r"[\w ./:,@=+%()\[\]{}'\"~^#?!;$*-]+")
"""Texts that may stand in backticks: they have no backtick, no table bar and no HTML character."""


def plain(text: object) -> str:
    """Escape a text so that neither Markdown nor HTML gives any of it a meaning."""
    line = " ".join(printable(text).split())
    line = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)  # an underscore inside a word is not markup
    return html.escape(line, quote=False)


def code(text: object) -> str:
    """Format a text as inline code."""
    line = " ".join(printable(text).split())
    return f"`{line}`" if _CODE.fullmatch(line) else f"<code>{plain(line)}</code>"
