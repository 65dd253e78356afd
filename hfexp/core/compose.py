"""Composition of a config from command-line overrides, through Hydra."""

import contextlib
import functools
import importlib.util
import os
import re
import sys
import tomllib
import traceback
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import (
    Quote,
    QuotedString,
)
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hfexp.core.config import HABITS, Config, ModelConfig, explain_key_error
from hfexp.core.errors import ConfigError, did_you_mean, first_line, one_of
from hfexp.core.outside import DamagedRecord, check_directory, read_bytes
from hfexp.core.secrets import learn_secrets, mask_secrets
from hfexp.core.training_args import way_out

if TYPE_CHECKING:
    pass


# Overrides whose value stays a text even if it looks like a number or a truth value: `name=1E5` sets "1E5".


PLAIN = re.compile(r"[A-Za-z_][\w./:-]*", re.ASCII)
"""Strings that Hydra's grammar reads without quotes, except those in `RESERVED`."""


RESERVED = ("null", "true", "false", "nan", "inf")


TEXTS = (
    "tracking.tags.", "dataset.columns.", "dataset.source.data_dir", "dataset.source.data_files",
    "dataset.source.image_dir", "dataset.source.image_column", "dataset.source.name", "dataset.source.path",
    "dataset.source.revision", "dataset.source.split",
)  # fmt: skip
"""Keys, or prefixes of keys, that hold texts, in addition to those that the schema types as texts."""
_NUMBER = r"[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf)|true|false"
_NON_TEXT = re.compile(rf"(^|[\[,{{]\s*(?:[\w./-]+\s*:\s*)?)({_NUMBER})(?=\s*(?:$|[,\]}}]))", re.IGNORECASE)
"""Pattern of a number or a truth value that stands alone or is an element of a list or a mapping."""


def quote_texts(override: str) -> str:
    """Quote the numbers and truth values in an override if its key holds a text (`name=1E5`)."""
    key, equals, value = override.partition("=")
    bare = key.lstrip("+")
    is_text = bare in _text_keys() or bare.startswith(TEXTS)
    if not is_text or not equals or "(" in value or "'" in value or '"' in value:
        return override
    quoted = _NON_TEXT.sub(r"\1'\2'", value)
    return f"{key}={quoted}"


@functools.cache
def _text_keys(schema: Any = Config, prefix: str = "") -> frozenset[str]:
    """Return the keys of the schema that hold texts, or lists or mappings of texts."""
    keys: set[str] = set()
    for name, annotation in typing.get_type_hints(schema).items():
        types = set(typing.get_args(annotation)) - {type(None)} or {annotation}
        if name == "model":
            types = {ModelConfig}
        for inner in types if len(types) == 1 else ():
            if is_dataclass(inner):
                keys |= _text_keys(inner, f"{prefix}{name}.")
            elif inner in (str, list[str], dict[str, str]):
                keys.add(f"{prefix}{name}")
    return frozenset(keys)


def spelling(value: Any) -> str:
    """Write a plain value in Hydra's grammar."""
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in RESERVED:
            return value
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list | tuple):
        return f"[{','.join(spelling(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{spelling(key)}:{spelling(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


# The config search path: the user's own directories come before the shipped config.


_own_directories: tuple[Path, ...] | None = None
"""Config directories of the user; None while Hydra is not composing for hfexp."""


