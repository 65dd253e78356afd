"""Sweeps of functions instead of trainings: in this process, or as a program that can be killed.

python toys.py WORDS...     as `hfexp WORDS...`, each job being `work` below
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfexp.commands import cli
from hfexp.launch import forkserver

RATE, DECAY = "trainer.args.learning_rate", "trainer.args.weight_decay"


def job_class(task: Callable[[Any], Any]) -> Any:
    """In place of the class whose `run` Hydra calls for each job; carried to other processes by its value."""

    class Toy:
        error = None

        def __init__(self, words: list[str], began: float | None) -> None:
            pass

        def run(self, cfg: Any) -> Any:
            return task(cfg)

    return Toy


def sweep(task: Callable[[Any], Any], *words: str) -> int:
    """Exit code of a sweep whose jobs are calls of a function, one after the other in this process."""
    before, cli._Job = cli._Job, job_class(task)
    try:
        untracked = [] if any(word.startswith("tracking") for word in words) else ["tracking=none"]
        return cli.main(["-m", "hydra/launcher=basic", *untracked, *words])
    finally:
        cli._Job = before


def work(cfg: Any) -> float:
    """A short job that writes down when it began and when it ended."""
    rate = cfg.trainer.args.learning_rate
    with Path("began").open("a") as file:
        file.write(f"{rate}\n")
    time.sleep(float(os.environ.get("TOY_SECONDS", "0.1")))
    with Path("ended").open("a") as file:
        file.write(f"{rate}\n")
    return (rate - 0.3) ** 2


if __name__ == "__main__":
    forkserver.WARM = "hfexp.launch.job"  # the jobs need none of the slow imports
    cli._Job = job_class(work)
    sys.exit(cli.main(sys.argv[1:]))
