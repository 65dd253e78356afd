"""What the fork server imports before it forks: nothing of it may start a thread or initialise CUDA.

Only the server imports this module.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading

MODULES = (
    "cloudpickle",
    "torch",
    "torchvision",
    "transformers",
    "transformers.trainer",
    "datasets",
    "mlflow",
    "evaluate",
    "hfexp.cli",
    "hfexp.experiment",
    "hfexp.launch.jobs",
    # What these import only when it is first used, and nearly every run uses.
    "hydra.core.plugins",
    "matplotlib.figure",
    "matplotlib.style.core",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "rich.console",
    "rich.progress",
    "rich.table",
    "sklearn.datasets",
    "transformers.modeling_layers",
    "hfexp.images",
)

problem: str | None = None
"""Why nothing may be forked from this process; jobs say it."""


def _prepare_signals() -> None:
    """Leave Ctrl-C, SIGTERM and SIGHUP to the launcher: it needs the server until its jobs have ended.

    What is forked gets the meaning of SIGTERM and SIGHUP back at once; under `nohup` the latter stays ignored. The
    server itself resets SIGINT for what it forks.
    """
    server, hangup = os.getpid(), signal.getsignal(signal.SIGHUP)

    def reset() -> None:
        if os.getppid() == server:  # not in what a job forks
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, hangup)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    os.register_at_fork(after_in_child=reset)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _find_problem() -> str | None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA was initialised by an import, after which no process that is forked can use it"
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return f"an import started threads ({', '.join(threads)}), which forking does not take along" if threads else None


def _do_what_is_done_once() -> None:
    """What libraries keep for the life of a process, and would find out anew in each job."""
    with contextlib.suppress(Exception):
        # Hydra looks for its plugins, and its parsers learn the grammar.
        importlib.import_module("hfexp.composition").compose("seed=1", "trainer.args.learning_rate=1e-3")
    with contextlib.suppress(Exception):
        importlib.import_module("hfexp.environment")._packages()
    with contextlib.suppress(Exception):  # which package a module is of: MLflow asks for it with each model
        importlib.import_module("mlflow.utils.requirements_utils")._init_modules_to_packages_map()
    gc.collect()
    gc.enable()
    gc.freeze()  # what is shared with jobs stays shared: their garbage collection leaves it alone


_prepare_signals()
gc.disable()  # importing leaves no garbage, and to look for it takes a sixth of the time
_parent = os.getppid()
for module in MODULES:
    if os.getppid() != _parent:  # nobody waits for it any more
        os._exit(0)
    # The job that needs it meets the same error, and its message reaches the user; here it would not.
    with contextlib.suppress(Exception):
        importlib.import_module(module)
_do_what_is_done_once()
problem = _find_problem()
# From here on multiprocessing ignores it; in what it forks it restores what was before.
signal.signal(signal.SIGINT, signal.default_int_handler)
