"""Image folders: tell which of them are splits and which are classes, and build a dataset of their images.

A row is an image with the name of its class and, if a metadata table names the image, the columns of that table.
"""

import csv
import functools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    ReadInstruction,
)
from datasets.table import InMemoryTable

from hfexp.core.config import SPLIT_WORDS, split_called
from hfexp.core.console import note, say
from hfexp.core.errors import ConfigError, one_of
from hfexp.tasks.images import FORMATS

# Image files below a folder, with a count of all other files by the reason why they are left out.


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


# Metadata tables (`metadata.csv`, `.jsonl`, `.parquet`) that lie beside images and describe them.


FILE, IMAGE = "file_name", "image"
WHOLE_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}")
"""Integer without leading zeros; 18 digits always fit into 64 bits."""


@dataclass(frozen=True)
class MetadataRow:
    """A row of a metadata table, which describes one image."""

    place: str
    """Table and row number, for messages."""
    image: str
    """Absolute path of the image."""
    values: dict[str, Any]
    """Values of the other columns, by name."""


def read_metadata(path: str) -> list[MetadataRow]:
    """Read a metadata table; its column `file_name` holds paths relative to the table's folder.

    Raises:
        ConfigError: the table can't be read, or a row does not name a file in or below its folder.
    """
    try:
        rows = _READERS[Path(path).suffix.lower()](path)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    return [_metadata_row(path, number, row) for number, row in enumerate(rows, 1)]


def columns_of(rows: Sequence[MetadataRow | None], metadata: Sequence[MetadataRow]) -> dict[str, list[Any]]:
    """Return the values of `rows` for every column of `metadata`; None where a row has no value."""
    names = dict.fromkeys(name for row in metadata for name in row.values)
    return {name: [row and row.values.get(name) for row in rows] for name in names}


def _metadata_row(path: str, number: int, row: Any) -> MetadataRow:
    place, folder = f"{path}, row {number}", os.path.dirname(path)
    if not isinstance(row, dict) or FILE not in row or IMAGE in row:
        has = one_of(row) if isinstance(row, dict) else repr(row)
        raise ConfigError(f"{place}: the table needs a column {FILE!r} and must not have {IMAGE!r}; it has: {has}")
    image = os.path.normpath(os.path.join(folder, str(row[FILE]).replace("\\", "/")))
    if not row[FILE] or not image.startswith(os.path.join(folder, "")):
        raise ConfigError(f"{place}: {FILE} is {row[FILE]!r}, expected the path of an image relative to {folder}")
    return MetadataRow(place, image, {name: value for name, value in row.items() if name != FILE})


