"""Image files below a folder, with a count of all other files by the reason why they are left out."""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hfexp.core.errors import ConfigError
from hfexp.tasks.image_memory import FORMATS

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of tables that describe the images in and below their folder, which a column `file_name` names."""
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
SYSTEM_FOLDERS = (
    "__MACOSX", ".AppleDouble", ".Spotlight-V100", ".Trashes", ".fseventsd", "$RECYCLE.BIN",
    "System Volume Information", "@eaDir", ".thumbnails", ".ipynb_checkpoints", ".cache", ".git",
)  # fmt: skip
"""Folders that operating systems and programs create beside the user's files."""


@functools.cache
def image_endings() -> frozenset[str]:
    """Return the file name endings, in lower case, of the formats that are decoded."""
    import PIL.Image

    PIL.Image.init()
    formats = {*PIL.Image.OPEN, "MPO"}.intersection(FORMATS)  # Pillow's JPEG reader opens MPO
    return frozenset(ending for ending, format in PIL.Image.EXTENSION.items() if format in formats)


@dataclass
class LeftOut:
    """The files that are not used, counted by the reason."""

    root: str
    """Folder to which the file names in messages are relative."""
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    """Name of the first file left out for each reason."""

    def add(self, reason: str, path: str, count: int = 1) -> None:
        name = os.path.relpath(path, self.root).encode(errors="surrogateescape").decode(errors="backslashreplace")
        self.first.setdefault(reason, name)
        self.counts[reason] = self.counts.get(reason, 0) + count

    def __str__(self) -> str:
        """Return all reasons, each with its number of files and the name of the first."""
        return "; ".join(
            f"{reason}: {count:,} ({self.first[reason]}{', ...' if count > 1 else ''})"
            for reason, count in self.counts.items()
        )


@dataclass
class Folder:
    """A folder with its images, metadata tables and subfolders."""

    path: str
    images: list[str] = field(default_factory=list)
    """Paths of the image files directly in the folder."""
    metadata: list[str] = field(default_factory=list)
    """Paths of the metadata tables directly in the folder."""
    folders: "dict[str, Folder]" = field(default_factory=dict)
    """Direct subfolders that have images or metadata at any depth, by name."""
    empty: list[str] = field(default_factory=list)
    """Names of the other direct subfolders."""

    @functools.cached_property
    def all_images(self) -> list[str]:
        """Return the paths of the image files in and below the folder."""
        return [*self.images, *(path for folder in self.folders.values() for path in folder.all_images)]

    @functools.cached_property
    def all_metadata(self) -> list[str]:
        """Return the paths of the metadata tables in and below the folder."""
        return [*self.metadata, *(path for folder in self.folders.values() for path in folder.all_metadata)]


def scan(root: str | Path, left_out: LeftOut) -> Folder:
    """Scan a folder and all folders below it; links are followed, except those to a folder that contains the link.

    Raises:
        ConfigError: a folder can't be read.
    """
    above = (_identity(str(path)) for path in Path(root).resolve().parents)
    return _scan(os.path.abspath(root), left_out, frozenset(above))


def _scan(path: str, left_out: LeftOut, above: frozenset[tuple[int, int]]) -> Folder:
    """Scan a folder; `above` holds the identities of the folders that contain it."""
    folder = Folder(path)
    above |= {_identity(path)}
    for entry in _entries(path):
        if not _is_text(entry.name):
            left_out.add("names that are not UTF-8", entry.path)
        elif _is_folder(entry):
            _take_folder(folder, entry, left_out, above)
        else:
            _take_file(folder, entry, left_out)
    return folder


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder; `entry.is_dir()` itself raises for a link that points to itself."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error


def _is_text(name: str) -> bool:
    """Tell whether a name can be stored in a table, i.e. is valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _take_folder(
    folder: Folder, entry: os.DirEntry[str], left_out: LeftOut, above: frozenset[tuple[int, int]]
) -> None:
    """Add a subfolder and what is below it to `folder`, or count its files as left out."""
    if entry.name in SYSTEM_FOLDERS:
        count = sum(len(files) for _, _, files in os.walk(entry.path))
        if count:
            left_out.add("files in system folders", entry.path, count)
        return
    if _identity(entry.path) in above:
        left_out.add("links to a parent folder", entry.path)
        return
    inner = _scan(entry.path, left_out, above)
    if inner.images or inner.folders or inner.metadata:
        folder.folders[entry.name] = inner
    else:
        folder.empty.append(entry.name)


def _take_file(folder: Folder, entry: os.DirEntry[str], left_out: LeftOut) -> None:
    """Add an image or a metadata table to `folder`, or count the file as left out."""
    ending = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        left_out.add("hidden files", entry.path)
    elif not (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()):
        left_out.add("broken links" if entry.is_symlink() else "neither files nor folders", entry.path)
    elif ending in image_endings():
        folder.images.append(entry.path)
    elif entry.name.lower() in METADATA:
        folder.metadata.append(entry.path)
    elif ending in ARCHIVES:
        left_out.add("archives (unpack them)", entry.path)
    else:
        left_out.add(_why_not_read(ending), entry.path)


def _why_not_read(ending: str) -> str:
    """Return the reason for leaving out a file that is neither an image, a table nor an archive."""
    import PIL.Image

    if not ending:
        return "files without an extension"
    known = PIL.Image.EXTENSION.get(ending)
    return f"{ending} files (" + (f"{known} is not supported)" if known else "Pillow does not read them)")
