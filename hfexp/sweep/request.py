"""The request of a sweep, read and checked: its overrides, points and metrics, and the sweep that it continues."""

import contextlib
import copy
import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hfexp.core import targets
from hfexp.core.compose import choices_of, opened, spelling, without_hydra
from hfexp.core.config import Config, LaunchConfig, Method, OnExisting, Optimise, Pruner, SearchConfig, to_config
from hfexp.core.errors import ConfigError, join_problems, one_of
from hfexp.core.files import write_private
from hfexp.core.foreign_settings import find_foreign_settings
from hfexp.core.identity import config_hash, local_files_fingerprint
from hfexp.core.locks import SharedLock
from hfexp.core.outside import DamagedRecord, read_record
from hfexp.core.process import ProcessId
from hfexp.core.provenance import file_name
from hfexp.core.secrets import mask_override, mask_secrets, mask_values, without_secrets
from hfexp.core.training_args import lower_is_better
from hfexp.experiment.choices import check_choices
from hfexp.sweep.space import Point, Space, read_space

# The definition of a sweep, by which two starts are the same sweep, and the sweep's directory.


FILE = "definition.json"
STEM = "name"
"""Key in that file: the name under which the sweep was first started."""
DIRECTOR = "director.json"
SWEEPS = "sweeps"
HASHED = {"configuration": "its files were edited since", "data": "its files have changed since"}
"""Parts of a definition that are hashes, and what to say instead of their values if they differ."""
LEFT_OUT = ("search", "hydra", "output_dir", "tracking", "on_existing", "point", "security")
"""Sections whose overrides are not in `fixed`: they do not change results, or the definition has their values."""
TIME_LIMIT = "time_limit"
"""Key of `launch` that does not define a sweep: it says only when its jobs pause."""


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

    def differences(self, stored: dict[str, Any], ignored: Collection[str] = ()) -> str:
        """Return a line for each part in which a stored definition differs from this one."""
        now = json.loads(json.dumps(asdict(self)))
        # The order of keys counts, which a comparison of dicts would ignore.
        differing = [key for key in now if json.dumps(stored.get(key)) != json.dumps(now[key])]
        pairs = {key: f"{_short(stored.get(key))} there, {_short(now[key])} now" for key in differing}
        pairs |= {key: text for key, text in HASHED.items() if key in pairs}
        return "".join(f"\n  {key}: {text}" for key, text in pairs.items() if key not in ignored)


def define(
    search: SearchConfig, space: Space, metrics: list[str], directions: list[str], configuration: str, data: str
) -> Definition:
    """Build the definition of a sweep, without secrets."""
    fixed = sorted(mask_override(override) for override in space.fixed if _affects_results(override))
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
    plain = [without_secrets(_defining(example)) for example in examples]
    others = plain[len(first) :]
    if not others:
        return first[0]
    return hashlib.sha256(json.dumps([*first, *others], sort_keys=True, default=str).encode()).hexdigest()