def _read_csv(path: str) -> list[dict[str, Any]]:
    """Read a CSV file; values stay texts, but a column of only whole numbers (none like 007) becomes integers."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        names, rows = next(reader, []), []
        if len(set(names)) < len(names):
            raise ValueError(f"a column name occurs twice: {', '.join(names)}")
        for values in filter(None, reader):
            if len(values) != len(names):
                raise ValueError(f"line {reader.line_num} has {len(values)} values, the first line has {len(names)}")
            rows.append(values)
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    typed = [column if name == FILE else _typed(column) for name, column in zip(names, columns, strict=True)]
    return [dict(zip(names, values, strict=True)) for values in zip(*typed, strict=True)]


def _typed(column: Sequence[str]) -> list[Any]:
    """Convert the texts of a column; an empty text becomes None."""
    is_whole = all(WHOLE_NUMBER.fullmatch(value) for value in set(column) - {""})
    return [None if value == "" else int(value) if is_whole else value for value in column]


def _read_lines(path: str) -> list[Any]:
    """Read one JSON object per line."""
    rows = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
    return rows


def _read_parquet(path: str) -> list[Any]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


_READERS = {".csv": _read_csv, ".jsonl": _read_lines, ".parquet": _read_parquet}


MOST_SHOWN = 12
"""Classes up to which the number of images of each class is shown."""
TABLES = (".parquet", ".arrow", ".csv", ".json", ".jsonl", ".txt", ".tar", ".zip")
"""Endings of files, other than images, that a dataset can consist of."""
KEY = "dataset.source.data_dir"
OPTION = "dataset.source.split_folders"
LABEL = "label"
WAY_OUT = (
    f". Rename them to train, validation and test, or set '{OPTION}={{train:FOLDER,test:FOLDER}}' "
    f"({OPTION}={{}} if they are classes)"
)

Columns = dict[str, list[Any]]
"""Values by column: `image` (absolute paths), `label` (names) and the columns of metadata, all of the same length."""


@dataclass
class Listing:
    """All images below a folder, by split, and the files that were left out."""

    data_dir: str
    """The folder as the user wrote it."""
    left_out: LeftOut
    splits: dict[str, Columns] = field(default_factory=dict)
    classes: list[str] | None = None
    """Names of the class folders, sorted; None if metadata says what there is to learn."""
    notes: list[str] = field(default_factory=list)
    """Further notes for the user."""

    def announce(self) -> None:
        """Print how many images each split and class has, and which files were left out."""
        say(f"  {self.data_dir}: " + ", ".join(f"{split} {_counts(rows)}" for split, rows in self.splits.items()))
        for text in [*self.notes, *([f"left out: {self.left_out}"] if self.left_out.counts else [])]:
            note(f"{self.data_dir}: {text}")


def _counts(columns: Columns) -> str:
    """Return the number of images as text, with that of each class if classes are known."""
    classes = Counter(str(label) for label in columns.get(LABEL, []) if isinstance(label, str | int))
    if len(classes) > MOST_SHOWN:
        parts = f"{len(classes):,} classes of {min(classes.values()):,} to {max(classes.values()):,}"
    else:
        parts = ", ".join(f"{name} {classes[name]:,}" for name in sorted(classes))
    count = f"{len(columns[IMAGE]):,}"
    return f"{count} ({parts})" if parts else count


def hint_at_images(path: str | Path) -> str:
    """Return the end of a message that says how to read a local folder of images; empty for anything else."""
    root = Path(os.path.expanduser(path))
    card = root / "README.md"
    if not os.path.isdir(root) or (card.is_file() and "data_files:" in card.read_text(errors="replace")):
        return ""
    tables = sum(file.suffix.lower() in TABLES for file in root.rglob("*"))
    if len(scan(root, LeftOut(str(root))).all_images) <= tables:  # as in `datasets`, the most frequent ending decides
        return ""
    return f"; it holds images: use dataset=imagefolder {KEY}={path}"


def list_images(data_dir: str, split_folders: Mapping[str, str] | None = None) -> Listing:
    """Find all images below a folder, their splits and their classes.

    Args:
        split_folders: maps each split to a folder below `data_dir`; if empty, all folders are classes. None: the
            folders' names tell the splits (`hfexp.core.config`).

    Raises:
        ConfigError: there are no images, fewer than two classes, or no way to tell which folders are splits.
    """
    root = Path(os.path.expanduser(data_dir))
    if not os.path.isdir(root):
        raise ConfigError(f"{KEY}={data_dir}: {_why_no_folder(root)}")
    listing = Listing(data_dir, LeftOut(os.path.abspath(root)))
    folder = scan(root, listing.left_out)
    if not folder.all_images:
        raise ConfigError(f"{KEY}={data_dir}: no image files found below it{_left_out(listing)}")
    splits = _find_splits(folder, listing) if split_folders is None else _named_splits(folder, split_folders, listing)
    metadata = [row for path in folder.all_metadata for row in read_metadata(path)]
    classes = {name for split in splits.values() for name in split.folders}
    if any(LABEL in row.values for row in metadata) or (metadata and len(classes) < 2):
        _fill_from_metadata(splits, metadata, listing)
    else:
        _fill_from_folders(splits, metadata, listing)
    if not listing.splits:
        raise ConfigError(f"{KEY}={data_dir}: its metadata does not name any file of the splits{_left_out(listing)}")
    return listing


def _why_no_folder(path: Path) -> str:
    if path.suffix.lower() in ARCHIVES and os.path.isfile(path):
        return "this is an archive; unpack it and give the folder"
    return "this is a file, expected a folder of images" if os.path.isfile(path) else "there is no such directory"


def _left_out(listing: Listing) -> str:
    """Return the end of a message that names the files left out."""
    return f"; left out: {listing.left_out}" if listing.left_out.counts else ""


def _find_splits(root: Folder, listing: Listing) -> dict[str, Folder]:
    """Return the folder of each split; if no folder is a split, the one of all classes is the training split.

    Raises:
        ConfigError: folders look like splits, but it is unclear which ones they are.
    """
    while True:
        splits = _splits_of(root, listing)
        if splits:
            return _unwrap(splits, listing)
        _refuse_doubtful(root, listing)
        inner = list(root.folders.values())
        if len(inner) != 1 or root.metadata or not _holds_folders(inner[0]):
            return {"train": root}
        _leave_out(root.images, listing)
        root = inner[0]


def _splits_of(root: Folder, listing: Listing) -> dict[str, Folder]:
    """Return the folders of `root` if they are splits: all have split names, and the training one holds classes."""
    named = {name: split_called(name) for name in root.folders}
    training = [name for name, split in named.items() if split == "train"] or list(named)
    described = bool(root.metadata)
    if not all(named.values()) or not all(
        described or root.folders[name].all_metadata or _holds_folders(root.folders[name]) for name in training
    ):
        return {}
    splits: dict[str, Folder] = {}
    for split in SPLIT_WORDS:
        names = [name for name in named if named[name] == split]
        if len(names) > 1:
            raise ConfigError(f"{KEY}={listing.data_dir}: {' and '.join(names)} both mean {split}{WAY_OUT}")
        if names:
            splits[split] = root.folders[names[0]]
    if splits:
        _leave_out(root.images, listing)
        _note_empty(root, listing)
    return splits


def _holds_folders(folder: Folder) -> bool:
    """Tell whether most images of a folder lie in its subfolders."""
    return len(folder.images) < len(folder.all_images) / 2


def _refuse_doubtful(root: Folder, listing: Listing) -> None:
    """Raise ConfigError if a would-be class folder has a split's name within its own and holds folders itself."""
    if len(root.folders) < 2:
        return
    for name, folder in root.folders.items():
        words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
        if _holds_folders(folder) and any(split_called(word) for word in words):
            raise ConfigError(
                f"{KEY}={listing.data_dir}: the folders {one_of(root.folders, 6)} may be splits or classes: {name!r} "
                f"has the name of a split and holds folders, but not all folders have split names{WAY_OUT}"
            )