def conf_dir() -> Path:
    """Return the directory of the shipped config: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def search_path() -> tuple[Path, ...]:
    """Return the directories that options are looked up in; the first one that has an option wins."""
    return (*(_own_directories or ()), conf_dir())


@contextlib.contextmanager
def own_options_first(*directories: Path) -> Iterator[None]:
    """Make Hydra search these directories before the shipped config.

    Raises:
        ConfigError: one of them does not exist, or has a file whose aliases expand to too many values.
    """
    global _own_directories
    before = _own_directories
    for directory in directories:
        if not os.path.isdir(directory):
            raise ConfigError(f"--config-dir: there is no directory {directory}")
        check_directory(directory)
    _own_directories = directories
    try:
        yield
    finally:
        _own_directories = before


def own_directories(*named: str | Path | None) -> list[Path]:
    """Return the directories with the user's own options, for `own_options_first`.

    Args:
        named: directories that flags such as `--config-dir` name; they come before the one of the project.
    """
    directories = [Path(path).resolve() for path in named if path is not None]
    return directories + [path for path in (project().config_dir,) if path is not None]


PROJECT_FILE = "pyproject.toml"


@dataclass(frozen=True)
class Project:
    """What `[tool.hfexp]` of the `pyproject.toml` in the current directory says."""

    config_dir: Path | None = None
    """Directory with the project's own options."""
    experiment: str | None = None
    """Experiment that runs if nothing is chosen."""


