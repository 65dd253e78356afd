"""The only module that builds objects from `_target_` nodes: allow-list, signature check, instantiation."""

import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfexp.core.errors import ConfigError, did_you_mean, one_of


@dataclass(frozen=True)
class AllowedTargets:
    """Objects that may be built at a key, besides the user's own code and `security.allowed_targets`."""

    modules: tuple[str, ...] = ()
    """Modules; everything that is defined in them or below them may be built."""
    names: tuple[str, ...] = ()
    """Dotted paths of single objects that may be built."""
    base_classes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Pairs of a package and names of base classes: its classes that derive from one of these may be built."""

    def admits(self, path: str, target: Any) -> bool:
        """Return whether an object at a dotted path may be built."""
        package, origin = path.partition(".")[0], _defined_at(target)
        if path in self.names:
            return origin.partition(".")[0] == package
        if is_below(path, self.modules) and is_below(origin, self.modules):
            return True
        bases = {base.__name__ for base in target.__mro__} if isinstance(target, type) else set()
        return origin.partition(".")[0] == package and any(
            package == allowed and bases & set(names) for allowed, names in self.base_classes
        )

    def __str__(self) -> str:
        base_classes = (f"a {' or '.join(names)} of {package}" for package, names in self.base_classes)
        return one_of([*self.modules, *self.names, *base_classes]) or "nothing from a package"


SAFE_SOURCES = (
    "load_dataset", "load_from_disk", "concatenate_datasets", "interleave_datasets", "DatasetDict", "Features",
    "Value", "ClassLabel", "Image", "List", "Dataset.from_csv", "Dataset.from_json", "Dataset.from_parquet",
    "Dataset.from_text", "Dataset.from_dict", "Dataset.from_list",
)  # fmt: skip
"""Objects of `datasets` that a source may build."""
PROCESSORS = ("ImageProcessingMixin", "PreTrainedTokenizerBase", "FeatureExtractionMixin", "ProcessorMixin")
"""Base classes of the processors in Transformers."""
SOURCES = AllowedTargets(modules=("hfexp.data.sources",), names=tuple(f"datasets.{name}" for name in SAFE_SOURCES))
ALLOWED_TARGETS = {
    "task": AllowedTargets(base_classes=(("hfexp", ("Task",)),)),
    "model": AllowedTargets(modules=("torch.nn",)),
    "model.processor": AllowedTargets(
        names=("hfexp.tasks.text.byte_tokenizer", "hfexp.tasks.text.subword_tokenizer"),
        base_classes=(("transformers", PROCESSORS),),
    ),
    "model.peft": AllowedTargets(base_classes=(("peft", ("PeftConfig",)),)),
    "model.processor.source": SOURCES,  # a tokenizer that learns from the dataset's texts
    "dataset.source": SOURCES,
    "transform": AllowedTargets(
        modules=("torchvision.transforms", "torch.nn"), base_classes=(("hfexp", ("Module",)),)
    ),
    # The Trainer of Transformers is located only so that `trainer_class` can say why it is refused.
    "trainer": AllowedTargets(names=("hfexp.training.trainer.Trainer", "transformers.Trainer")),
    "trainer.loss": AllowedTargets(modules=("torch.nn",), names=("hfexp.training.losses.Focal",)),
    "trainer.callbacks": AllowedTargets(
        names=("hfexp.training.callbacks.ProfileCallback",), base_classes=(("transformers", ("TrainerCallback",)),)
    ),
    "metrics": AllowedTargets(modules=("hfexp.tasks.metrics",), names=("evaluate.load", "evaluate.combine")),
    "search": AllowedTargets(modules=("optuna.samplers", "optuna.pruners", "optuna.distributions")),
    "hydra.callbacks": AllowedTargets(names=("hydra.experimental.callbacks.LogJobReturnCallback",)),
}
"""What may be built at each key and below it. A whole package has too much that runs code, loads pickles, writes or
fetches (`datasets.Dataset.from_generator`, `torchvision.io.write_png`, `transformers.AutoModel.from_pretrained`)."""


def instantiate(node: Mapping[str, Any], key: str, allowed: list[str] | None = None, **runtime: Any) -> Any:
    """Build the object that `node` describes, with containers as plain Python types.

    Args:
        node: mapping with `_target_` and arguments; nested `_target_` nodes are built first.
        key: dotted key of the node, for messages.
        allowed: packages that the user allows besides the known ones.
        runtime: objects that exist only at run time (`processor`, `id2label`, ...); config keys may not repeat them.

    Raises:
        ConfigError: the node is not allowed or does not bind, or what it builds has raised one.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    overlap = sorted(runtime.keys() & node.keys())
    if overlap:
        raise ConfigError(f"{key}.{overlap[0]} is set by hfexp at run time and can't be configured")
    check(node, key, allowed, frozenset(runtime))
    # The partial gets the run-time objects: Hydra itself would turn those that are dataclasses into config nodes.
    policy = {}
    if "_execution_whitelist_" in parameters(hydra_instantiate):  # Hydra 1.4: exactly the targets just checked
        nodes = ((str(inner["_target_"]), f"{place}._target_") for place, inner in _nodes(node, key))
        targets = {path: locate(path, place, allowed) for path, place in nodes}
        definitions = {f"{t.__module__}.{t.__qualname__}" for t in targets.values() if hasattr(t, "__qualname__")}
        policy["_execution_whitelist_"] = sorted({*targets, *definitions})
    try:
        build = hydra_instantiate({**node, "_partial_": True}, _convert_="all", **policy)
    except InstantiationException as error:  # of a nested node, e.g. the source that a tokenizer is trained on
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from error
        raise
    return functools.partial(build, **runtime) if node.get("_partial_") else build(**runtime)