def _unwrap(splits: dict[str, Folder], listing: Listing) -> dict[str, Folder]:
    """Pass through folders that hold nothing but one folder of class folders, as in `train/images/cat`.

    If the training split has such a folder, the only folder of another split counts as one too, unless it is called
    like a class.
    """
    first = "train" if "train" in splits else next(iter(splits))
    while True:
        inner = next(iter(splits[first].folders.values()), None)
        if inner is None or len(splits[first].folders) > 1 or splits[first].metadata or not _holds_folders(inner):
            return splits
        for split, folder in splits.items():
            is_class = split != first and bool(folder.folders.keys() & inner.folders.keys())
            if len(folder.folders) == 1 and not is_class:
                _leave_out(folder.images, listing)
                splits[split] = next(iter(folder.folders.values()))


def _named_splits(root: Folder, split_folders: Mapping[str, str], listing: Listing) -> dict[str, Folder]:
    """Return the folder of each split that the user named.

    Raises:
        ConfigError: there is no such folder, or it has no images.
    """
    splits = {}
    for split, name in split_folders.items():
        folder: Folder | None = root
        for part in Path(name).parts:
            folder = folder and folder.folders.get(part)
        if folder is None:
            raise ConfigError(f"{OPTION}.{split}={name}: no such folder with images in {listing.data_dir}")
        splits[str(split)] = folder
    if not splits:
        return {"train": root}
    used = {path for folder in splits.values() for path in folder.all_images}
    _leave_out([path for path in root.all_images if path not in used], listing, f"images outside of {OPTION}")
    return _unwrap(splits, listing)


def _leave_out(images: Sequence[str], listing: Listing, reason: str = "images outside of the class folders") -> None:
    for path in images:
        listing.left_out.add(reason, path)


