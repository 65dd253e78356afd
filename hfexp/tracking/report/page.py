"""Contents of a report, rendered as one HTML file and as Markdown."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hfexp.core.console import plain, printable
from hfexp.tasks.base import Piece

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6169; --line: #d9dce1; --page: #fff; --box: #f5f6f8;
  --link: #2257a0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --soft: #a2a8b2; --line: #3a3f47; --page: #15171a;
  --box: #1f2226; --link: #8ab4f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 8px; padding-top: 10px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 18px 0 6px; }
p { margin: 6px 0; overflow-wrap: anywhere; }
p.lead, nav { color: var(--soft); }
nav a { color: var(--link); margin-right: 14px; text-decoration: none; }
figure, .scroll { display: inline-block; vertical-align: top; margin: 8px 28px 8px 0; max-width: 100%; }
.scroll { overflow-x: auto; }
caption { text-align: left; padding-bottom: 4px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; unicode-bidi: isolate; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td:not(.n) { min-width: 5em; }
td.n, th.n { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 650; }
table.small { font-size: 13px; }
table.small td:first-child { white-space: nowrap; color: var(--soft); }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
mark { background: none; color: inherit; border-bottom: 3px solid; border-radius: 2px; }
mark.right { border-color: #2e8b57; } mark.wrong { border-color: #c0392b; } mark.missed { border-color: #d68910;
  border-bottom-style: dashed; }
mark small { color: var(--soft); padding-left: 4px; }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --box: #fff; }
  body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; }
  figure, tr, pre { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content-Security-Policy of a page: it loads nothing from elsewhere and runs no script."""


@dataclass
class Text:
    """A paragraph."""

    tag: ClassVar = "p"
    text: str


class Heading(Text):
    """A heading inside a section, one level below the section's title."""

    tag = "h3"


class Code(Text):
    """Preformatted text."""

    tag = "pre"


@dataclass
class Picture:
    """A PNG file beside the page; the HTML page embeds it."""

    name: str
    alt: str


@dataclass
class Table:
    """Rows below a header; a header of empty strings is not shown in HTML."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] | None = None
    """Indices of right-aligned columns (numbers); None: all but the first."""
    strong: frozenset[int] = frozenset()
    """Indices of rows in bold."""
    small: bool = False
    title: str = ""

    def is_number(self, column: int) -> bool:
        """Tell whether a column is right-aligned."""
        return column > 0 if self.numbers is None else column in self.numbers


@dataclass
class Marked:
    """A text in which parts are marked."""

    pieces: Sequence[Piece]


Block = Text | Picture | Table | Marked


@dataclass
class Section:
    """One part of a report; a section without blocks is left out."""

    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Report:
    """A report: its title, a lead line, and sections in reading order."""

    title: str
    lead: str
    sections: list[Section]

    def filled(self) -> list[Section]:
        """Return the sections that have blocks."""
        return [section for section in self.sections if section.blocks]

    def html(self, images: dict[str, bytes]) -> str:
        """Render one self-contained HTML file, which is well-formed XML too.

        Args:
            images: PNG by file name, embedded in the page.
        """
        sections = self.filled()
        links = "".join(f'<a href="#s{n}">{_html(s.title)}</a>' for n, s in enumerate(sections))
        body = "\n".join(
            f'<section id="s{n}">\n<h2>{_html(s.title)}</h2>\n'
            + "\n".join(_html_block(block, images) for block in s.blocks)
            + "\n</section>"
            for n, s in enumerate(sections)
        )
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
            f"<title>{_html(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f'<h1>{_html(self.title)}</h1>\n<p class="lead">{_html(self.lead)}</p>\n<nav>{links}</nav>\n'
            f"{body}\n</body>\n</html>\n"
        )

    def markdown(self) -> str:
        """Render the report as Markdown, which links to the pictures by file name."""
        parts = [f"# {plain(self.title)}", plain(self.lead)]
        for section in self.filled():
            parts += [f"## {plain(section.title)}", *map(_md_block, section.blocks)]
        return "\n\n".join(parts) + "\n"


def _html(text: str) -> str:
    return html.escape(printable(text))  # the form in which `mask_secrets` looks for secrets in a page


def _html_block(block: Block, images: dict[str, bytes]) -> str:
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Picture):
        data = base64.b64encode(images[block.name]).decode()
        return f'<figure><img src="data:image/png;base64,{data}" alt="{_html(block.alt)}"/></figure>'
    if isinstance(block, Marked):
        return f"<p>{''.join(map(_html_piece, block.pieces))}</p>"
    return f"<{block.tag}>{_html(block.text)}</{block.tag}>"


def _html_piece(piece: Piece) -> str:
    if not piece.verdict:
        return _html(piece.text)
    return f'<mark class="{piece.verdict}">{_html(piece.text)}<small>{_html(_note(piece))}</small></mark>'


def _note(piece: Piece) -> str:
    """Return what stands behind a marked part, so that it can be read without its colour."""
    return piece.note if piece.verdict == "right" else f"{piece.note} {piece.verdict}"


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str, attributes: str = "") -> str:
        kinds = (' class="n"' if table.is_number(n) else "" for n in range(len(cells)))
        shown = "".join(f"<{tag}{kind}>{_html(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr{attributes}>{shown}</tr>"

    strong = [' class="strong"' if n in table.strong else "" for n in range(len(table.rows))]
    body = "\n".join(row(cells, "td", kind) for cells, kind in zip(table.rows, strong, strict=True))
    head = f"<thead>{row(table.header, 'th')}</thead>" if any(table.header) else ""
    kind = ' class="small"' if table.small else ""
    title = f"<caption>{_html(table.title)}</caption>" if table.title else ""
    return f'<div class="scroll"><table{kind}>{title}{head}<tbody>\n{body}\n</tbody></table></div>'


def _md_block(block: Block) -> str:
    if isinstance(block, Table):
        return _md_table(block)
    if isinstance(block, Picture):
        return f"![{plain(block.alt)}]({block.name})"
    if isinstance(block, Marked):
        shown = (f"**{plain(p.text)}** ({plain(_note(p))})" if p.verdict else plain(p.text) for p in block.pieces)
        return " ".join(filter(None, shown))
    if isinstance(block, Heading):
        return f"### {plain(block.text)}"
    if isinstance(block, Code):
        text = printable(block.text)
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        return f"{fence}text\n{text}\n{fence}"
    return plain(block.text)


def _md_table(table: Table) -> str:
    def row(cells: Sequence[str], strong: bool = False) -> str:
        mark = "**" if strong else ""
        return "| " + " | ".join(f"{mark}{plain(cell)}{mark}" if cell else "" for cell in cells) + " |"

    rule = "| " + " | ".join("--:" if table.is_number(n) else "---" for n in range(len(table.header))) + " |"
    rows = [row(cells, n in table.strong) for n, cells in enumerate(table.rows)]
    title = [plain(table.title), ""] if table.title else []
    return "\n".join([*title, row(table.header), rule, *rows])