def check(node: Any, key: str, allowed: list[str] | None = None, runtime: frozenset[str] = frozenset()) -> None:
    """Check every `_target_` in `node` against the allow-list and its signature, without building it.

    Raises:
        ConfigError: a target is unknown or refused, or an argument is unknown or missing.
    """
    # Hydra would resolve it while building, and nobody has checked the result (`${oc.create:{_target_: ...}}`).
    if isinstance(node, str) and "${" in node:
        raise ConfigError(f"{key}={node}: ${{...}} is not resolved here; give the value itself")
    if isinstance(node, list):
        for index, item in enumerate(node):
            check(item, f"{key}.{index}", allowed)
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        target = locate(str(node["_target_"]), f"{key}._target_", allowed)
        _check_signature(target, node, key, runtime)
    for name, value in node.items():
        check(value, f"{key}.{name}", allowed)


def targets_in(node: Any) -> set[str]:
    """Return all `_target_` strings of a node."""
    if isinstance(node, list):
        return {target for item in node for target in targets_in(item)}
    if not isinstance(node, Mapping):
        return set()
    own = {str(node["_target_"])} if "_target_" in node else set()
    return own | {target for value in node.values() for target in targets_in(value)}


def locate(path: str, key: str, allowed: list[str] | None = None) -> Any:
    """Import the object at a dotted path if it may be built at this key.

    Raises:
        ConfigError: it may not be built there, or does not exist.
    """
    permitted = _allowed_at(key)
    if not (_is_trusted(path, allowed) or _may_import(permitted, path)):
        raise _refused(path, key, permitted)
    target = _import(path, key)
    if not callable(target):
        raise ConfigError(f"{key}: {path} is a {type(target).__name__}, expected a class or function")
    # A module can expose a foreign object as an attribute (torch.os.system), so check where it was defined.
    origin = _defined_at(target)
    is_trusted = _is_trusted(path, allowed) and (_is_trusted(origin, allowed) or permitted.admits(origin, target))
    if not (is_trusted or permitted.admits(path, target)):
        raise _refused(path, key, permitted)
    return target


