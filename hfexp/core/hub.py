"""Messages for failures of the Hugging Face Hub: each says what could not be fetched and what to do."""

import contextlib
from collections.abc import Iterator

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
    seen = list(_chain(error))
    kinds = {type(e).__name__ for e in seen}
    text = " ".join(str(e) for e in seen)
    # Transformers' message for a missing repository also mentions gated ones, so the type of the error decides.
    is_missing = "RepositoryNotFoundError" in kinds and "GatedRepoError" not in kinds
    if not is_missing and ("GatedRepoError" in kinds or "gated repo" in text or "is a gated dataset" in text):
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
        return f"{kind} {name} is gated: accept its terms at {page}, then `hf auth login`", True
    if "trust_remote_code=True" in text:
        return (
            f"{kind} {name} brings code of its own, which would run here with all your rights: if you trust it, set "
            "model.trust_remote_code=true"
        ), True
    if "RevisionNotFoundError" in kinds or text.startswith("Revision '"):
        return f"{kind} {name} has no such revision", True
    if kinds & OFFLINE or "couldn't connect to" in text.lower() or "couldn't reach" in text.lower():
        fetch = f"hf download {name}{' --repo-type dataset' if kind == 'dataset' else ''}"
        return (
            f"{kind} {name} is not in the local cache and huggingface.co could not be reached. Check the network, or "
            f"fetch it where there is one (`{fetch}`), copy the cache (HF_HOME) here and set HF_HUB_OFFLINE=1"
        ), False
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"} or "is not a local folder" in text:
        return f"there is no {kind} {name} on the Hub, or it is private: check the name, or `hf auth login`", True
    if "BuilderConfig" in text or "Unknown split" in text or "Bad split" in text:
        return f"{kind} {name}: {str(error).splitlines()[0]}", True
    return None, False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
