"""The definition of a sweep, by which two starts are the same sweep, and the sweep's directory."""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from hfexp.core.config import Config, LaunchConfig, OnExisting
from hfexp.core.errors import ConfigError
from hfexp.core.identity import config_hash
from hfexp.core.locks import SharedLock
from hfexp.core.outside import DamagedRecord, read_record
from hfexp.core.process import ProcessId
from hfexp.core.provenance import file_name
from hfexp.core.search_config import SearchConfig
from hfexp.core.secrets import mask_override, mask_values, without_secrets
from hfexp.core.stamp import data_stamp
from hfexp.sweep.space import Space
from hfexp.tracking.membership import write_private

FILE = "definition.json"
STEM = "name"
"""Key in that file: the name under which the sweep was first started."""
DIRECTOR = "director.json"
SWEEPS = "sweeps"
HASHED = {"configuration": "files of it were edited since", "data": "files that it is read from have changed since"}
"""Parts of a definition that are hashes, and what to say instead of their values if they differ."""
LEFT_OUT = ("search", "hydra", "output_dir", "tracking", "on_existing", "point", "security")
"""Sections whose overrides are not in `fixed`: they do not change results, or the definition has their values."""


@dataclass(frozen=True)
class Definition:
    """The identity of a sweep: two starts with equal definitions are the same sweep."""

    fixed: list[str]
    space: dict[str, str]
    method: str
    seed: int
    sampler: dict[str, Any]
    pruner: str
    pruner_args: dict[str, Any]
    replicates: int
    optimise: str
    metrics: list[str]
    directions: list[str]
    configuration: str
    """Hash of the composed config of the first point, and of one point per swept group option."""
    data: str
    """Hash over paths, sizes and mtimes of local files; empty with `search.storage`, as machines differ in them."""

    @property
    def digest(self) -> str:
        canonical = json.dumps(asdict(self), separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, there: dict[str, Any], ignored: Collection[str] = ()) -> str:
        """Return a line for each part in which the stored definition `there` differs from this one."""
        now = json.loads(json.dumps(asdict(self)))
        # The order of keys counts, which a comparison of dicts would ignore.
        differing = [key for key in now if json.dumps(there.get(key)) != json.dumps(now[key])]
        pairs = {key: f"{_short(there.get(key))} there, {_short(now[key])} now" for key in differing}
        pairs |= {key: text for key, text in HASHED.items() if key in pairs}
        return "".join(f"\n  {key}: {text}" for key, text in pairs.items() if key not in ignored)


def define(
    search: SearchConfig, space: Space, metrics: list[str], directions: list[str], configuration: str, data: str
) -> Definition:
    """Build the definition of a sweep, without secrets."""
    fixed = sorted(mask_override(word) for word in space.fixed if _counts(word))
    texts = space.texts
    for dimension in space.dimensions:
        if "glob(" in dimension.text:  # its values change when an option is added, while its text stays the same
            texts[dimension.key] += f" = {','.join(dimension.spellings)}"
    if space.function:
        texts["search.space"] = json.dumps(mask_values(space.function), sort_keys=True)
    return Definition(
        fixed, texts, search.method.value, search.seed, search.sampler, search.pruner.value, search.pruner_args,
        search.replicates, search.optimise.value, metrics, directions, configuration,
        "" if search.storage else data,
    )  # fmt: skip


def configuration_hash(config: Config | None, examples: list[dict[str, Any]]) -> str:
    """Hash the composed configs, so that an edited file of options makes another sweep of the same overrides."""
    first = [config_hash(replace(config, launch=LaunchConfig()))] if config else []  # `fixed` has launch's overrides
    plain = [without_secrets({k: v for k, v in example.items() if k not in LEFT_OUT}) for example in examples]
    others = plain[len(first) :]
    if not others:
        return first[0]
    return hashlib.sha256(json.dumps([*first, *others], sort_keys=True, default=str).encode()).hexdigest()


def data_hash(sources: list[dict[str, Any]]) -> str:
    """Hash the state of the local files that points read: finished points are only valid for the same files.

    Args:
        sources: `dataset.source` of points that differ in it; empty in another application.
    """
    if not sources:
        return ""
    named: dict[str, list[Any]] = {}
    for source in sources:
        for key, value in source.items():
            if value not in named.setdefault(key, []):
                named[key].append(value)
    return hashlib.sha256(data_stamp(named).encode()).hexdigest()[:32]