def _defining(example: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a point's config by which a sweep is another one."""
    sections = {key: value for key, value in example.items() if key not in LEFT_OUT}
    if isinstance(sections.get("launch"), dict):
        sections["launch"] = {key: value for key, value in sections["launch"].items() if key != TIME_LIMIT}
    return sections


def data_hash(sources: list[dict[str, Any]]) -> str:
    """Hash the state of the local files that points read: finished points are only valid for the same files.

    Args:
        sources: `dataset.source` of points that differ in it; empty in another application.
    """
    if not sources:
        return ""
    by_key: dict[str, list[Any]] = {}
    for source in sources:
        for key, value in source.items():
            if value not in by_key.setdefault(key, []):
                by_key[key].append(value)
    return hashlib.sha256(local_files_fingerprint(by_key).encode()).hexdigest()[:32]


def _affects_results(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0].partition("@")[0]
    return re.split(r"[./]", key)[0] not in LEFT_OUT and key != f"launch.{TIME_LIMIT}"


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

    def save_time(self) -> None:
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
    parent, stem = _locate(output_dir, name, definition)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: {parent} can't be written: {error.strerror}") from error
    with SharedLock(parent / ".lock"):
        path = _choose_directory(parent, stem, definition, on_existing)
        path.mkdir(exist_ok=True)
        lock = SharedLock(path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            _refuse_running(path)
    try:
        continued = (path / FILE).exists()
        if not continued:
            write_private(path / FILE, json.dumps({STEM: stem, **asdict(definition)}, indent=1))
        seconds = _read(path / DIRECTOR).get("seconds")
        before = float(seconds) if isinstance(seconds, int | float) else 0.0
        directory = SweepDirectory(path, continued, before, time.monotonic())
        directory.save_time()
        yield directory
        directory.save_time()
    finally:
        lock.release()


def find_sweep(output_dir: Path, name: str | None, definition: Definition, on_existing: OnExisting) -> Path | None:
    """Return the directory that `hold_sweep` would continue, or None; create nothing.

    Raises:
        ConfigError: as `hold_sweep`, except that another process may direct the sweep.
    """
    parent, stem = _locate(output_dir, name, definition)
    path = _choose_directory(parent, stem, definition, on_existing) if parent.is_dir() else None
    return path if path and (path / FILE).exists() else None


def _locate(output_dir: Path, name: str | None, definition: Definition) -> tuple[Path, str]:
    """Return the directory of all sweeps, and the name with which the directory of this one begins."""
    stem = file_name(name) if name else f"{definition.method}-{definition.digest[:8]}"
    return output_dir.absolute() / SWEEPS, stem


def _choose_directory(parent: Path, stem: str, definition: Definition, on_existing: OnExisting) -> Path:
    pattern = re.compile(re.escape(stem) + r"(?:-(\d+))?")
    paths = {int(m.group(1) or 1): path for path in parent.iterdir() if (m := pattern.fullmatch(path.name))}
    contents = {number: _read(path / FILE) for number, path in paths.items() if (path / FILE).exists()}
    begun = {number: paths[number] for number, content in contents.items() if content.get(STEM) == stem}
    if not begun:  # a directory of this name may be another sweep's second start: exp-2 of exp
        return parent / (f"{stem}-{max(paths) + 1}" if contents else stem)
    latest = begun[max(begun)]
    if on_existing is OnExisting.error:
        raise ConfigError(f"on_existing=error: this sweep exists already in {latest}")
    if on_existing is OnExisting.rerun:
        return parent / f"{stem}-{max(paths) + 1}"
    differing = definition.differences(contents[max(begun)])
    if differing:
        raise ConfigError(
            f"search.name={stem} belongs to another sweep in {latest}:{differing}\n"
            "Choose another name, or start over with on_existing=rerun"
        )
    return latest


def _refuse_running(path: Path) -> None:
    holder = _read(path / DIRECTOR)
    process = f" (pid {holder.get('pid')} on {holder.get('host')})" if holder else ""
    raise ConfigError(f"this sweep is already running{process} in {path}; wait for it, or change a key (e.g. seed)")


def _read(path: Path) -> dict[str, Any]:
    """Read a file of a sweep; return an empty dict if it is missing or damaged."""
    try:
        return read_record(path, dict[str, Any])
    except (FileNotFoundError, DamagedRecord):
        return {}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


# The metrics that a sweep optimises, their directions, and checks of the settings that depend on them.


DIRECTIONS = ("minimize", "maximize")


CHOICE_OF_BEST = ("trainer.args.metric_for_best_model", "trainer.args.greater_is_better")
"""Keys that choose the best model of a run."""


def metrics_and_directions(search: SearchConfig, configs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the names of the metrics to optimise, and `minimize` or `maximize` for each.

    Args:
        search: the `search` section.
        configs: whole configs of points that may differ in how they choose the best model, as plain containers.

    Raises:
        ConfigError: a direction is missing or invalid, or the points choose their best models by different metrics.
    """
    defaults = list(dict.fromkeys(map(_best_model_goal, configs)))
    default = defaults[0]
    if len(defaults) > 1 and not search.metrics:
        goals = ", ".join(f"{goal[1] or 'optimise'} {goal[0]}" for goal in defaults if goal)
        raise ConfigError(
            f"the points of this sweep choose their best models differently ({goals}); set search.metrics and "
            "search.directions to say which point is best"
        )
    metrics = search.metrics or [default[0] if default else "objective"]
    check_directions(search)
    if search.directions:
        return metrics, search.directions
    if len(metrics) > 1:
        raise ConfigError(f"search.directions: give one of {one_of(DIRECTIONS)} for each of search.metrics")
    name = metrics[0]
    chooses_best = default is not None and _plain(name) == _plain(default[0])
    if default and chooses_best and default[1]:
        return metrics, [default[1]]
    lower = lower_is_better(name)
    if lower is not None:
        return metrics, [DIRECTIONS[not lower]]
    both = "trainer.args.greater_is_better=true, or for the sweep only " if chooses_best else ""
    raise ConfigError(
        f"search.directions: say whether to minimize or maximize {name}, e.g. {both}search.directions=[maximize]"
    )


def check_directions(search: SearchConfig) -> None:
    """Refuse directions, pruners and samplers that do not go with the metrics."""
    wrong = [direction for direction in search.directions if direction not in DIRECTIONS]
    if wrong:
        raise ConfigError(f"search.directions={wrong[0]}; allowed: {one_of(DIRECTIONS)}")
    if search.directions and len(search.directions) != max(1, len(search.metrics)):
        raise ConfigError(
            f"search.directions has {len(search.directions)} entries, search.metrics has {max(1, len(search.metrics))}"
        )
    several = len(search.metrics) > 1
    if several and search.pruner is not Pruner.none:
        raise ConfigError(f"search.pruner={search.pruner.value} compares one metric, but search.metrics has several")
    if several and search.method is Method.cmaes:
        raise ConfigError("search=cmaes optimises one metric; for several use search=nsga2, tpe, gp or random")


def check_storage(search: SearchConfig, on_existing: OnExisting) -> None:
    """Refuse a storage that can't give each trial to one sweeper, and to start a shared sweep over.

    Raises:
        ConfigError: `search.storage` is a server of MLflow, whose `MlflowStorage` (MLflow 3.17) changes no attribute
            on a condition; or `on_existing=rerun`, for which the next free name may be another one on another host.
    """
    storage = search.storage or ""
    if storage.partition(":")[0] in ("mlflow", "http", "https", "databricks"):
        raise ConfigError(
            f"search.storage={mask_secrets(storage)}: an MLflow server can't keep a study, as it can't give a trial "
            "to one sweeper alone; use a database that all hosts reach, e.g. "
            "search.storage=postgresql://HOST/DATABASE (pip install 'hfexp[postgres]'), and give the server as "
            "tracking.uri"
        )
    if storage and on_existing is OnExisting.rerun:
        raise ConfigError(
            "on_existing=rerun names a new sweep by the outputs of this host, but search.storage is for several; "
            "choose another search.name instead"
        )


def check_counts(search: SearchConfig) -> None:
    """Refuse missing or too small counts, and settings that do not go with the number of replicates.

    Raises:
        ConfigError: the message names the key and what is allowed.
    """
    if search.method is not Method.grid and search.trials is None:
        raise ConfigError(
            f"search={search.method.value} needs search.trials, the number of points to try, e.g. search.trials=50"
        )
    least = {"trials": 1, "replicates": 1, "retries": 0, "max_failures": 1}
    for name, lowest in least.items():
        value = getattr(search, name)
        if value is not None and value < lowest:
            raise ConfigError(f"search.{name}={value} must be at least {lowest}")
    if search.optimise is Optimise.bound and search.replicates == 1:
        raise ConfigError(
            "search.optimise=bound needs several seeds, as it optimises the worse end of an interval over them; set "
            "search.replicates to at least 2"
        )
    if search.replicates > 1 and search.pruner not in (Pruner.none, Pruner.wilcoxon):
        raise ConfigError(
            f"search.pruner={search.pruner.value} compares evaluations of single runs, but search.replicates="
            f"{search.replicates} runs each point several times; use search.pruner=wilcoxon, which skips the other "
            "replicates of a hopeless point"
        )
    if search.pruner is Pruner.wilcoxon and search.replicates == 1:
        raise ConfigError("search.pruner=wilcoxon compares replicates; set search.replicates to at least 3")


def _best_model_goal(config: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return the metric that chooses the best model, with its direction if known; None for another application."""
    if not isinstance(config.get("trainer"), Mapping) or not isinstance(config.get("task"), Mapping):
        return None
    args = config["trainer"].get("args") or {}
    name, greater = args.get("metric_for_best_model"), args.get("greater_is_better")
    if name is None:
        allowed = (config.get("security") or {}).get("allowed_targets")
        task = targets.locate(str(config["task"].get("_target_")), "task._target_", allowed)
        own = config["task"].get("metric")
        name, greater = (own, not lower_is_better(own)) if own else (task.metric, task.greater_is_better)
    elif greater is None:
        lower = lower_is_better(name)
        greater = None if lower is None else not lower
    return f"eval_{_plain(name)}", None if greater is None else DIRECTIONS[bool(greater)]


def _plain(name: str) -> str:
    for prefix in ("best_", "final_", "eval_"):
        name = name.removeprefix(prefix)
    return name


MOST_CHECKED = 50
"""Most points that are composed as a check before anything starts."""
SOURCE = "dataset.source"
SECTIONS = ("search", "output_dir", "on_existing")


@dataclass(frozen=True)
class Request:
    """A checked sweep that can be begun or continued."""

    search: SearchConfig
    space: Space
    points: list[Point] | None
    """All points of a grid; None for a sampler, which chooses points as results come in."""
    metrics: list[str]
    directions: list[str]
    definition: Definition
    example: dict[str, Any]
    """Composed config of a first point, unresolved."""
    config: Config | None
    """Typed config of a first point; None in another application."""
    seed: int
    """Seed of the first replicate."""
    output_dir: Path
    on_existing: OnExisting

    @property
    def total(self) -> int:
        """Return the number of points of the whole sweep."""
        if self.points is None:
            return self.search.trials or 0
        return min(self.search.trials or len(self.points), len(self.points))


@dataclass(frozen=True)
class Composer:
    """Composes points as Hydra does."""

    context: Any
    config: Any
    """Composed without the swept overrides."""
    prepare: Callable[[], None] = lambda: None
    """Called once composing has refused wrong keys and options, before anything slow is imported."""

    def request(self, overrides: list[str]) -> Request:
        """Build and check the request of these overrides.

        Raises:
            ConfigError: the sweep can't be run as asked.
        """
        search, settings = self._settings()
        on_existing = OnExisting(settings.get("on_existing") or OnExisting.resume)
        check_storage(search, on_existing)
        check_counts(search)
        check_directions(search)
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        space = read_space(overrides, search.space, parser, search.seed, opened, _SharedValues(self))
        _refuse_secrets(space)
        points = space.grid() if search.method is Method.grid else None
        composed = self.samples(space)
        swept_sources, config = _sources(composed, space, parser), self._example_config(composed[0])
        sources = [config.dataset.source, *swept_sources] if config else []
        # Composing has refused wrong keys and options by now; a value that proves wrong later fails its own job only.
        examples: Any = [OmegaConf.to_container(without_hydra(point), resolve=False) for point in composed]
        seed = _first_seed(search, space, examples[0])
        metrics, directions = metrics_and_directions(search, examples)
        definition = define(
            search, space, metrics, directions, configuration_hash(config, examples), data_hash(sources)
        )
        return Request(
            search, space, points, metrics, directions, definition, examples[0], config, seed,
            Path(str(settings.get("output_dir") or ".")), on_existing,
        )  # fmt: skip

    def compose(self, overrides: tuple[str, ...]) -> Any:
        """Compose a whole config, Hydra's section included."""
        return self.context.config_loader.load_sweep_config(self.config, list(overrides))

    def samples(self, space: Space) -> list[Any]:
        """Compose a first point, and one point for each further option of a swept group, as whole configs."""
        first = self.compose(space.job(space.samples()[0]))
        further = space.samples((*groups_of(first), *CHOICE_OF_BEST), MOST_CHECKED)[1:]
        return [first, *(self.compose(space.job(overrides)) for overrides in further)]

    def groups(self, space: Space) -> tuple[str, ...]:
        """Return the config groups of a first point; `self.config` would lack a swept group that `+` adds."""
        return groups_of(self.compose(space.job(space.samples()[0])))

    def _settings(self) -> tuple[SearchConfig, dict[str, Any]]:
        sections = {name: self.config.get(name) for name in SECTIONS}
        settings: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in sections.items()
        }
        search = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SearchConfig), settings["search"] or {}))
        assert isinstance(search, SearchConfig)
        return search, settings

    def _example_config(self, first: Any) -> Config | None:
        choices, composed = choices_of(first), without_hydra(first)
        if OmegaConf.get_type(composed) is not Config:
            return None
        config = to_config(composed)
        self.prepare()
        check_choices(config, choices)
        if config.launch.num_machines > 1:
            raise ConfigError(
                f"launch.num_machines={config.launch.num_machines} is for a single run; -m can't be used with it: "
                "start the runs one after the other, or a sweep on each machine"
            )
        problems = find_foreign_settings(config.trainer.args)
        if problems:
            raise ConfigError(join_problems(problems))
        return config