def _note_empty(folder: Folder, listing: Listing) -> None:
    if folder.empty:
        names = [os.path.relpath(os.path.join(folder.path, name), listing.left_out.root) for name in folder.empty]
        listing.notes.append(f"folders without images: {one_of(names, 6)}")


def _fill_from_folders(splits: dict[str, Folder], metadata: Sequence[MetadataRow], listing: Listing) -> None:
    """Fill the listing with the images of the class folders, ordered by path.

    Raises:
        ConfigError: there are fewer than two classes, or splits lie below the classes.
    """
    described = {row.image: row for row in metadata}
    nested: dict[str, set[str]] = {}
    for split, folder in splits.items():
        labels: dict[str, str] = {}
        for name, inner in folder.folders.items():
            _refuse_splits_below(name, inner, listing)
            nested.setdefault(name, set()).update(inner.folders)
            # In NFC, names that differ only in the encoding of their accents are one class.
            labels |= dict.fromkeys(inner.all_images, unicodedata.normalize("NFC", name))
        _leave_out(folder.images, listing)
        images = sorted(labels)
        if images:
            columns = columns_of([described.get(path) for path in images], metadata)
            listing.splits[split] = {IMAGE: images, LABEL: [labels[path] for path in images], **columns}
        _note_empty(folder, listing)
    images = {path for columns in listing.splits.values() for path in columns[IMAGE]}
    lost = [row.place for row in metadata if row.image not in images]
    listing.notes += [f"metadata rows that match no image of a class: {len(lost):,} ({lost[0]})"] if lost else []
    listing.classes = sorted({label for columns in listing.splits.values() for label in columns[LABEL]})
    _require_classes(listing)
    listing.notes += _about_classes(listing, {name: inner for name, inner in nested.items() if inner})


def _refuse_splits_below(name: str, folder: Folder, listing: Listing) -> None:
    splits = {split_called(inner) for inner in folder.folders}
    if len(splits) > 1 and "train" in splits and None not in splits:
        raise ConfigError(
            f"{KEY}={listing.data_dir}: the splits {one_of(folder.folders)} must be above the classes, not inside "
            f"{name!r}: create folders such as train/{name} (links work too)"
        )


def _require_classes(listing: Listing) -> None:
    if not listing.classes:
        raise ConfigError(
            f"{KEY}={listing.data_dir}: its images have no classes: put them into folders named by their class, "
            f"or add a metadata.csv with the columns file_name and label{_left_out(listing)}"
        )
    if len(listing.classes) < 2:
        raise ConfigError(
            f"{KEY}={listing.data_dir}: only one class ({one_of(listing.classes)}), expected at least two folders of "
            f"images, each named by its class{_left_out(listing)}"
        )


def _about_classes(listing: Listing, nested: dict[str, set[str]]) -> list[str]:
    """Return notes on what may surprise: folders below class folders, and classes without training images."""
    notes = []
    if nested:
        shown = [f"{name} ({one_of(inner, 4)})" for name, inner in sorted(nested.items())[:4]]
        more = f", ... ({len(nested) - 4} more)" if len(nested) > 4 else ""
        notes.append(f"images in subfolders belong to the class folder above: {', '.join(shown)}{more}")
    trained = set(listing.splits.get("train", {}).get(LABEL, []))
    for split, columns in listing.splits.items() if trained else []:
        unknown = set(columns[LABEL]) - trained
        notes += [f"classes of {split} without training images: {one_of(unknown, 6)}"] if unknown else []
    return notes


def _fill_from_metadata(splits: dict[str, Folder], metadata: Sequence[MetadataRow], listing: Listing) -> None:
    """Fill the listing with the images that metadata names, in the order of its rows.

    Raises:
        ConfigError: a label contradicts the folder of its image.
    """
    _refuse_contradictions(splits, metadata, listing)
    named = {row.image for row in metadata}
    for split, folder in splits.items():
        rows = [row for row in metadata if row.image.startswith(os.path.join(folder.path, ""))]
        _leave_out([path for path in folder.all_images if path not in named], listing, "images not listed in metadata")
        if rows:
            listing.splits[split] = {IMAGE: [row.image for row in rows], **columns_of(rows, metadata)}
    if any(folder.folders for folder in splits.values()):
        listing.notes.append("the classes come from metadata, not from the folders")