def project() -> Project:
    """Read the current directory's project; it is empty if there is none.

    Raises:
        ConfigError: the file can't be read, or the table has an unknown key or a value of the wrong type.
    """
    file = Path.cwd() / PROJECT_FILE
    try:
        stat = file.stat()
    except OSError:
        return Project()
    return _read_project(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _read_project(file: Path, changed: int, size: int) -> Project:
    try:
        table = tomllib.loads(read_bytes(file).decode()).get("tool", {}).get("hfexp", {})
    except (OSError, DamagedRecord, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise ConfigError(f"{PROJECT_FILE} can't be read: {error}") from error
    known = [entry.name for entry in fields(Project)]
    if not isinstance(table, dict):
        raise ConfigError(f"{PROJECT_FILE}: tool.hfexp must be a table, with the keys {one_of(known)}")
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{PROJECT_FILE}: tool.hfexp has no key {key!r}. Known keys: {one_of(known)}")
        if not isinstance(value, str):
            raise ConfigError(f"{PROJECT_FILE}: tool.hfexp.{key} must be a text, got {value!r}")
    config_dir = file.parent / table["config_dir"] if "config_dir" in table else None
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"{PROJECT_FILE}: tool.hfexp.config_dir: there is no directory {table['config_dir']}")
    return Project(config_dir, table.get("experiment"))


def find_replaced() -> list[str]:
    """List the user's config files that replace a shipped one and differ from it."""
    replaced = []
    for directory in search_path()[:-1]:
        for path in sorted(directory.rglob("*.yaml")):
            shipped = conf_dir() / path.relative_to(directory)
            if shipped.is_file() and path.is_file() and shipped.read_bytes() != path.read_bytes():
                replaced.append(str(path))
    return replaced


class OwnOptionsFirst(SearchPathPlugin):
    """Puts the directories of `own_options_first` first, and adds the shipped config if `--config-path` dropped it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if _own_directories is None:
            return
        for directory in _own_directories:  # each one goes right before the shipped config, after the one before
            search_path.prepend("hfexp", f"file://{directory}", SearchPathQuery(provider="main"))
        if not any(str(conf_dir()) in str(element.path) for element in search_path.get_path()):
            search_path.append("hfexp", f"file://{conf_dir()}")


CONFIG_NAME = "config"
SCHEMA = "hfexp_schema"
"""Name of the typed schema in `config.yaml`."""
RECORDED = "_recorded"
"""Name of the group option that holds the settings a run was recorded with."""
DEFAULT_EXPERIMENT = "experiment=digits_vit"
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, ConfigCompositionException)

OPEN_SECTIONS = (
    "trainer.args.", "trainer.callbacks.", "trainer.loss.", "trainer.class_weights.", "trainer.options.",
    "trainer.lr_factors.", "model.", "dataset.source.", "dataset.columns.", "tracking.tags.", "metrics.", "task.",
    "launch.fsdp.", "launch.parallelism.", "hydra.launcher.init", "hydra.launcher.resources",
    "hydra.launcher.runtime_env", "search.sampler", "search.pruner_args", "search.space",
    "hydra.launcher.additional_parameters",
    "trainer.args={", "trainer.callbacks={", "trainer.loss={", "trainer.class_weights={", "trainer.options={",
    "trainer.lr_factors={", "dataset.source={", "dataset.columns={", "tracking.tags={", "launch.fsdp={",
    "launch.parallelism={",
)  # fmt: skip
"""Beginnings of overrides whose keys belong to a library or the user.

They need no `+`, and are checked where they are used; a mapping sets several keys at once.
"""


TYPED_ONLY = (
    "security.allowed_targets", "model.trust_remote_code", "hydra.launcher.setup", "hydra.launcher.srun_args",
    "hydra.launcher.additional_parameters", "hydra.launcher.address", "hydra.launcher.init",
    "hydra.launcher.runtime_env",
)  # fmt: skip
"""Keys that let other people's code run: only overrides, which the user has typed, may set them."""
MAX_NAME = 240
"""Bytes that the name of an option may have: file systems take 255 for the name of its file."""
NON_TEXT = re.compile(r"(?i)\s*(null|true|false|[+-]?(\d[\d_]*(\.[\d_]*)?(e[+-]?\d+)?|\.\d+|inf|nan))\s*")
"""Matches what Hydra's grammar reads as a value other than text."""
PLUGINS = ("LocalLauncher", "SlurmLauncher", "RayLauncher", "ExperimentSweeper", "Planner")
"""Names of the plugin classes in `hydra_plugins.hfexp`."""


def hydra_kwargs() -> dict[str, Any]:
    """Return arguments for `hydra.main` and `hydra.initialize*`; Hydra 1.4 warns about any `version_base`."""
    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def register_schema() -> None:
    """Register the schema with Hydra under the name that `config.yaml` lists, and hfexp's plugins."""
    if f"{SCHEMA}.yaml" not in ConfigStore.instance().repo:  # storing converts the whole schema each time
        ConfigStore.instance().store(name=SCHEMA, node=Config, provider="hfexp")
    Plugins.instance().register(OwnOptionsFirst)
    _register_plugins()


def _register_plugins() -> None:
    """Register the plugins by hand if the installed `hydra_plugins/hfexp.py` is missing or older (a checkout)."""
    plugins, namespace = Plugins.instance(), "hydra_plugins"
    name = f"{namespace}.hfexp"
    classes = [*plugins.discover(Launcher), *plugins.discover(Sweeper)]
    known = {plugin.__name__ for plugin in classes if plugin.__module__ == name}
    if known.issuperset(PLUGINS):
        return
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "commands" / "hydra_plugin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        package = importlib.import_module(namespace)
    except ImportError:  # no plugin package is installed
        package = sys.modules[namespace] = ModuleType(namespace)
        package.__path__ = []
    vars(package)["hfexp"] = sys.modules[name] = module
    spec.loader.exec_module(module)
    for plugin in PLUGINS:
        plugins.register(vars(module)[plugin])


def prepare_overrides(overrides: list[str], config_name: str = CONFIG_NAME) -> list[str]:
    """Add the default experiment if nothing is chosen, prefix keys of open sections with `++`, and quote texts.

    Args:
        config_name: the primary config; the user's own may choose a task, a model or a dataset itself.

    Raises:
        ConfigError: the name of an option is too long for a file, or is not a name.
    """
    learn_secrets(overrides)
    _check_options(overrides)
    implied = implied_experiment(overrides, config_name)
    return [opened(quote_texts(override)) for override in overrides] + implied


def implied_experiment(overrides: Iterable[str], config_name: str = CONFIG_NAME) -> list[str]:
    """Return the override for the default experiment; empty if the user's overrides or config choose something."""
    chosen = {override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides}
    if chosen & {"experiment", "task", "model", "dataset"} or _chooses(config_name):
        return []
    own = project().experiment
    return [f"experiment={own}" if own else DEFAULT_EXPERIMENT]


def _check_options(overrides: Iterable[str]) -> None:
    """Raise ConfigError for names that no file can have and options that are not names, on which Hydra crashes."""
    for override in overrides:
        key, _, option = override.lstrip("+~").partition("=")
        group = key.partition("@")[0]
        is_group = group.startswith("hydra/") or any(os.path.isdir(directory / group) for directory in search_path())
        for name in (*key.split("/"), option if is_group else ""):
            if len(name.encode(errors="replace")) > MAX_NAME:
                raise ConfigError(
                    f"{override[:40]}...: the name of a key or an option may have at most {MAX_NAME} bytes"
                )
        if is_group and NON_TEXT.fullmatch(option):
            raise ConfigError(
                f"{override}: {option.strip()} is not an option name; leave this override out to choose none"
            )


def _chooses(config_name: str) -> bool:
    """Return True if a primary config chooses a task, model or dataset, or can't be composed (reported later)."""
    own_directories = search_path()[:-1]
    if config_name == CONFIG_NAME and not any((path / f"{CONFIG_NAME}.yaml").is_file() for path in own_directories):
        return False
    try:
        own = _composed(config_name, [])
    except (*HYDRA_ERRORS, RecursionError):
        return True
    with own_options_first():
        shipped = _composed(CONFIG_NAME, [])
    return any(own.get(section) != shipped[section] for section in ("task", "model", "dataset"))


def _composed(config_name: str, overrides: list[str]) -> Any:
    with hydra.initialize_config_dir(str(conf_dir()), **hydra_kwargs()):
        return hydra.compose(config_name, overrides, return_hydra_config=True)


def opened(override: str) -> str:
    """Add the `++` that Hydra needs for a new key to an override of an open section."""
    return f"++{override}" if override.startswith(OPEN_SECTIONS) and "=" in override else override


def as_typed(override: str) -> str:
    """Strip the `++` that `opened` adds to an override."""
    bare = override.removeprefix("++")
    return bare if bare.startswith(OPEN_SECTIONS) else override


def config_flags(args: list[str]) -> list[str]:
    """Return those of Hydra's flags that say where the config is, with their values."""
    values = vars(get_args_parser().parse_known_intermixed_args(args)[0])
    flags = ("config_path", "config_name", "config_dir")
    return [arg for flag in flags if values[flag] for arg in (f"--{flag.replace('_', '-')}", values[flag])]


def importable_cwd() -> None:
    """Append the working directory to `sys.path` for `_target_`; as the last entry, it can't shadow a library."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def explain(error: Exception) -> str:
    """Turn an error of Hydra or OmegaConf into one message that names the key and what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing_option(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{as_typed(str(error.override))!r} can't be parsed as key=value. Quote values with special characters "
            f"twice, e.g. 'name=\"a, b\"' ({str(error).splitlines()[0].strip()})"
        )
    first = first_line(error)
    ambiguous = re.match(r"Ambiguous value for argument '(.*)'$", first)
    if ambiguous:
        return _explain_several_values(ambiguous.group(1))
    group = re.match(r"(.*Could not override '([^']*)')", first)
    if group and group.group(2) in HABITS:
        return f"{group.group(1)}: {way_out(HABITS[group.group(2)], 'in hfexp, use')}"
    experiment = re.match(r"In '(experiment/[^']*)': ", first)
    if experiment and "Key 'experiment' not in" in str(error.__cause__ or error):
        return (
            f"{experiment[1]}.yaml: it must begin with the line '# @package _global_', followed by lines of key: value"
        )
    inner = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(inner, OmegaConfBaseException):
        file = re.match(r"In '[^']*': ", first)  # the file; no match on the command line
        return f"{file.group() if file else ''}{explain_key_error(inner)}"
    lines = [line.strip() for line in str(error).splitlines()]
    message = " ".join(line for line in lines if "search path" not in line and "provider=" not in line)
    return message or f"the overrides can't be composed ({type(error).__name__} without a message)"


def _explain_several_values(override: str) -> str:
    key, _, values = override.partition("=")
    return (
        f"{override}: several values define a sweep, which needs -m: hfexp -m {override}. "
        f"For one value, write '{key}=[{values}]' (a list) or {key}=\\'{values}\\' (a string)"
    )


def _explain_missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or [])
    advice = HABITS.get(f"{group}={option}", HABITS.get(group))
    if advice:
        return f"there is no {group}={option}: {way_out(advice, 'in hfexp, use')}"
    if not group:
        return str(error).splitlines()[0]
    if not options:
        return f"there is no configuration group {group!r}"
    return f"there is no {group}={option}.{did_you_mean(option, options)} Options of {group}: {one_of(options)}"


