"""The only place where `_target_` nodes become objects: allow-list, signature check, instantiation."""

import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hfexp.errors import ConfigError, did_you_mean, one_of

ALLOWED = (
    "hfexp.docstrings", "hfexp.sources", "hfexp.tasks", "hfexp.metrics", "hfexp.images", "hfexp.language",
    "hfexp.text", "hfexp.training", "hfexp.profiling",
    "accelerate", "datasets", "evaluate", "optuna", "peft", "sklearn", "timm", "torch.nn", "torch.optim",
    "torch.utils.data", "torchvision", "transformers",
)  # fmt: skip
"""Where targets may live, beside the user's own project and `security.allowed_targets`."""

DENIED = (
    "accelerate.commands", "accelerate.launchers", "accelerate.utils", "accelerate.test_utils",
    "datasets.commands", "datasets.utils", "evaluate.commands", "evaluate.utils", "optuna.storages", "optuna.cli",
    "sklearn.utils", "sklearn.externals", "timm.models.load_checkpoint", "timm.models.helpers", "timm.models._helpers",
    "timm.utils", "torch.utils.data.datapipes", "torchvision.datasets.utils", "torchvision._internally_replaced_utils",
    "transformers.commands", "transformers.cli", "transformers.dynamic_module_utils", "transformers.testing_utils",
    "transformers.utils",
)  # fmt: skip
"""Inside the allowed packages: what runs code, starts processes or loads pickles."""


def instantiate(node: Mapping[str, Any], key: str, allowed: list[str] | None = None, **runtime: Any) -> Any:
    """Build what `node` describes, with containers as plain Python types.

    Args:
        node: mapping with `_target_` and arguments; nested `_target_` nodes are built first.
        key: dotted key of the node, for messages.
        allowed: packages that the user allows beside the known ones.
        runtime: objects that only exist at run time (`processor`, `id2label`, ...); they may not be config keys too.
    """
    from hydra.utils import instantiate as hydra_instantiate

    overlap = sorted(runtime.keys() & node.keys())
    if overlap:
        raise ConfigError(f"{key}.{overlap[0]} is set by hfexp at run time and can't be configured")
    check(node, key, allowed, frozenset(runtime))
    # Called by us: Hydra would turn run-time objects that are dataclasses into configuration nodes.
    policy = {}
    if "_execution_whitelist_" in parameters(hydra_instantiate):  # Hydra 1.4: exactly the targets just checked
        found = {path: locate(path, key, allowed) for path in targets_in(node)}
        homes = {f"{t.__module__}.{t.__qualname__}" for t in found.values() if hasattr(t, "__qualname__")}
        policy["_execution_whitelist_"] = sorted({*found, *homes})
    build = hydra_instantiate({**node, "_partial_": True}, _convert_="all", **policy)
    return functools.partial(build, **runtime) if node.get("_partial_") else build(**runtime)


def check(node: Any, key: str, allowed: list[str] | None = None, runtime: frozenset[str] = frozenset()) -> None:
    """Check every `_target_` in `node` against the allow-list and its signature; nothing is built.

    Raises:
        ConfigError: unknown or refused target, unknown or missing argument.
    """
    # Hydra would resolve it while building, and what comes out (`${oc.create:{_target_: ...}}`) nobody has checked.
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
    """All `_target_` strings of a node."""
    if isinstance(node, list):
        return {target for item in node for target in targets_in(item)}
    if not isinstance(node, Mapping):
        return set()
    own = {str(node["_target_"])} if "_target_" in node else set()
    return own | {target for value in node.values() for target in targets_in(value)}


def locate(path: str, key: str, allowed: list[str] | None = None) -> Any:
    """Import the object at a dotted path, if the allow-list admits it."""
    _require_allowed(path, key, path, allowed)
    target = _import(path, key)
    if not callable(target):
        raise ConfigError(f"{key}: {path} is a {type(target).__name__}; a class or function is needed")
    # An allowed package can expose a foreign object as an attribute (torch.os.system): what counts is where it lives.
    home = getattr(target, "__module__", None) or type(getattr(target, "__self__", None)).__module__
    _require_allowed(f"{home}.{getattr(target, '__name__', '')}", key, path, allowed)
    return target


def parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    """Parameters that a class or function takes; any (`**kwargs`) when it has no readable signature."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _check_signature(target: Any, node: Mapping[str, Any], key: str, runtime: frozenset[str]) -> None:
    accepted = parameters(target)
    given = {name for name in node if not (name.startswith("_") and name.endswith("_"))}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    unknown = sorted(given - accepted.keys()) if not open_ended else []
    if unknown:
        names = [n for n in accepted if n not in runtime]
        raise ConfigError(
            f"unknown key '{key}.{unknown[0]}'.{did_you_mean(unknown[0], names)} "
            f"{node['_target_']} takes: {one_of(names) or 'no arguments'}"
        )
    if node.get("_partial_") or "_args_" in node:
        return
    fixed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [n for n, p in accepted.items() if p.default is p.empty and p.kind in fixed]
    lacking = [n for n in needed if n not in given and n not in runtime]
    if lacking:
        raise ConfigError(f"{key}.{lacking[0]} is required by {node['_target_']}: give {key}.{lacking[0]}=...")


def _require_allowed(path: str, key: str, shown: str, allowed: list[str] | None) -> None:
    package = path.partition(".")[0]
    if _is_below(path, allowed or ()) or (package != "hfexp" and _in_project(package)):
        return
    private = path == shown and any(part.startswith("_") for part in path.split("."))
    if _is_below(path, ALLOWED) and (private or _is_below(path, DENIED)):
        raise ConfigError(f"{key}: {shown} is refused, because it can run code or load pickles")
    if not _is_below(path, ALLOWED):
        raise ConfigError(
            f"{key}: {shown} is not allowed. Allowed: {one_of(ALLOWED)}, modules of your own project "
            f"(below {Path.cwd()}), and what security.allowed_targets lists"
        )


def _is_below(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


@functools.cache
def _in_project(package: str) -> bool:
    """Whether a top-level module lies below the current directory (a virtual environment there does not count)."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    # A module without a location is built into Python (its origin reads "built-in" or "frozen").
    places = [spec.origin] if spec.origin and spec.has_location else list(spec.submodule_search_locations or [])
    here = Path.cwd().resolve()
    return any(Path(p).resolve().is_relative_to(here) and "site-packages" not in Path(p).parts for p in places)


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
                raise ConfigError(f"{key}: {path} is refused: it leads out of {parts[0]}, to {target.__name__}")
        return target
    raise ConfigError(f"{key}: there is no module {parts[0]!r}; write the full dotted path of a class or function")
