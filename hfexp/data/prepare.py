"""The cache of prepared splits: the deterministic part of a transform is done once and kept for later runs.

The cache keeps the rows after the last operation whose result consists of whole numbers: images as uint8 (PIL images
too), class ids, token ids. Later operations (e.g. torchvision's `ToTensor`) run whenever a row is read. The key of a
cache entry covers the content of the rows, the operations with all their settings, the processor, and the versions of
the code that does the work.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from datasets import Dataset

from hfexp.core.config import Config
from hfexp.core.console import console, note, say
from hfexp.core.errors import LEAVE_OUT, ConfigError, in_row
from hfexp.core.targets import targets_in
from hfexp.data.arrays import ArrayReader, ArrayWriter
from hfexp.data.cache import Cache, NoRoomError, default_directory, parse_size, show_size
from hfexp.data.fingerprint import identity
from hfexp.data.row_arrays import Arrays, NotWholeNumbersError, Row, from_array, to_arrays
from hfexp.data.sampling import preserved_rng, rng_state, seed_cpu
from hfexp.data.sources import name_of, source_row
from hfexp.data.threads import map_in_threads, rows_of
from hfexp.data.transforms import apply
from hfexp.tasks.base import Task
from hfexp.tasks.images import row_of_images

LIVE_SETTINGS = (
    "chat_template", "model_max_length", "padding_side", "special_tokens_map", "split_special_tokens",
    "truncation_side",
)  # fmt: skip
"""Tokenizer settings that can change after it was created."""
SOURCE_SETTINGS = ("name_or_path", "tokenizer_file", "vocab_file", "tokenizer_object", "vocab", "merges")
"""Tokenizer settings that `settings_of` leaves out: they say where its files are, or repeat their content."""


FORMAT = 1
"""Version of the format of cache entries; an entry of another version is not found."""
ROWS_PER_THREAD = 16
"""Rows that a thread prepares at a time."""
TRIED_ROWS = 16
"""Rows from which the size of a cache entry is estimated."""
CODE = ("hfexp.tasks.images", "hfexp.tasks.text", "hfexp.data.prepare")
"""Modules of hfexp whose source is part of every cache key, beside those of the task and the operations."""
LIBRARIES = ("torch", "torchvision", "pillow", "simplejpeg", "numpy", "transformers", "tokenizers")


@dataclass(frozen=True)
class Prepared:
    """A split's rows after its first operations, read from the cache."""

    reader: ArrayReader
    kinds: dict[str, str]
    """Kind that each field had before it became an array, from `to_arrays`."""
    rest: list[Any]
    """Deterministic operations that still have to run when a row is read."""

    @property
    def is_whole(self) -> bool:
        """Return True if no operation is left and the rows can be stacked as they are."""
        return not self.rest and all(self.reader.is_uniform(name) for name in self.reader.fields)

    def columns(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return these rows, stacked: each field is (B, ...)."""
        return {name: torch.from_numpy(values) for name, values in self.reader.read(indices).items()}  # pyright: ignore

    def rows(self, indices: Sequence[int]) -> list[Row]:
        """Return these rows as the operations left them."""
        columns = self.reader.read(indices)
        return [
            {name: from_array(columns[name][place], kind) for name, kind in self.kinds.items()}
            for place in range(len(indices))
        ]


class PreparedCache:
    """Prepares splits and keeps them in the cache, following `transform.cache`."""

    def __init__(self, config: Config, task: Task, processor: Any) -> None:
        self.config = config
        self.task = task
        settings = config.transform.cache
        directory = Path(settings.dir).expanduser() if settings.dir else default_directory()
        self.cache = Cache(directory.absolute(), parse_size(settings.max_size))
        self.processor = settings_of(processor)

    def get(self, split: str, rows: Dataset, operations: list[Any]) -> Prepared | None:
        """Return the rows of a split after its deterministic operations, or None if the cache can't keep them.

        Args:
            operations: those of `transform.prepare`, followed on evaluated splits by those of `transform.evaluate`.

        Raises:
            DataError: a row can't be read.
        """
        if not self.config.transform.cache.enabled or not len(rows) or rows.format["type"] is not None:
            return None  # a format may be any function, which the fingerprint of the rows does not cover
        with in_row(lambda: source_row(rows, 0), LEAVE_OUT):
            kinds, count = _cacheable_part(self.task.decode(rows[0]), operations)
        if not count:
            return None
        preparer = _SplitPreparer(rows, self.task, operations[:count], kinds)
        key = self._key(rows, count, len(operations))
        started = time.perf_counter()

        def build(writer: ArrayWriter) -> dict[str, Any]:
            with _progress(f"  preparing {split}", len(rows)) as advance:
                preparer.write_all(writer, advance)
            return {"about": f"{name_of(self.config.dataset.source)}, {split}", "kinds": kinds}

        try:
            reader = self.cache.find(key)
            built = False
            if reader is None:
                reader, built = self.cache.find_or_build(key, preparer.estimate(), build)
        except (NoRoomError, NotWholeNumbersError) as error:
            note(f"not caching the {split} split, its transform runs every epoch: {error}")
            return None
        if built:
            seconds, size = time.perf_counter() - started, show_size(reader.meta["bytes"])
            say(f"  prepared: {len(rows):,} {split} rows in {seconds:.1f} s, {size} (kept for later runs)")
        return Prepared(reader, kinds, operations[count:])

    def _key(self, rows: Dataset, count: int, of: int) -> str:
        transform = self.config.transform
        nodes = [*transform.prepare, *transform.evaluate][:of]
        facts = {
            "format": FORMAT,
            "rows": identity(rows),
            "operations": [nodes, count],
            "task": self.config.task,
            "processor": self.processor,
            "code": _code([self.config.task, nodes]),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@dataclass
class _SplitPreparer:
    """Prepares the rows of one split."""

    rows: Dataset
    task: Task
    operations: list[Any]
    kinds: dict[str, str]

    def __post_init__(self) -> None:
        self.decode, done = self.task.decoder(self.operations)
        self.rest = self.operations[done:]

    def estimate(self) -> int:
        """Estimate the bytes of all rows from `TRIED_ROWS` of them."""
        tried = np.unique(np.linspace(0, len(self.rows) - 1, min(TRIED_ROWS, len(self.rows)), dtype=int))
        sizes = [
            sum(value.nbytes for value in self._prepare_row(int(index), self.rows[int(index)]).values())
            for index in tried
        ]
        return int(np.mean(sizes) * len(self.rows) * 1.05)

    def write_all(self, writer: ArrayWriter, advance: Callable[[int], None] = lambda count: None) -> None:
        """Append all rows in their order; several threads prepare them.

        Args:
            advance: called with the number of rows that have been written since the last call.
        """
        for arrays in map_in_threads(self._prepare_rows, range(0, len(self.rows), ROWS_PER_THREAD)):
            for row in arrays:
                writer.append(row)
            advance(len(arrays))

    def _prepare_rows(self, start: int) -> list[Arrays]:
        indices = range(start, min(start + ROWS_PER_THREAD, len(self.rows)))
        return [self._prepare_row(index, row) for index, row in zip(indices, rows_of(self.rows[indices]), strict=True)]

    @row_of_images
    def _prepare_row(self, index: int, row: Row) -> Arrays:
        with in_row(lambda: source_row(self.rows, index), LEAVE_OUT):
            row = self.decode(row)
            for operation in self.rest:
                row = apply(operation, row)
        arrays, kinds = to_arrays(row)
        if kinds != self.kinds:
            raise NotWholeNumbersError(f"its rows differ in type: {kinds} and {self.kinds}")
        return arrays


def prepare_for_now(rows: Dataset, task: Task, operations: list[Any]) -> Prepared:
    """Prepare all rows, at least one, of a split that the cache does not keep, in files that go with the result.

    Raises:
        DataError: a row can't be read.
        NotWholeNumbersError: a field is no array of whole numbers.
    """
    with in_row(lambda: source_row(rows, 0), LEAVE_OUT):
        first = task.decode(rows[0])
        for operation in operations:
            first = apply(operation, first)
    kinds = to_arrays(first)[1]
    directory = Path(tempfile.mkdtemp(prefix="hfexp-"))
    try:
        with ArrayWriter(directory) as writer:
            _SplitPreparer(rows, task, operations, kinds).write_all(writer)
            writer.finish({})
        reader = ArrayReader(directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    weakref.finalize(reader, shutil.rmtree, directory, ignore_errors=True)
    return Prepared(reader, kinds, [])


def require_deterministic(row: Row, operations: list[Any]) -> None:
    """Apply the operations to a decoded row twice: what is done once for all epochs must not draw random numbers.

    Raises:
        ConfigError: an operation draws random numbers.
    """
    for operation in operations:
        results, drew = [], False
        with preserved_rng():
            for seed in (1, 2):
                seed_cpu(seed)
                before = rng_state()
                results.append(apply(operation, row))
                # An operation that acts with some probability may do nothing in both tries.
                drew = drew or rng_state() != before
        if drew or not _same(*results):
            raise ConfigError(
                f"{type(operation).__name__} draws random numbers, but transform.prepare and transform.evaluate must "
                "be the same in every epoch: move it to transform.augment"
            )
        row = results[0]


def _same(first: Row, second: Row) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, PIL.Image.Image | torch.Tensor | np.ndarray):
            a, b = np.asarray(a), np.asarray(b)
            return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        return bool(a == b)

    return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)


def _cacheable_part(row: Row, operations: list[Any]) -> tuple[dict[str, str], int]:
    """Return the field kinds after the last operation whose result can be kept, and how many operations that takes."""
    best: tuple[dict[str, str], int] = {}, 0
    for number, operation in enumerate(operations, 1):
        row = apply(operation, row)
        with contextlib.suppress(NotWholeNumbersError):
            best = to_arrays(row)[1], number
    return best


def _code(nodes: Any) -> dict[str, str]:
    """Return library versions and hashes of the modules (the user's and hfexp's) that a prepared row depends on."""
    versions = {name: version_of(name) for name in LIBRARIES}
    for target in targets_in(nodes):
        module, home = _modules_of(target)
        versions |= _source(module) | _source(home) | {target: version_of(target.partition(".")[0])}
    for module in CODE:
        versions |= _source(module)
    return versions


def _modules_of(target: str) -> tuple[str, str]:
    """Return the module by which a target is named (`my.module` of `my.module.Class.make`) and its defining module."""
    module, names = target, list[str]()
    while module and module not in sys.modules:
        module, _, name = module.rpartition(".")
        names.insert(0, name)
    defined: Any = sys.modules.get(module)
    for name in names:
        defined = getattr(defined, name, None)
    return module, str(getattr(defined, "__module__", None) or module)


@functools.cache
def version_of(package: str) -> str:
    """Return the version of an installed package; empty if there is none of this name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _source(module: str) -> dict[str, str]:
    """Hash a module's source; return nothing for `LIBRARIES`, whose versions are part of the key."""
    path = getattr(sys.modules.get(module), "__file__", None)
    if module in CODE:  # the key must not depend on whether the module has been imported yet
        spec = importlib.util.find_spec(module)
        path = spec.origin if spec else None
    if not path or module.partition(".")[0] in LIBRARIES:
        return {}
    return {module: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}


@contextlib.contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar in a terminal and remove it at the end; do nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda count: None
        return
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(transient=True, refresh_per_second=4, console=console()) as bar:
        task_id = bar.add_task(escape(text), total=total)
        yield lambda count: bar.advance(task_id, count)


def settings_of(processor: Any) -> dict[str, Any]:
    """Return everything that decides what a processor does, as plain values; a tokenizer's content is hashed."""
    if processor is None:
        return {}
    if not isinstance(processor, transformers.PreTrainedTokenizerBase):
        return {"class": type(processor).__name__, **processor.to_dict()}
    backend = getattr(processor, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(processor.get_vocab(), sort_keys=True)
    named = {name: str(value) for name, value in processor.init_kwargs.items() if name not in SOURCE_SETTINGS}
    named |= {name: str(getattr(processor, name, None)) for name in LIVE_SETTINGS}
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"class": type(processor).__name__, **named, "content": digest}
