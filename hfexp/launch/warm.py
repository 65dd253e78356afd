"""Preloaded module of the fork server: it imports what jobs need before the server forks them.

Only the server imports this module. No import here may start a thread or initialise CUDA, which a fork can't take.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading

from hfexp.launch.forkserver import MODULES_VARIABLE, SIGNALS

OWN = os.environ.pop(MODULES_VARIABLE, "").split()
"""Modules of the jobs. One may define `prepare_for_forks()`, which fills further caches."""
MODULES = (
    "cloudpickle",
    "torch",
    "torchvision",
    "transformers",
    "transformers.trainer",
    "datasets",
    "mlflow",
    "evaluate",
    *OWN,
    # The modules above import these lazily, on first use, and nearly every run uses them.
    "hydra.core.plugins",
    "matplotlib.figure",
    "matplotlib.style.core",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "rich.console",
    "rich.progress",
    "rich.table",
    "sklearn.datasets",
    "sklearn.metrics",
    "transformers.modeling_layers",
)

problem: str | None = None
"""Why this process must not be forked; each job fails with this message."""


def _prepare_signals() -> None:
    """Ignore the signals to stop in the server: the launcher needs it until its jobs have ended.

    Forked jobs get their SIGTERM and SIGHUP handling back at once; under `nohup` SIGHUP stays ignored. The forkserver
    module itself restores SIGINT in the processes that it forks. The other signals of queues (SIGUSR1, SIGUSR2) also
    reach the launcher, which passes them on as SIGTERM; so a job ignores them until it runs an experiment.
    """
    server, hangup = os.getpid(), signal.getsignal(signal.SIGHUP)

    def reset() -> None:
        if os.getppid() == server:  # only in a job, not in the processes that a job forks
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, hangup)

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.register_at_fork(after_in_child=reset)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _find_problem() -> str | None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import initialised CUDA, which forked processes then can't use"
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and accelerate.PartialState._shared_state:
        return "an import chose a device through Accelerate, which forked processes then can't change"
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return f"an import started threads ({', '.join(threads)}), which do not survive a fork" if threads else None


def _fill_caches() -> None:
    """Fill the caches that libraries keep per process, so that jobs don't each compute them again."""
    for name in OWN:
        with contextlib.suppress(Exception):
            getattr(sys.modules[name], "prepare_for_forks", bool)()
    with contextlib.suppress(Exception):
        importlib.import_module("hfexp.core.machine").installed_packages()
    with contextlib.suppress(Exception):  # the map from modules to packages, which MLflow needs for each model
        importlib.import_module("mlflow.utils.requirements_utils")._init_modules_to_packages_map()
    with contextlib.suppress(Exception):  # a thousand regular expressions, needed to save and to load any model
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")
    gc.collect()
    gc.enable()
    gc.freeze()  # the jobs' garbage collector then never touches these pages, so they stay shared


_prepare_signals()
gc.disable()  # importing leaves no garbage, and collecting takes a sixth of the import time
_parent = os.getppid()
for module in MODULES:
    if os.getppid() != _parent:  # the launcher has died
        os._exit(0)
    # A job that needs the module fails with the same error and reports it; from here it would not reach the user.
    with contextlib.suppress(Exception):
        importlib.import_module(module)
_fill_caches()
problem = _find_problem()
# The forkserver module now ignores SIGINT in the server and restores this handler in the processes that it forks.
signal.signal(signal.SIGINT, signal.default_int_handler)
