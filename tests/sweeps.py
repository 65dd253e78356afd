"""Sweeps made by hand, for what their jobs and their record do."""

from pathlib import Path
from typing import Any

import optuna

from hfexp.core.compose import compose
from hfexp.core.config import to_config
from hfexp.core.provenance import Origin, without_sweep
from hfexp.experiment.sweep_storage import close_storage, open_storage
from hfexp.sweep import point
from hfexp.sweep.trials import State, Sweep, Trial, TrialRun
from hfexp.tracking.membership import SweepInfo, write_sweep_info

OTHERS_LOSS = 0.01
"""Of the trials that are finished: no short training comes near it."""


def make_sweep(name: str, **settings: Any) -> Path:
    """A sweep's directory with its `sweep.json`; `settings`: fields of `SweepInfo`."""
    directory = Path("outputs/sweeps").absolute() / name
    storage = f"sqlite:///{directory / 'study.db'}"
    directions = ["minimize"] * max(1, len(settings.get("metrics", ())))
    known = {"study": name, "storage": storage, "parent_run_id": None, "directions": directions, **settings}
    write_sweep_info(directory, SweepInfo(name=name, **known))
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


def a_sweep(directory: Path, *trials: Trial, **changes: Any) -> Sweep:
    """As the sweeper sees it; `changes`: fields of `Sweep`."""
    settings: dict[str, Any] = {
        "name": directory.name,
        "directory": directory,
        "command": "hfexp -m 'trainer.args.learning_rate=0.001,0.1' model=vit_digits",
        "method": "grid",
        "metrics": ("loss",),
        "directions": ("minimize",),
        "fixed": ("model=vit_digits", "search=tpe"),
        "space": {"trainer.args.learning_rate": "0.001,0.1", "model": "vit_digits,resnet"},
        "seconds": 7200.0,
        **changes,
    }
    return Sweep(trials=trials, **settings)


def a_trial(number: int, value: float | None, state: State = State.finished, **changes: Any) -> Trial:
    """A trial of one run; `changes`: fields of `Trial`."""
    rate = 10.0 ** -(number % 4)
    params = {"trainer.args.learning_rate": rate, "model": "resnet" if number % 2 else "vit_digits"}
    values = None if value is None else (value,)
    settings: dict[str, Any] = {
        "params": params,
        "overrides": (f"++trainer.args.learning_rate={rate}",),
        "values": values,
        "runs": (TrialRun(0, state, values=values, seconds=2.0),),
        **changes,
    }
    return Trial(number, state=state, **settings)
