"""Names and values in Markdown: text, never markup, HTML or a line of its own."""

import html
import re

from hfexp.screen import printable

_CODE = re.compile(r"[\w ./:,@=+%()\[\]{}'\"~^#?!;$*-]+")
"""What may stand in backticks: no backtick, no bar of a table, nothing of HTML."""


def plain(text: object) -> str:
    """Escape a text in which Markdown and HTML are to mean nothing."""
    line = " ".join(printable(text).split())
    line = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)  # inside words it means nothing
    return html.escape(line, quote=False)


def code(text: object) -> str:
    """Show a text as code."""
    line = " ".join(printable(text).split())
    return f"`{line}`" if _CODE.fullmatch(line) else f"<code>{plain(line)}</code>"
