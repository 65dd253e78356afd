"""The command line: maps command names to functions; nothing heavy is imported before a run begins."""

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfexp.core.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_WRONG_INPUT,
    NOT_ON_WINDOWS,
    ConfigError,
    RunError,
    SweepError,
    exit_code,
)
from hfexp.core.machine import (
    begin_collection,
    leave_all,
    let_idle_threads_sleep,
    let_idle_threads_sleep_if_unloaded,
    put_off_collection,
)

MULTIRUN = {"-m", "--multirun"}
SOON = 0.01
"""Seconds after which Ctrl-C is repeated if nothing could be interrupted."""


def program() -> int:
    """Run `main` as the whole program of this process, and return its exit code."""
    if sys.platform == "win32":
        print(f"hfexp: error: {NOT_ON_WINDOWS}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    os.umask(os.umask(0o077) | 0o002)  # hfexp trusts its checkpoints, caches and records: others may not write them
    _open_streams()
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore  # like stderr: no odd name may crash a command
    try:
        Path.cwd()
    except FileNotFoundError:
        print("hfexp: error: the current directory has been removed; cd to another one", file=sys.stderr)
        return EXIT_WRONG_INPUT
    name_a_home()
    keep_interrupts()
    if split_command(sys.argv[1:])[0] in BEGIN_WITH_IMPORTS:
        put_off_collection()
    try:
        return main()
    finally:
        leave_all()


def _open_streams() -> None:
    """Open closed standard streams (`>&-`) on /dev/null: a file opened later would take their descriptors."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))


def keep_interrupts() -> None:
    """Let Ctrl-C end the program also if it arrives in a finalizer or in the callback of a weak reference.

    Python only reports an exception that is raised there (`sys.unraisablehook`), and SQLAlchemy has many of both.
    """
    report = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _repeat_interrupt()
        else:
            report(unraisable)

    sys.unraisablehook = hook


def _repeat_interrupt() -> None:
    """Send SIGINT soon, from another thread: sent at once, it would interrupt this function, and nothing else."""
    while True:
        try:
            threading.Timer(SOON, os.kill, [os.getpid(), signal.SIGINT]).start()
            return
        except KeyboardInterrupt:  # on a busy machine, `start` may still be waiting for the thread
            continue


def name_a_home() -> None:
    """Set `HOME` to `/`, as Docker does, if the system doesn't know this user: MLflow (3.17) fails without a home."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 success; 1 failed while running; 2 wrong input; 129 SIGHUP; 130 Ctrl-C; 141 output pipe closed; 143 SIGTERM,
    SIGUSR1 or `launch.time_limit`.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    full_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    command, args = split_command(args)
    let_idle_threads_sleep()
    try:
        return COMMANDS[command](args)
    except ConfigError as error:
        return _fail(error, EXIT_WRONG_INPUT, full_traceback)
    except KeyboardInterrupt:
        from hfexp.core.console import status

        status("")
        more = "; run the same command again to continue from the last checkpoint" if command == "train" else ""
        print(f"\nhfexp: interrupted{more}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SweepError as error:
        return _fail_sweep(error, full_traceback)
    except BrokenPipeError as error:
        from hfexp.core.process import has_no_reader

        if not has_no_reader(1):  # another pipe or socket, such as a database's
            return _fail(error, EXIT_FAILED, full_traceback)
        # The reader has closed the pipe (`| head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # swallows what is flushed at exit
        return exit_code(signal.SIGPIPE)
    except Exception as error:
        return _fail(error, EXIT_FAILED, full_traceback)


def split_command(args: list[str]) -> tuple[str, list[str]]:
    """Split the arguments into the command (default `train`) and its own arguments."""
    command, rest = (args[0], args[1:]) if args and args[0] in COMMANDS else ("train", args)
    if command == "train" and {"--help", "-h"} & set(rest):
        return "help", []
    if command == "train" and "--version" in rest:
        return "version", []
    return command, rest


def train(args: list[str]) -> int:
    """Compose the config with Hydra and run one experiment, or a sweep with `-m`."""
    from hfexp.core import console, hydra_app
    from hfexp.core.foreign_settings import drop_unused_mlflow_variables

    began = time.monotonic()
    console.status("reading the configuration")
    args = _with_models_of_runs(args)
    _refuse_sweep_among_processes(args)
    drop_unused_mlflow_variables(console.note)
    if MULTIRUN & set(args):
        begin_collection()  # jobs run in processes of their own; this one may live for days
    job = _Job(args, None if MULTIRUN & set(args) else began)
    hydra_app.run(args, job.run, COMMANDS)
    if job.error is not None:
        raise job.error
    return 0


def _with_models_of_runs(args: list[str]) -> list[str]:
    """Replace `model.path=run:NAME` by the directory of the run's model."""
    if not any("run:" in arg for arg in args):
        return args
    from hfexp.tracking.runs import resolve_models

    return resolve_models(args)


class _Job:
    """The task function that Hydra calls for each job, possibly in another process."""

    def __init__(self, args: list[str], began: float | None = None) -> None:
        self.args, self.program = args, sys.argv[0]  # a launcher may run the job in a process of another program
        self.began = began
        """Time of the monotonic clock when the command of a single run began; None: each job begins when it is run."""
        self.error: Exception | None = None
        """Error of a single run, kept for `main`: Hydra would print lines of its own."""

    def run(self, cfg: Any) -> float | tuple[float, ...] | None:
        """Run one job; in a sweep, raise its error for the launcher and the sweeper."""
        try:
            return self._run(cfg)
        except Exception as error:
            if _is_multirun():
                raise
            self.error = error
            return None

    def _run(self, cfg: Any) -> float | tuple[float, ...] | None:
        began = time.monotonic() if self.began is None else self.began
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        from hfexp.core.compose import as_typed, choices_of, config_flags
        from hfexp.core.config import to_config
        from hfexp.core.console import load
        from hfexp.core.provenance import Origin, command_line, without_sweep
        from hfexp.experiment.choices import check_choices
        from hfexp.launch import world

        hydra_cfg = HydraConfig.get()
        # Overrides may hold interpolations, which only the whole config can resolve.
        overrides: Any = OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)
        sources = tuple(f"{s.schema}://{s.path}" for s in hydra_cfg.runtime.config_sources if s.path)
        config = to_config(cfg)
        args = self.args
        if config.point is not None:  # the command that runs this point alone
            overrides = without_sweep(overrides)
            args = [*config_flags(self.args), *map(as_typed, overrides)]
        choices = choices_of(HydraConfig.instance().cfg)
        load("torch", "torchvision")  # which the task imports
        check_choices(config, choices)
        origin = Origin(choices, overrides, command_line(args, self.program), config_sources=sources)
        _refuse_search_of_one(overrides)
        if world.rank() == 0:
            from hfexp.experiment.result import show_choices

            show_choices(config, origin)

        let_idle_threads_sleep_if_unloaded(config.decodes_while_training)
        load("datasets", "transformers.trainer")
        from hfexp.experiment import run as experiment

        begin_collection()
        if config.point is not None:
            from hfexp.sweep import point

            return point.run(config, origin, began)
        return experiment.run(config, origin, began).objective


def _is_multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode == RunMode.MULTIRUN


def _refuse_search_of_one(overrides: list[str]) -> None:
    """Refuse search settings without `-m`: a single run has nothing to search."""
    search = next((text for text in overrides if text.lstrip("+").startswith(("search=", "search."))), None)
    if search is not None and not _is_multirun():
        raise ConfigError(f"{search} applies to sweeps only; start one with -m: hfexp -m {search} ...")


def _refuse_sweep_among_processes(args: list[str]) -> None:
    """Refuse `-m` under torchrun: every process would run the whole sweep, out of step."""
    from hfexp.launch import world

    world.check_environment()
    if world.is_together() and MULTIRUN & set(args):
        raise ConfigError(
            "-m can't be used under torchrun and `accelerate launch`, which start one run; use `hfexp -m ... "
            f"launch=ddp launch.num_processes={world.size()}`, which starts the processes of each run itself"
        )


def rerun(args: list[str]) -> int:
    """Repeat the command of a recorded run or sweep, with changes."""
    from hfexp.commands.rerun import command_of

    return train(command_of(args))


def plan(args: list[str]) -> int:
    """List the jobs of a command, check them, and estimate how much time they will take."""
    from hfexp.commands import plan as command

    return command.main(_with_models_of_runs(args), COMMANDS)


def submit(args: list[str]) -> int:
    """Send one run to SLURM."""
    from hfexp.commands import submit as command

    return command.main(_with_models_of_runs(args), COMMANDS, main)


def show_help(args: list[str]) -> int:
    """Explain the commands, a key or a task."""
    from hfexp.commands import help as helping

    return helping.main(args, COMMANDS)


def completion(args: list[str]) -> int:
    """Complete a command line in a shell."""
    from hfexp.commands import completion as completing

    return completing.main(args, COMMANDS)


def version(args: list[str]) -> int:
    """Print the version."""
    from hfexp.core import __version__

    print(f"hfexp {__version__}")
    return 0


def _command(module: str, function: str = "main") -> Callable[[list[str]], int]:
    """Return a command of a module that is imported when the command is called."""

    def call(args: list[str]) -> int:
        return getattr(importlib.import_module(f"hfexp.commands.{module}"), function)(args)

    return call


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "rerun": rerun,
    "plan": plan,
    "submit": submit,
    "status": _command("status"),
    "show": _command("show"),
    "init": _command("init"),
    "predict": _command("predict"),
    "evaluate": _command("evaluate"),
    "runs": _command("records", "runs"),
    "compare": _command("compare"),
    "report": _command("report"),
    "note": _command("records", "note"),
    "tag": _command("records", "tag"),
    "remove": _command("remove", "remove"),
    "clean": _command("remove", "clean"),
    "cache": _command("cache"),
    "sync": _command("sync"),
    "ui": _command("ui"),
    "list": _command("list"),
    "schema": _command("schema"),
    "help": show_help,
    "completion": completion,
    "version": version,
}
LONGEST_REPORT = 10
"""Seconds that the first of several processes may take to report wrong input."""
BEGIN_WITH_IMPORTS = ("train", "rerun", "predict", "evaluate", "report")
"""Commands that begin with heavy imports: garbage collection is off until they call `begin_collection`."""