def _defined_at(target: Any) -> str:
    """Return the dotted path under which an object was defined."""
    module = getattr(target, "__module__", None) or type(getattr(target, "__self__", None)).__module__
    return f"{module}.{getattr(target, '__name__', '')}"


def _allowed_at(key: str) -> AllowedTargets:
    """Return what may be built at a key: for `trainer.callbacks.x._target_`, the entry of `trainer.callbacks`."""
    parts = key.split(".")
    known = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((ALLOWED_TARGETS[name] for name in known if name in ALLOWED_TARGETS), AllowedTargets())


def _may_import(permitted: AllowedTargets, path: str) -> bool:
    """Return whether a path may be imported for inspection; private names are no public interface."""
    is_private = any(part.startswith("_") for part in path.split("."))
    packages = tuple(package for package, _ in permitted.base_classes)
    return not is_private and (path in permitted.names or is_below(path, (*permitted.modules, *packages)))


def _refused(path: str, key: str, permitted: AllowedTargets) -> ConfigError:
    return ConfigError(
        f"{key}: {path} is not allowed here: it could run code, load pickles, write files or download. Allowed: "
        f"{permitted}, modules of your own project (below {Path.cwd()}), and the entries of security.allowed_targets"
    )


def _is_trusted(path: str, allowed: list[str] | None) -> bool:
    """Return whether a path belongs to the user's own project or to what the user allows."""
    package = path.partition(".")[0]
    return is_below(path, allowed or ()) or (package != "hfexp" and _in_project(package))


def parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a class or function; `**kwargs` if it has no readable signature."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _check_signature(target: Any, node: Mapping[str, Any], key: str, runtime: frozenset[str]) -> None:
    accepted = parameters(target)
    passed = {name for name in node if not (name.startswith("_") and name.endswith("_"))}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    unknown = sorted(passed - accepted.keys()) if not open_ended else []
    if unknown:
        names = [n for n in accepted if n not in runtime]
        raise ConfigError(
            f"unknown key '{key}.{unknown[0]}'.{did_you_mean(unknown[0], names)} "
            f"{node['_target_']} takes: {one_of(names) or 'no arguments'}"
        )
    if node.get("_partial_") or "_args_" in node:
        return
    fixed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [n for n, p in accepted.items() if p.default is p.empty and p.kind in fixed]
    missing = [n for n in required if n not in passed and n not in runtime]
    if missing:
        raise ConfigError(f"{key}.{missing[0]} is required by {node['_target_']}: give {key}.{missing[0]}=...")


def is_below(path: str, names: Iterable[str]) -> bool:
    """Tell whether a dotted path is one of the names, or lies below one."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


@functools.cache
def _in_project(package: str) -> bool:
    """Return whether a top-level module lies below the current directory, but not in a virtual environment there."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    # A module without a location is built into Python (its origin reads "built-in" or "frozen").
    paths = [spec.origin] if spec.origin and spec.has_location else list(spec.submodule_search_locations or [])
    project = Path.cwd().resolve()
    return any(Path(p).resolve().is_relative_to(project) and "site-packages" not in Path(p).parts for p in paths)


def _import(path: str, key: str) -> Any:
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            target = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                continue
            raise ConfigError(f"{key}: importing {module_name} failed: {error}") from error
        except ImportError as error:
            raise ConfigError(f"{key}: importing {module_name} failed: {error}") from error
        for name in parts[length:]:
            if not hasattr(target, name):
                raise ConfigError(
                    f"{key}: {module_name} has no {name!r}.{did_you_mean(name, dir(sys.modules[module_name]))}"
                )
            target = getattr(target, name)
            if isinstance(target, types.ModuleType) and target.__name__.partition(".")[0] != parts[0]:
                raise ConfigError(f"{key}: {path} is refused: it leads from {parts[0]} to {target.__name__}")
        return target
    raise ConfigError(f"{key}: there is no module {parts[0]!r}; write the full dotted path of a class or function")