def compose(*overrides: str, config_dir: str | Path | None = None) -> tuple[Any, dict[str, str]]:
    """Compose a config in Python by the rules of the command line.

    Args:
        overrides: as on the command line, e.g. `"experiment=digits_vit"`, `"seed=1"`.
        config_dir: directory with the user's own options, as `--config-dir`.

    Returns:
        The composed `DictConfig` and the option chosen in each group.

    Raises:
        ConfigError: the config has no such option or key, or does not accept a value.
    """
    with _composing(overrides, config_dir) as (cfg, _):
        choices = choices_of(cfg)
        return without_hydra(cfg), choices


@contextlib.contextmanager
def _composing(overrides: Iterable[str], config_dir: str | Path | None) -> Iterator[tuple[Any, list[str]]]:
    """Compose a config, and yield it with Hydra's own section, and the overrides as Hydra was given them."""
    register_schema()
    importable_cwd()
    overrides = list(overrides)
    with own_options_first(*own_directories(config_dir), *searched(overrides)), explained():
        prepared = prepare_overrides(overrides)
        cfg = _composed(CONFIG_NAME, prepared)
        require_typed(cfg)
        yield cfg, prepared


def compose_with_sources(
    overrides: list[str], config_dir: str | Path | None = None
) -> tuple[Any, list[tuple[str, dict[str, Any]]]]:
    """Compose a config, and tell what each config file sets.

    Returns:
        The composed config, and pairs of an option (`trainer=default`) and the keys that its file sets, nested as in
        the config; where several set a key, the last one wins, and an override wins over all of them.

    Raises:
        ConfigError: the config has no such option or key, or does not accept a value.
    """
    with (
        _composing(overrides, config_dir) as (cfg, prepared),
        hydra.initialize_config_dir(str(conf_dir()), **hydra_kwargs()),
    ):
        loader: Any = GlobalHydra.instance().config_loader()
        files = loader.compute_defaults_list(CONFIG_NAME, prepared, RunMode.RUN).defaults
        loaded = [(file, loader.repository.load_config(file.config_path)) for file in files]
    return without_hydra(cfg), [
        (_as_choice(file.config_path), _nested(file.package, OmegaConf.to_container(result.config)))
        for file, result in loaded
        if result is not None and file.config_path != SCHEMA
    ]


