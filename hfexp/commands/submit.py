"""The command `hfexp submit`, which sends one run to SLURM and returns at once."""

import argparse
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hfexp.core.errors import ConfigError

LAUNCHER = "hydra/launcher="
PLACE = "slurm"
"""Directory below `output_dir` for the logs of submitted runs."""


def main(argv: list[str], commands: Collection[str], program: Callable[[list[str]], int]) -> int:
    """Check the command of a run, submit it with the settings in `hydra.launcher`, and say how to follow it.

    Args:
        argv: the words of the command.
        commands: names of hfexp's commands, for error messages.
        program: the function that runs a command, which the job calls.

    Raises:
        ConfigError: the run is not configured correctly.
        RunError: SLURM does not accept it.
    """
    from hfexp.core import hydra_app

    parser = argparse.ArgumentParser(
        prog="hfexp submit",
        usage="hfexp submit [GROUP=OPTION ...] [KEY=VALUE ...] [hydra.launcher.KEY=VALUE ...]",
        description="Send one run to SLURM and return at once. It takes the words of a training command, and keys of "
        "hydra.launcher (partition, timeout_min, cpus_per_task, gpus_per_node, mem_gb, ...) for sbatch.",
        epilog="A sweep submits its jobs itself: hfexp -m ... hydra/launcher=slurm",
    )
    _, words = parser.parse_known_args(argv)
    if {"-m", "--multirun"} & set(words):
        raise ConfigError(f"hfexp submit sends one run; a sweep submits its jobs itself: hfexp -m ... {LAUNCHER}slurm")
    chosen = any(word.startswith(LAUNCHER) for word in words)
    composed: list[tuple[Any, Any]] = []
    hydra_app.run([*words, *([] if chosen else [f"{LAUNCHER}slurm"])], lambda cfg: _keep(cfg, composed), commands)
    for cfg, whole in composed:  # none with a flag such as --cfg
        _submit(cfg, whole, words, program)
    return 0


def _keep(cfg: Any, composed: list[tuple[Any, Any]]) -> None:
    from hydra.core.hydra_config import HydraConfig

    composed.append((cfg, HydraConfig.instance().cfg))


def _submit(cfg: Any, whole: Any, words: list[str], program: Callable[[list[str]], int]) -> None:
    from hfexp.core.compose import choices_of
    from hfexp.core.config import to_config
    from hfexp.core.console import say
    from hfexp.core.provenance import Origin, command_line, file_name
    from hfexp.experiment.choices import check_choices
    from hfexp.launch.job import ProcessEnv
    from hfexp.launch.slurm import FOLDER, own_folder
    from hfexp.launch.time_limit import seconds_of
    from hfexp.tracking.names import run_name

    config, choices = to_config(cfg), choices_of(whole)
    launcher = _launcher(whole)
    check_choices(config, choices)
    seconds_of(config.launch.time_limit)
    own = [word for word in words if not word.lstrip("+").startswith((LAUNCHER, "hydra.launcher."))]
    from hfexp.launch.slurm_jobs import Task

    place = Path(config.output_dir).absolute() / PLACE
    place.mkdir(parents=True, exist_ok=True)
    env = replace(ProcessEnv.capture(variables=False), argv=(sys.argv[0], *own))
    name = file_name(run_name(config, Origin(choices, own, command_line(own))))
    task = Task(partial(run_command, program, own), env, str(place / "%j.log"))
    job = launcher.submit(task, own_folder(place / FOLDER), name)
    log = os.path.relpath(place / f"{job.job_id}.log")
    say(f"submitted as SLURM job {job.job_id}: {name}")
    say(f"  hfexp status              how it is\n  tail -f {log}\n  scancel {job.job_id}")


def _launcher(whole: Any) -> Any:
    from hydra.utils import instantiate

    launcher = instantiate(whole.hydra.launcher)
    if not hasattr(launcher, "submit"):
        option = whole.hydra.runtime.choices["hydra/launcher"]
        raise ConfigError(f"{LAUNCHER}{option} runs no jobs of SLURM; hfexp submit needs {LAUNCHER}slurm")
    launcher.check()
    return launcher


def run_command(program: Callable[[list[str]], int], words: list[str]) -> None:
    """Run a training command in the job that SLURM has started for it, and exit with its exit code."""
    sys.exit(program(["train", *words]))