def _counts(word: str) -> bool:
    key = word.lstrip("+~").partition("=")[0].partition("@")[0]
    return re.split(r"[./]", key)[0] not in LEFT_OUT


@dataclass
class SweepDirectory:
    """The directory of a sweep, whose lock this process holds while it directs the sweep."""

    path: Path
    continued: bool
    seconds_before: float
    """Seconds for which earlier starts have directed the sweep."""
    began: float
    """`time.monotonic()` when this start began to direct it."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def note_time(self) -> None:
        """Write down which process directs the sweep, and for how many seconds it has been directed."""
        process = ProcessId.own()
        content = {"host": process.host, "pid": process.pid, "process": process.started, "seconds": self.seconds}
        write_private(self.path / DIRECTOR, json.dumps(content))


@contextlib.contextmanager
def hold_sweep(
    output_dir: Path, name: str | None, definition: Definition, on_existing: OnExisting
) -> Iterator[SweepDirectory]:
    """Continue the sweep with this definition, or begin it; hold its lock meanwhile.

    Raises:
        ConfigError: another process directs it, or it exists under `on_existing=error`, or `name` is another sweep's,
            or `output_dir` can't be written.
    """
    parent, stem = _place(output_dir, name, definition)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: {parent} can't be written: {error.strerror}") from error
    with SharedLock(parent / ".lock"):
        path = _choose(parent, stem, definition, on_existing)
        path.mkdir(exist_ok=True)
        lock = SharedLock(path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            _refuse(path)
    try:
        continued = (path / FILE).exists()
        if not continued:
            write_private(path / FILE, json.dumps({STEM: stem, **asdict(definition)}, indent=1))
        seconds = _read(path / DIRECTOR).get("seconds")
        before = float(seconds) if isinstance(seconds, int | float) else 0.0
        directory = SweepDirectory(path, continued, before, time.monotonic())
        directory.note_time()
        yield directory
        directory.note_time()
    finally:
        lock.release()


def find_sweep(output_dir: Path, name: str | None, definition: Definition, on_existing: OnExisting) -> Path | None:
    """Return the directory that `hold_sweep` would continue, or None; create nothing.

    Raises:
        ConfigError: as `hold_sweep`, except that another process may direct the sweep.
    """
    parent, stem = _place(output_dir, name, definition)
    path = _choose(parent, stem, definition, on_existing) if parent.is_dir() else None
    return path if path and (path / FILE).exists() else None


def _place(output_dir: Path, name: str | None, definition: Definition) -> tuple[Path, str]:
    """Return the directory of all sweeps, and the name with which the directory of this one begins."""
    stem = file_name(name) if name else f"{definition.method}-{definition.digest[:8]}"
    return output_dir.absolute() / SWEEPS, stem


def _choose(parent: Path, stem: str, definition: Definition, on_existing: OnExisting) -> Path:
    pattern = re.compile(re.escape(stem) + r"(?:-(\d+))?")
    found = {int(m.group(1) or 1): path for path in parent.iterdir() if (m := pattern.fullmatch(path.name))}
    stored = {number: _read(path / FILE) for number, path in found.items() if (path / FILE).exists()}
    begun = {number: found[number] for number, content in stored.items() if content.get(STEM) == stem}
    if not begun:  # a directory of this name may be another sweep's second start: exp-2 of exp
        return parent / (f"{stem}-{max(found) + 1}" if stored else stem)
    latest = begun[max(begun)]
    if on_existing is OnExisting.error:
        raise ConfigError(f"on_existing=error: this sweep exists already, in {latest}")
    if on_existing is OnExisting.rerun:
        return parent / f"{stem}-{max(found) + 1}"
    differing = definition.differences(stored[max(begun)])
    if differing:
        raise ConfigError(
            f"search.name={stem} is another sweep, in {latest}:{differing}\n"
            "Give this one another name, or start over with on_existing=rerun"
        )
    return latest


def _refuse(path: Path) -> None:
    holder = _read(path / DIRECTOR)
    who = f" by process {holder.get('pid')} on {holder.get('host')}" if holder else ""
    raise ConfigError(f"this very sweep is directed now{who}, in {path}; wait for it, or change something (e.g. seed)")


def _read(path: Path) -> dict[str, Any]:
    """Read a file of a sweep; return an empty dict if it is missing or damaged."""
    try:
        return read_record(path, dict[str, Any])
    except (FileNotFoundError, DamagedRecord):
        return {}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