PLUGINS = ("hydra_plugins", "hydra._internal.core_plugins")
"""The only packages that Hydra takes launchers and sweepers from."""
LOGGING_KEYS = ("()", "class", "_target_", "factory", "queue", "listener")
"""Keys under which a logging config names what is to be built."""
LOGGING = (
    "logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter", "logging.Filter",
    "logging.handlers.RotatingFileHandler", "logging.handlers.TimedRotatingFileHandler",
    "logging.handlers.WatchedFileHandler", "colorlog.ColoredFormatter", "rich.logging.RichHandler",
)  # fmt: skip
"""Handlers, formatters and filters that write to nothing but a stream or a file."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
"""The only `ext://` references that a logging config may use."""
LOG_ENDING = ".log"
"""Ending that the name of a log file must have."""
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", "NCCL_DEBUG",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE",
)  # fmt: skip
"""Environment variables that a config may set. None of them chooses a program, a library, an address or whom to trust,
as PATH, LD_PRELOAD and HF_ENDPOINT do."""


def check_hydra(sections: Mapping[str, Any], allowed: list[str] | None = None) -> None:
    """Check what Hydra does by itself before hfexp begins: callbacks, launcher, sweeper, logging, variables.

    Args:
        sections: the `hydra` section of the composed config as plain values, resolved as far as possible.

    Raises:
        ConfigError: a setting is not allowed.
    """
    for name in ("callbacks", "launcher", "sweeper"):
        section = f"hydra.{name}"
        for key, node in _nodes(sections.get(name), section):
            target = str(node["_target_"])
            # Hydra itself accepts only a known plugin at these keys, but any function below them.
            if key != section or name == "callbacks" or not is_below(target, PLUGINS):
                locate(target, f"{key}._target_", allowed)
    for name in ("job_logging", "hydra_logging"):
        _check_logging(sections.get(name), f"hydra.{name}", allowed)
    for name in (sections.get("job") or {}).get("env_set") or {}:
        if name not in VARIABLES:
            raise ConfigError(
                f"hydra.job.env_set.{name}: a config may only set {one_of(VARIABLES, len(VARIABLES))}. Set "
                "other variables in your shell"
            )
    _check_directories(sections)


def _check_directories(sections: Mapping[str, Any]) -> None:
    """Raise ConfigError for a directory of Hydra's own: it would stay empty, and chdir would move relative paths."""
    settings = {
        "hydra.job.chdir": (sections.get("job") or {}).get("chdir"),
        "hydra.run.dir": (sections.get("run") or {}).get("dir", "."),
        "hydra.output_subdir": sections.get("output_subdir"),
    }
    for key, value in settings.items():
        if value not in (None, False, "."):
            shown = "true" if value is True else value
            raise ConfigError(
                f"{key}={shown} is not supported: hfexp stays in the current directory, so that relative paths keep "
                "their meaning; set where it writes with output_dir=DIR"
            )


def _nodes(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield all mappings with a `_target_`, with their keys."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, Mapping) and "_target_" in node:
        yield key, node
    for name, value in items:
        yield from _nodes(value, f"{key}.{name}")


def _check_logging(node: Any, key: str, allowed: list[str] | None) -> None:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        item_key, text = f"{key}.{name}", value if isinstance(value, str) else ""
        if name in LOGGING_KEYS and value is not None and text not in LOGGING and not _is_trusted(text, allowed):
            raise ConfigError(f"{item_key}: {value} is not allowed. Allowed: {one_of(LOGGING)}, and your own modules")
        if text.lower().startswith("ext://") and text not in STREAMS:
            raise ConfigError(f"{item_key}: {text} is not allowed. Allowed: {one_of(STREAMS)}")
        if name == "filename" and not text.endswith(LOG_ENDING):
            raise ConfigError(f"{item_key}: {value} is not allowed: the name of a log file must end in {LOG_ENDING}")
        _check_logging(value, item_key, allowed)