def _fail_sweep(error: SweepError, full_traceback: bool) -> int:
    """Print the error of each failed job, and the number of failed jobs."""
    from hfexp.core.console import note

    for job, cause in error.failures:
        _fail(cause, EXIT_FAILED, full_traceback, f"{job}: ")
    note(str(error))
    return EXIT_FAILED


def _fail(error: Exception, code: int, full_traceback: bool, where: str = "") -> int:
    """Print the error as one message, or as a traceback with HYDRA_FULL_ERROR=1."""
    from hfexp.core.console import printable, status
    from hfexp.core.secrets import mask_secrets
    from hfexp.launch import world

    status("")
    if code == EXIT_WRONG_INPUT and 0 < world.rank() < world.size():
        # torchrun gives all processes the same wrong input. The first one reports it, unless another one ends before:
        # then torchrun ends the first one.
        time.sleep(LONGEST_REPORT)
        return code
    if full_traceback:
        import traceback

        print(mask_secrets("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        return code
    expected = isinstance(error, ConfigError | RunError)
    name = "" if expected else f"{type(error).__name__}: "
    print(printable(mask_secrets(f"hfexp: error: {where}{name}{error}")), file=sys.stderr)
    if not expected:
        print("(set HYDRA_FULL_ERROR=1 for the traceback)", file=sys.stderr)
    return code
