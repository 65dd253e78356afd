"""The Hugging Face Hub: where pretrained weights lie, and messages for what could not be fetched."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from hfexp.core.errors import ConfigError, RunError

OFFLINE = frozenset(
    {
        "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError",
        "LocalEntryNotFoundError", "MaxRetryError", "NameResolutionError", "ConnectTimeoutError",
    }
)  # fmt: skip
"""Names of the exceptions of the HTTP libraries and huggingface_hub that mean that the Hub did not answer."""


class HubUnreachable(RunError):
    """Raised when a dataset, model or processor is neither in the local cache nor reachable."""


@contextlib.contextmanager
def explain_hub_errors(kind: str, name: str) -> Iterator[None]:
    """Turn the Hub's errors in the block into messages for the user.

    Args:
        kind: `dataset`, `model` or `processor`.
        name: its id on the Hub, or a local directory.

    Raises:
        ConfigError: it does not exist as named, access is not granted, or it needs code of its own.
        HubUnreachable: there is no network, or the Hub does not answer.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        message, wrong_input = _explain(error, kind, name)
        if message is None:
            raise
        raise (ConfigError(message) if wrong_input else HubUnreachable(message)) from error


def _explain(error: Exception, kind: str, name: str) -> tuple[str | None, bool]:
    """Return the message and whether the user's input is at fault; (None, False) for an error of another kind."""
    errors = list(_chain(error))
    error_types = {type(e).__name__ for e in errors}
    text = " ".join(str(e) for e in errors)
    # Transformers' message for a missing repository also mentions gated ones, so the type of the error decides.
    is_missing = "RepositoryNotFoundError" in error_types and "GatedRepoError" not in error_types
    if not is_missing and ("GatedRepoError" in error_types or "gated repo" in text or "is a gated dataset" in text):
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
        return f"{kind} {name} is gated: accept its terms at {page}, then run `hf auth login`", True
    if "trust_remote_code=True" in text:
        return (
            f"{kind} {name} contains code of its own, which would run with all your rights; if you trust it, set "
            "model.trust_remote_code=true"
        ), True
    if "RevisionNotFoundError" in error_types or text.startswith("Revision '"):
        return f"{kind} {name} has no such revision", True
    if error_types & OFFLINE or "couldn't connect to" in text.lower() or "couldn't reach" in text.lower():
        fetch = f"hf download {name}{' --repo-type dataset' if kind == 'dataset' else ''}"
        return (
            f"{kind} {name} is not in the local cache and huggingface.co could not be reached. Check the network, or "
            f"run `{fetch}` where there is one, copy the cache (HF_HOME) here and set HF_HUB_OFFLINE=1"
        ), False
    if error_types & {"RepositoryNotFoundError", "DatasetNotFoundError"} or "is not a local folder" in text:
        return f"there is no {kind} {name} on the Hub, or it is private: check the name, or run `hf auth login`", True
    if "HFValidationError" in error_types or "Repo id must" in text or "find any data file at" in text:
        return f"{kind} {name!r} is neither a local directory nor an id on the Hub, such as OWNER/NAME", True
    if "BuilderConfig" in text or "Unknown split" in text or "Bad split" in text:
        return f"{kind} {name}: {str(error).splitlines()[0]}", True
    return None, False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# Locations of pretrained weights: a Hub id, a directory, or a directory inside an installed package.


RUN = "run:"
"""Prefix of a run's name, whose model `hfexp.tracking.runs.resolve_models` finds."""
PACKAGE = "pkg://"
"""Prefix of a directory in a package, as in Hydra's search path: `pkg://package/directory`."""


def local_model(path: str) -> str:
    """Return the argument for `from_pretrained`: the directory of `pkg://...`, anything else unchanged.

    Raises:
        ConfigError: the package is not installed.
    """
    if not path.startswith(PACKAGE):
        return path
    name, _, directory = path.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"model.path={path}: the package {name} is not installed; run pip install {name.replace('_', '-')}"
        )
    return str(Path(spec.submodule_search_locations[0], directory))


def check_path(path: str) -> None:
    """Check that a path that looks local is the directory of a model.

    Raises:
        ConfigError: it is not.
    """
    if path.startswith(RUN):
        raise ConfigError(
            f"model.path={path}: a run can only be named in a command that trains; in others use run=NAME"
        )
    directory = Path(local_model(path)).expanduser()
    if not (os.path.exists(directory) or path.startswith((".", "/", "~", PACKAGE))):
        return  # an id on the Hub
    if not os.path.isdir(directory):
        raise ConfigError(f"model.path={path}: there is no such directory")
    if not (directory / "config.json").is_file():
        raise ConfigError(f"model.path={path} has no config.json: it was not written by save_pretrained")


def is_local(path: str) -> bool:
    """Tell whether the path is local, so that nothing has to be fetched from the Hub."""
    return path.startswith(PACKAGE) or os.path.exists(Path(path).expanduser())
