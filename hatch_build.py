"""The README as an index of packages shows it, which has no files beside it that links and pictures could lead to."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LOCAL = r"\((?!https?:|#)([^)#]+)[^)]*\)"
"""The target of a link to a file of the repository."""


class Readme(MetadataHookInterface):
    """Make the project's description of README.md."""

    def update(self, metadata: dict) -> None:
        """Add the description to the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_files(text)}


def without_files(text: str) -> str:
    """Leave out pictures that are files of the repository, and name its other files instead of linking to them."""
    text = re.sub(rf"!\[[^]]*\]{LOCAL}\n*", "", text)
    return re.sub(
        rf"\[([^]]+)\]{LOCAL}", lambda link: link[2] if link[1] == link[2] else f"{link[1]}: {link[2]}", text
    )
