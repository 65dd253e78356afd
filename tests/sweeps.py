"""Sweeps made by hand, for what their jobs and their record do."""

from pathlib import Path
from typing import Any

import optuna

from hfexp.compose import compose
from hfexp.config import to_config
from hfexp.origin import Origin, without_sweep
from hfexp.sweep import point
from hfexp.sweep.membership import Membership, write_membership
from hfexp.sweep.pruners import close_storage, open_storage

OTHERS_LOSS = 0.01
"""Of the trials that are finished: no short training comes near it."""


def make_sweep(name: str, **settings: Any) -> Path:
    """A sweep's directory with its `sweep.json`; `settings`: fields of `Membership`."""
    directory = Path("outputs/sweeps").absolute() / name
    storage = f"sqlite:///{directory / 'study.db'}"
    known = {"study": name, "storage": storage, "parent_run_id": None, **settings}
    write_membership(directory, Membership(name=name, **known))
    return directory


def make_study(directory: Path, steps: tuple[int, ...], finished: int = 2, running: int = 1) -> None:
    """Some finished trials that were good at each step, and some that are running."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(f"sqlite:///{directory / 'study.db'}")
    study = optuna.create_study(storage=storage, study_name=directory.name, direction="minimize")
    for _ in range(finished):
        trial = study.ask()
        for step in steps:
            trial.report(OTHERS_LOSS, step)
        study.tell(trial, OTHERS_LOSS)
    for _ in range(running):
        study.ask()
    close_storage(storage)


def tell(directory: Path, number: int, value: float) -> None:
    """End a trial."""
    storage = open_storage(f"sqlite:///{directory / 'study.db'}")
    optuna.load_study(study_name=directory.name, storage=storage).tell(number, value)
    close_storage(storage)


def intermediate_values(directory: Path, number: int) -> dict[int, float]:
    """What a trial has reported."""
    storage = open_storage(f"sqlite:///{directory / 'study.db'}")
    found = optuna.load_study(study_name=directory.name, storage=storage).trials[number].intermediate_values
    close_storage(storage)
    return found


def run_point(*words: str) -> point.Values:
    """Run a job of a sweep, in this process."""
    cfg, choices = compose(*words)
    overrides = without_sweep(list(words))
    return point.run(to_config(cfg), Origin(choices, overrides, f"hfexp {' '.join(overrides)}"))
