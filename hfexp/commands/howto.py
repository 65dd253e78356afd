"""The answers of docs/howto.md, which `hfexp help WORDS` finds and prints: one page for the site and the terminal."""

import functools
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```\w*\n(.*?)^```\n?", re.M | re.S)
LINK = re.compile(r"\[([^]]+)\]\(([^)#]+)[^)]*\)")
MARKS = re.compile(r"[`*]([^`*]+)[`*]")
COMMON = {
    "how", "the", "for", "from", "with", "and", "that", "you", "can", "does", "what", "use", "get", "set", "make",
}  # fmt: skip
"""Words that tell nothing about what is looked for, besides those of one or two letters."""


@dataclass(frozen=True)
class HowTo:
    """One section of the page."""

    title: str
    text: str

    def count(self, topic: str) -> tuple[int, int]:
        """Return how many words of a topic the title has, and how many the whole section has."""
        words = words_of(topic)
        title, whole = self.title.lower(), f"{self.title} {self.text}".lower()
        return sum(word in title for word in words), sum(word in whole for word in words)

    def show(self, width: int) -> None:
        """Print the section: paragraphs wrapped, code indented."""
        print(f"How to {self.title[0].lower()}{self.title[1:]}\n")  # not `say`, which would mask a `$PWD`
        for number, part in enumerate(FENCE.split(self.text)):
            if number % 2:
                print("\n".join(_code(part.rstrip(), width)) + "\n")
                continue
            for paragraph in re.split(r"\n\s*\n", part.strip()):
                if paragraph:
                    text = " ".join(MARKS.sub(r"\1", LINK.sub(r"\1 (docs/\2)", paragraph)).split())
                    print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) + "\n")


def _code(block: str, width: int) -> Iterator[str]:
    """Yield the lines of code, indented; a comment for which a line has no room stands above it."""
    for line in block.splitlines():
        command, mark, comment = line.partition("  # ")
        if mark and len(line) + 4 > width:
            yield f"    # {comment.strip()}"
            line = command.rstrip()
        yield f"    {line}" if line else ""


def words_of(topic: str) -> list[str]:
    """Return the words of a topic that tell what is looked for."""
    return [word for word in re.findall(r"[\w&]{3,}", topic.lower()) if word not in COMMON]


@functools.cache
def sections() -> list[HowTo]:
    """Read the page: in a wheel it lies beside this package, in a checkout among the documentation."""
    package = Path(__file__).parents[1]
    for path in (package / "howto.md", package.parent / "docs" / "howto.md"):
        if path.is_file():
            parts = re.split(r"^## (.+)\n", path.read_text(encoding="utf-8"), flags=re.M)
            return [HowTo(title, text.strip("\n")) for title, text in zip(parts[1::2], parts[2::2], strict=True)]
    return []


def find(topic: str) -> list[HowTo]:
    """Return the sections that have all words of a topic, those with most of them in their titles."""
    words = words_of(topic)
    found = {section: section.count(topic) for section in sections() if words}
    whole = {section: in_title for section, (in_title, anywhere) in found.items() if anywhere == len(words)}
    return [section for section, in_title in whole.items() if in_title == max(whole.values())]