def _as_choice(path: str) -> str:
    group, _, name = path.rpartition("/")
    return f"{group}={name}" if group else f"{name}.yaml"


def _nested(package: str | None, values: Any) -> dict[str, Any]:
    """Put a file's values at the place in the config that its package names."""
    for part in reversed((package or "").split(".") if package else []):
        values = {part: values}
    return values


def require_typed(cfg: Any) -> None:
    """Refuse a config that trusts more code than its user has typed: a config file may be somebody else's.

    Args:
        cfg: the composed config with Hydra's own section.

    Raises:
        ConfigError: a config file sets one of `TYPED_ONLY`, and no override does.
    """
    # Overrides may hold interpolations, which only the whole config can resolve.
    typed: Any = OmegaConf.to_container(cfg.hydra.overrides, resolve=False)
    parts = [override.lstrip("+").partition("=") for override in [*typed["task"], *typed["hydra"]]]
    keys = {key for key, _, _ in parts}
    sections = tuple(f"{key}." for key, _, value in parts if value.startswith("{"))
    for key, value in (item for section in TYPED_ONLY for item in _leaves(section, OmegaConf.select(cfg, section))):
        if value and key not in keys and not key.startswith(sections):
            shown = f"[{','.join(map(str, value))}]" if OmegaConf.is_list(value) else value
            shown = "true" if value is True else shown
            raise ConfigError(
                f"a config file sets {key}={shown}, which allows other people's code to run; if you trust it, set it "
                f"on the command line: {key}={shown}"
            )


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a value, or all values below a mapping, with their keys."""
    if OmegaConf.is_dict(value):
        for name in value:
            yield from _leaves(f"{key}.{name}", value[name])
    else:
        yield key, value


@contextlib.contextmanager
def recorded_options(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """Offer recorded sections, such as `dataset`, as options of their groups.

    Only plain values are accepted: no interpolations, missing values or `defaults` that Hydra would look up.

    Yields:
        The overrides that choose these options.

    Raises:
        ConfigError: a section holds more than plain values.
    """
    for section, content in sections.items():
        _require_values(content, section)
        if "defaults" in content:
            raise ConfigError(f"the record has a key {section}.defaults, which would load other config files")
    store = ConfigStore.instance()
    for section, content in sections.items():
        store.store(group=section, name=RECORDED, node=dict(content))
    try:
        yield [f"{section}={RECORDED}" for section in sections]
    finally:
        for section in sections:
            store.repo[section].pop(f"{RECORDED}.yaml")


def _require_values(node: Any, key: str) -> None:
    """Refuse recorded values that Hydra would look up elsewhere (interpolations, `???`)."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            _require_values(str(name), f"{key}.{name}")
            _require_values(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _require_values(value, f"{key}.{index}")
    elif isinstance(node, str) and ("${" in node or node == "???"):
        raise ConfigError(f"the record has {key}={node}: a record may only hold plain values, no interpolations")


def choices_of(cfg: Any) -> dict[str, str]:
    """Return the options chosen in hfexp's own groups, by group."""
    return {k: v for k, v in cfg.hydra.runtime.choices.items() if "/" not in k and v is not None}


def searched(overrides: Iterable[str]) -> list[Path]:
    """Return the local directories of `hydra.searchpath=[...]`."""
    lists = [
        override.partition("=")[2].strip("[]") for override in overrides if override.startswith("hydra.searchpath=")
    ]
    paths = [path.strip(" '\"") for text in lists for path in text.split(",") if path]
    return [Path(path.removeprefix("file://")).absolute() for path in paths if not path.startswith("pkg://")]


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn Hydra's errors into messages that users understand."""
    try:
        yield
    except HYDRA_ERRORS as error:
        raise ConfigError(mask_secrets(explain(error))) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"a config file is not valid YAML: {' '.join(str(error).split())}") from error
    except TypeError as error:  # an index of a list that is not a number
        if not _is_of_omegaconf(error):
            raise
        raise ConfigError(
            f"an override sets a key in a list ({error}): give the whole list, key=[...], or the index of the entry, "
            "key.0=..."
        ) from error
    except ValueError as error:  # from logging.config, which names the part
        if not str(error).startswith("Unable to configure"):
            raise
        raise ConfigError(f"hydra's logging can't be set up: {error}: {error.__cause__}") from error
    except RecursionError as error:
        raise ConfigError(
            "one of your config files includes itself: its defaults list names the shipped file that it replaces; "
            f"rename your file ({one_of(find_replaced())})"
        ) from error


def _is_of_omegaconf(error: Exception) -> bool:
    """Return True if OmegaConf itself raised the error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_globals.get("__name__", "").startswith("omegaconf.")


def without_hydra(cfg: Any) -> Any:
    """Delete Hydra's section from a composed config, if it is there, and return the config."""
    from omegaconf import open_dict, read_write

    with read_write(cfg), open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def split_config_dir(args: list[str]) -> tuple[list[str], str | None]:
    """Split the arguments into those without `--config-dir DIR`, and DIR (None if it is not given)."""
    for index, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in ("--config-dir", "-cd"):
            if not equals and index + 1 == len(args):
                raise ConfigError("--config-dir needs a directory")
            rest = args[:index] + args[index + (1 if equals else 2) :]
            return rest, value if equals else args[index + 1]
    return args, None