def _refuse_contradictions(splits: dict[str, Folder], metadata: Sequence[MetadataRow], listing: Listing) -> None:
    """Raise ConfigError for a label that differs from its image's folder, if folders are called like labels."""
    labels = {str(row.values.get(LABEL)) for row in metadata}
    for folder in splits.values():
        if not labels & folder.folders.keys():
            continue
        for row in metadata:
            name = os.path.relpath(row.image, folder.path).split(os.sep)[0]
            if name in folder.folders and str(row.values.get(LABEL)) != name:
                raise ConfigError(
                    f"{row.place}: label is {row.values.get(LABEL)!r}, but {row.image} lies in the folder {name!r}; "
                    "correct one of them, or remove the column"
                )


def to_datasets(listing: Listing, split: str | None = None, streaming: bool = False) -> Any:
    """Build a dataset of the images of each split, or of one.

    Args:
        split: a split, parts of splits as in `train[:80%]+test`, or `all`; None gives each split a dataset.

    Raises:
        ConfigError: there is no such split, or a column of metadata holds values of several types.
    """
    features = _features(listing)
    make: Any = _stream if streaming else _dataset
    together: Any = IterableDatasetDict if streaming else DatasetDict
    if split is not None:
        return make(_encode(_part(listing, split), listing), features)
    return together({name: make(_encode(columns, listing), features) for name, columns in listing.splits.items()})


def _part(listing: Listing, split: str) -> Columns:
    lengths = {name: len(columns[IMAGE]) for name, columns in listing.splits.items()}
    try:
        parts: Any = ReadInstruction.from_spec("+".join(lengths) if split == "all" else split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"dataset.source.split={split}: {error}. Splits: {one_of(lengths)}") from error
    names = next(iter(listing.splits.values()))
    return {
        name: [value for part in parts for value in listing.splits[part.splitname][name][part.from_ : part.to]]
        for name in names
    }


def _encode(columns: Columns, listing: Listing) -> Columns:
    """Replace the names of classes by their ids."""
    if listing.classes is None:
        return columns
    ids = {name: number for number, name in enumerate(listing.classes)}
    return {**columns, LABEL: [ids[name] for name in columns[LABEL]]}


def _features(listing: Listing) -> Features:
    """Infer the columns' types from the values of all splits."""
    known = {IMAGE: Image()} | ({LABEL: ClassLabel(names=listing.classes)} if listing.classes else {})
    names = next(iter(listing.splits.values()))
    values = {name: [v for columns in listing.splits.values() for v in columns[name]] for name in names - known.keys()}
    try:
        inferred = Features.from_arrow_schema(pa.table(values).schema)
    except pa.ArrowException as error:
        raise ConfigError(f"{KEY}={listing.data_dir}: a column of metadata mixes types of values: {error}") from error
    return Features({name: known.get(name) or inferred[name] for name in names})


def _dataset(columns: Columns, features: Features) -> Dataset:
    """Build a dataset whose images stay in their files.

    `Dataset.from_dict` would make a Python object of each row (`datasets` 5.2), which for a million images takes four
    seconds and 400 MB.
    """
    paths = pa.array(columns[IMAGE], pa.string())
    images = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], names=["bytes", "path"])
    others = {name: values for name, values in columns.items() if name != IMAGE}
    schema = features.arrow_schema
    arrays = [images if name == IMAGE else pa.array(others[name], schema.field(name).type) for name in schema.names]
    return Dataset(InMemoryTable(pa.table(arrays, schema=schema)))


def _stream(columns: Columns, features: Features) -> IterableDataset:
    """Build a stream of rows; their paths are an own argument, in which `hfexp.data.streaming` finds the files."""
    others = {name: values for name, values in columns.items() if name != IMAGE}
    arguments = {"images": tuple(columns[IMAGE]), "others": others}
    return IterableDataset.from_generator(_rows, features=features, gen_kwargs=arguments)


def _rows(images: Sequence[str], others: Columns) -> Iterator[dict[str, Any]]:
    for number, image in enumerate(images):
        yield {IMAGE: image, **{name: values[number] for name, values in others.items()}}