def groups_of(composed: Any) -> tuple[str, ...]:
    """Return the config groups of a whole config."""
    return tuple(composed.hydra.runtime.choices)


class _SharedValues:
    """Looks up keys that are not swept, whose values all points must share."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._points: list[Any] = []

    def __call__(self, key: str, space: Space) -> Any:
        """Return the value of a key, or the option of a group; None if there is none.

        Raises:
            ConfigError: the points differ in the key, as options of a swept group set it.
        """
        self._points = self._points or self._composer.samples(space)
        values = {spelling(value): value for value in (_value(point, key) for point in self._points)}
        if len(values) > 1:
            raise ConfigError(
                f"search.space: a `when` names {key}, which is not swept but differs between points "
                f"({one_of(values)}) because options of a group set it; sweep {key} itself, or give it one value"
            )
        (value,) = values.values()
        return value


def _refuse_secrets(space: Space) -> None:
    """Refuse to sweep over secrets: a sweep stores its values, and a secret does not change a result."""
    for dimension in space.dimensions:
        values = {dimension.key: list(dimension.values)}
        if without_secrets(values) != values:
            raise ConfigError(
                f"{dimension.key} can't be swept: its values are secrets, which a sweep would store; give it one value"
            )


def _value(composed: Any, key: str) -> Any:
    chosen = composed.hydra.runtime.choices.get(key)
    value = OmegaConf.select(composed, key) if chosen is None else chosen
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _sources(composed: list[Any], space: Space, parser: OverridesParser) -> list[dict[str, Any]]:
    """Return `dataset.source` of these points, and of the first one with each swept value of a key in it."""
    sources, other = [_resolved(point) for point in composed], copy.deepcopy(composed[0])
    for dimension in space.dimensions:
        if f"{dimension.key}.".startswith(f"{SOURCE}."):
            for override in parser.parse_overrides([dimension.override(value) for value in dimension.values]):
                OmegaConf.update(other, dimension.key, override.value(), merge=False, force_add=True)
                sources.append(_resolved(other))
    return sources


def _resolved(composed: Any) -> dict[str, Any]:
    try:
        source: Any = OmegaConf.to_container(OmegaConf.select(composed, SOURCE), resolve=True)
    except OmegaConfBaseException:  # such a point can't run, so it reads no files
        return {}
    return source


def _first_seed(search: SearchConfig, space: Space, example: dict[str, Any]) -> int:
    """Return the seed of the first replicate, from which the others count up."""
    seed = example.get("seed")
    if search.replicates > 1 and any(dimension.key == "seed" for dimension in space.dimensions):
        raise ConfigError("search.replicates counts up from seed, but seed is swept too; remove one of the two")
    if search.replicates > 1 and not isinstance(seed, int):
        raise ConfigError("search.replicates counts up from seed, but the config has no integer seed")
    return seed if isinstance(seed, int) else 0
