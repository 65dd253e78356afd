"""Image files below a folder, with every other file counted by the reason for which it is left out."""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hfexp.errors import ConfigError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables about the images in and below their folder: a column `file_name`, and others."""
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
SYSTEM_FOLDERS = (
    "__MACOSX", ".AppleDouble", ".Spotlight-V100", ".Trashes", ".fseventsd", "$RECYCLE.BIN",
    "System Volume Information", "@eaDir", ".thumbnails", ".ipynb_checkpoints", ".cache", ".git",
)  # fmt: skip
"""Folders that systems and programs put beside a person's files."""
FORMATS = (
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO", "IM", "IMT",
    "JPEG", "JPEG2000", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER",
    "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB",
)  # fmt: skip
"""Formats that are decoded, in training as in prediction, where Pillow has them.

Not among them: EPS, which starts Ghostscript; IPTC, which opens what it holds as any format, EPS too; FITS, which
unpacks gzip without a limit; BUFR, GRIB, HDF5, MPEG, WMF, which Pillow can't decode by itself; formats of plugins.
"""


MAX_PIXELS = 178_956_970
"""Pixels of an image that is decoded unless more are allowed: as many as Pillow decodes, twice what it warns of."""


@functools.cache
def image_endings() -> frozenset[str]:
    """Endings of file names, in lower case, of the formats that are decoded."""
    import PIL.Image

    PIL.Image.init()
    formats = {*PIL.Image.OPEN, "MPO"}.intersection(FORMATS)  # MPO: the reader of JPEG opens it
    return frozenset(ending for ending, format in PIL.Image.EXTENSION.items() if format in formats)


@dataclass
class LeftOut:
    """Files that are not used, by the reason."""

    root: str
    """Folder that the names in messages are relative to."""
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    """Name of the first file left out for each reason."""

    def add(self, reason: str, path: str, count: int = 1) -> None:
        name = os.path.relpath(path, self.root).encode(errors="surrogateescape").decode(errors="backslashreplace")
        self.first.setdefault(reason, name)
        self.counts[reason] = self.counts.get(reason, 0) + count

    def __str__(self) -> str:
        """All reasons with the number of files and the name of the first."""
        return "; ".join(
            f"{reason}: {count:,} ({self.first[reason]}{', ...' if count > 1 else ''})"
            for reason, count in self.counts.items()
        )


@dataclass
class Folder:
    """A folder and what counts of it, in no particular order."""

    path: str
    images: list[str] = field(default_factory=list)
    """Paths of the image files directly in it."""
    metadata: list[str] = field(default_factory=list)
    """Paths of the metadata tables directly in it."""
    folders: "dict[str, Folder]" = field(default_factory=dict)
    """Folders directly in it that have images or metadata somewhere below, by name."""
    empty: list[str] = field(default_factory=list)
    """Names of the other folders directly in it."""

    @functools.cached_property
    def all_images(self) -> list[str]:
        """Paths of the image files in and below it."""
        return [*self.images, *(path for folder in self.folders.values() for path in folder.all_images)]

    @functools.cached_property
    def all_metadata(self) -> list[str]:
        """Paths of the metadata tables in and below it."""
        return [*self.metadata, *(path for folder in self.folders.values() for path in folder.all_metadata)]


def scan(root: str | Path, left_out: LeftOut) -> Folder:
    """Read a folder and all below it; links are followed, except to a folder that contains the link.

    Raises:
        ConfigError: a folder can't be read.
    """
    above = (_identity(str(path)) for path in Path(root).resolve().parents)
    return _scan(os.path.abspath(root), left_out, frozenset(above))


def _scan(path: str, left_out: LeftOut, above: frozenset[tuple[int, int]]) -> Folder:
    """Read a folder; `above`: identities of those that contain it."""
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
    """Like `entry.is_dir()`, which fails for a link to itself."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error


def _is_text(name: str) -> bool:
    """Tell if a name can be stored in a table: it has no bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _take_folder(
    folder: Folder, entry: os.DirEntry[str], left_out: LeftOut, above: frozenset[tuple[int, int]]
) -> None:
    """Add what is below a folder of `folder`."""
    if entry.name in SYSTEM_FOLDERS:
        count = sum(len(files) for _, _, files in os.walk(entry.path))
        if count:
            left_out.add("files in a folder of the system", entry.path, count)
        return
    if _identity(entry.path) in above:
        left_out.add("links to a folder above them", entry.path)
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
        left_out.add("links to nothing" if entry.is_symlink() else "neither files nor folders", entry.path)
    elif ending in image_endings():
        folder.images.append(entry.path)
    elif entry.name.lower() in METADATA:
        folder.metadata.append(entry.path)
    elif ending in ARCHIVES:
        left_out.add("archives, which have to be unpacked", entry.path)
    else:
        left_out.add(_why_not_read(ending), entry.path)


def _why_not_read(ending: str) -> str:
    """Say why a file is left out that is neither an image, a table nor an archive."""
    import PIL.Image

    if not ending:
        return "files without an ending"
    known = PIL.Image.EXTENSION.get(ending)
    return f"{ending} files, " + (f"as {known} is not read" if known else "which Pillow does not read")
