"""From the words of a command line to a composed configuration, through Hydra."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf.errors import OmegaConfBaseException

from hfexp.config import Config, explain_key_error
from hfexp.errors import ConfigError, did_you_mean, one_of

CONFIG_NAME = "config"
DEFAULT_EXPERIMENT = "experiment=digits_vit"

OPEN_SECTIONS = (
    "trainer.args.", "trainer.callbacks.", "model.", "dataset.source.", "dataset.columns.", "tracking.tags.",
    "metrics.", "task.", "search.sampler", "search.pruner_args", "search.space",
)  # fmt: skip
"""Sections whose keys are a vendor's or the user's own: they need no `+` and are checked where they are used."""


PLUGINS = ("LocalLauncher", "ExperimentSweeper", "Planner")
"""Classes of `hydra_plugins.hfexp`."""


def conf_dir() -> Path:
    """The shipped configuration: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def hydra_kwargs() -> dict[str, Any]:
    """Arguments for `hydra.main` and `hydra.initialize*`: from 1.4 on there is no `version_base` to choose."""
    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def register_schema() -> None:
    """Make the schema known to Hydra under the name that `config.yaml` lists, and our launcher and sweeper."""
    ConfigStore.instance().store(name="hfexp_schema", node=Config, provider="hfexp")
    _register_plugins()


def _register_plugins() -> None:
    """Where the installed `hydra_plugins/hfexp.py` is missing or older (a checkout), do what Hydra does with it."""
    plugins, namespace = Plugins.instance(), "hydra_plugins"
    name = f"{namespace}.hfexp"
    found = [*plugins.discover(Launcher), *plugins.discover(Sweeper)]
    known = {plugin.__name__ for plugin in found if plugin.__module__ == name}
    if known.issuperset(PLUGINS):
        return
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "launch" / "plugin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        package = importlib.import_module(namespace)
    except ImportError:  # no plugin is installed
        package = sys.modules[namespace] = ModuleType(namespace)
        package.__path__ = []
    vars(package)["hfexp"] = sys.modules[name] = module
    spec.loader.exec_module(module)
    for plugin in PLUGINS:
        plugins.register(vars(module)[plugin])


def prepare_overrides(words: list[str]) -> list[str]:
    """Add the default experiment where nothing was chosen, and open the free-form sections."""
    chosen = {word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words}
    words = [opened(word) for word in words]
    if not chosen & {"experiment", "task", "model", "dataset"}:
        words.append(DEFAULT_EXPERIMENT)
    return words


def opened(word: str) -> str:
    """With the `++` that Hydra needs for a key of the free-form sections."""
    return f"++{word}" if word.startswith(OPEN_SECTIONS) and "=" in word else word


def as_typed(word: str) -> str:
    """An override without what `opened` puts before it."""
    bare = word.removeprefix("++")
    return bare if bare.startswith(OPEN_SECTIONS) else word


def config_flags(words: list[str]) -> list[str]:
    """Those of Hydra's flags that say where the configuration is."""
    args = vars(get_args_parser().parse_known_intermixed_args(words)[0])
    flags = ("config_path", "config_name", "config_dir")
    return [word for flag in flags if args[flag] for word in (f"--{flag.replace('_', '-')}", args[flag])]


def importable_cwd() -> None:
    """Let `_target_` reach the user's own modules; appended, so that no local file replaces a library."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def explain(error: Exception) -> str:
    """Hydra's and OmegaConf's errors as one message that names the key and what is allowed."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing_option(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} can't be parsed as key=value. Quote values with special characters twice, "
            f"e.g. 'name=\"a, b\"' ({str(error).splitlines()[0].strip()})"
        )
    if isinstance(cause, OmegaConfBaseException):
        return explain_key_error(cause)
    if isinstance(error, OmegaConfBaseException):
        return explain_key_error(error)
    return " ".join(
        line.strip() for line in str(error).splitlines() if "search path" not in line and "provider=" not in line
    )


def _explain_missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or [])
    if not group:
        return str(error).splitlines()[0]
    if not options:
        return f"there is no configuration group {group!r}"
    return f"there is no {group}={option}.{did_you_mean(option, options)} Options of {group}: {one_of(options)}"


def compose(*overrides: str, config_dir: str | Path | None = None) -> tuple[Any, dict[str, str]]:
    """Compose a configuration in Python, with the same rules as the command line.

    Args:
        overrides: as on the command line, e.g. `"experiment=digits_vit"`, `"seed=1"`.
        config_dir: a directory of your own options, as `--config-dir`.

    Returns:
        The composed `DictConfig` and the option chosen in each group.

    Raises:
        ConfigError: an option, key or value is not what the configuration takes.
    """
    register_schema()
    importable_cwd()
    words = prepare_overrides(list(overrides))
    if config_dir is not None:
        words.append(f"hydra.searchpath=[file://{Path(config_dir).resolve()}]")
    try:
        with hydra.initialize_config_dir(str(conf_dir()), **hydra_kwargs()):
            cfg = hydra.compose(CONFIG_NAME, words, return_hydra_config=True)
            choices = {k: v for k, v in cfg.hydra.runtime.choices.items() if "/" not in k}
            return without_hydra(cfg), choices
    except (HydraException, OmegaConfBaseException, ConfigCompositionException) as error:
        raise ConfigError(explain(error)) from error


def without_hydra(cfg: Any) -> Any:
    """The job's own part of a composed configuration."""
    from omegaconf import open_dict, read_write

    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg
