"""The Optuna study of a sweep and its samplers; only the sweeper asks for trials and tells their ends."""

import contextlib
import hashlib
import json
import logging
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hfexp.core import targets
from hfexp.core.config import Method, OnExisting
from hfexp.core.errors import ConfigError, first_line
from hfexp.core.files import sqlite_address, sqlite_path
from hfexp.core.locks import SharedLock
from hfexp.core.secrets import mask_secrets
from hfexp.experiment.sweep_storage import close_storage, open_storage
from hfexp.sweep.request import HASHED, Definition
from hfexp.sweep.trials import State, TrialRun

WORDS, PARAMS, RUN = "hfexp.words", "hfexp.params", "hfexp.run."
DEFINITION = "hfexp.definition"
"""Attribute of the study: the sweep's definition."""
KEY, WRITER = "hfexp.key", "hfexp.writer"
"""Attributes of the study: key of the sweep's own MLflow run, and the sweeper that writes it now."""
ATTEMPTS, ERROR, OWNER = "hfexp.attempts", "hfexp.error", "hfexp.owner"
"""Attributes of a trial, as `WORDS`, `PARAMS` and `RUN` followed by the replicate."""


def open_study(url: str, name: str, directions: Sequence[str], sampler: Any, pruner: Any) -> Study:
    """Open the study of a sweep; create it if it does not exist.

    Raises:
        ConfigError: the storage can't be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    path = sqlite_path(url)
    if path is not None:
        _create_file(path, name, directions)
    with quiet():
        try:
            return optuna.create_study(
                storage=open_storage(url, patient=True), study_name=name, directions=_directions(directions),
                load_if_exists=True, sampler=sampler, pruner=pruner,
            )  # fmt: skip
        except ConfigError:
            raise
        except Exception as error:  # errors of SQLAlchemy and of the driver
            raise ConfigError(
                f"search.storage={mask_secrets(url)} can't be used: {mask_secrets(first_line(error))}"
            ) from error


def agree(study: Study, definition: Definition, on_existing: OnExisting) -> None:
    """Check that a study shared by several machines is of this sweep; store the definition if the study is new.

    The machines' local files may differ.

    Raises:
        ConfigError: the study is of another sweep (the message names what differs), or exists under
            `on_existing=error`, whichever host has begun it.
    """
    stored = study.user_attrs.get(DEFINITION)
    if stored is None:
        study.set_user_attr(DEFINITION, asdict(definition))
        return
    if on_existing is OnExisting.error:
        raise ConfigError(f"on_existing=error: search.storage already holds this sweep, {study.study_name}")
    differing = definition.differences(stored, ignored=HASHED)
    if differing:
        raise ConfigError(f"search.storage already holds another sweep named {study.study_name}:{differing}")


def _directions(names: Sequence[str]) -> list[optuna.study.StudyDirection]:
    return [optuna.study.StudyDirection[name.upper()] for name in names]


def close_study(study: Study) -> None:
    """Close the connections to the storage."""
    close_storage(study._storage)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's warnings about its experimental parts and about what the sweeper does on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", module="optuna")
        yield


def _create_file(path: Path, name: str, directions: Sequence[str]) -> None:
    """Create the SQLite file atomically: if Optuna is killed meanwhile, it later trusts the incomplete tables."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with SharedLock(path.with_name(f".{path.name}.lock")):  # only one of several first starts creates it
        if not path.exists():
            _write_file(path, name, directions)


def _write_file(path: Path, name: str, directions: Sequence[str]) -> None:
    unfinished = path.with_name(f".{path.name}.new")
    for leftover in (unfinished, unfinished.with_name(f"{unfinished.name}-journal")):  # from a start that was killed
        leftover.unlink(missing_ok=True)
    address = sqlite_address(unfinished)
    study = optuna.create_study(storage=address, study_name=name, directions=_directions(directions))
    close_study(study)
    with contextlib.closing(sqlite3.connect(unfinished)) as connection:
        # In WAL mode the sweeper can read while jobs report. The file keeps the setting.
        connection.execute("PRAGMA journal_mode=WAL")
    unfinished.rename(path)


def trials_of(study: Study) -> list[FrozenTrial]:
    """Return all trials, sorted by number."""
    return sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)


def set_attribute(study: Study, trial_id: int, name: str, value: Any) -> None:
    """Set an attribute of a trial; if another sweeper has finished the trial meanwhile, its attributes stay."""
    with contextlib.suppress(UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(trial_id, name, value)


def ask(study: Study, owner: str | None) -> optuna.Trial:
    """Create a trial whose parameters are still to be chosen; its owner is stored in the same step."""
    if owner is None:
        return study.ask()
    template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={OWNER: owner})
    return reopen(study, study._storage.create_new_trial(study._study_id, template_trial=template))


def take_over(study: Study, trial: FrozenTrial, owner: str) -> bool:
    """Take over a trial whose sweeper is gone; False if another sweeper was faster or the trial has no owner."""
    before = trial.user_attrs.get(OWNER)
    backend: Any = getattr(study._storage, "_backend", study._storage)
    return before == owner or (before is not None and backend.claim(trial._trial_id, OWNER, before, owner))


def claim(study: Study, name: str, before: str | None, now: str) -> bool:
    """Set an attribute of the study if it is still `before` (None: not set); False if another sweeper was faster."""
    backend: Any = getattr(study._storage, "_backend", study._storage)
    return backend.claim_of_study(study._study_id, name, before, now)


def agreed(study: Study, name: str, proposal: str) -> str:
    """Return an attribute of the study on which all sweepers agree: what the first of them has proposed."""
    if study.user_attrs.get(name) is None:
        claim(study, name, None, proposal)
    return study.user_attrs[name]


def owner_of(study: Study, trial_id: int) -> str | None:
    """Return the current owner of a trial; None if it has none."""
    return study._storage.get_trial(trial_id).user_attrs.get(OWNER)


def reopen(study: Study, trial_id: int) -> optuna.Trial:
    """Reopen a trial: its parameters stay, further ones can be suggested, and values can be reported."""
    study._thread_local.cached_all_trials = None  # `Study.ask` drops this cache for each new trial, too
    return optuna.Trial(study, trial_id)


def tell(study: Study, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
    """Tell Optuna how a trial ended, unless another sweeper on the same storage has told it already."""
    with quiet(), contextlib.suppress(UpdateFinishedTrialError):
        study.tell(number, values, state=state, skip_if_finished=True)


def write_run(study: Study, trial_id: int, run: TrialRun) -> None:
    """Store the state and results of one run of a trial."""
    content = asdict(run) | {"state": run.state.value, "run_dir": str(run.run_dir) if run.run_dir else None}
    set_attribute(study, trial_id, f"{RUN}{run.replicate}", json.dumps(content))


def runs_of(attributes: Mapping[str, Any]) -> dict[int, TrialRun]:
    """Parse the runs of a trial from its attributes, by replicate."""
    runs = {}
    for name, text in attributes.items():
        if name.startswith(RUN):
            content = json.loads(text)
            values = content["values"]
            content["state"] = State(content["state"])
            content["run_dir"] = Path(content["run_dir"]) if content["run_dir"] else None
            content["values"] = tuple(values) if values is not None else None
            run = TrialRun(**content)
            runs[run.replicate] = run
    return dict(sorted(runs.items()))


# Optuna's samplers by the names of `search.method`, made reproducible after a kill.
#
# Optuna 5 stores what its samplers learn in the study (NSGA-II and CMA-ES in attributes of trials; TPE and GP read
# the trials themselves), but the state of their random generators only lives in the process. Here each call gets a
# sampler with a seed of its own, derived from the sweep's seed, the trial's number and the parameter's name. So the
# parameters depend on the study alone: a sweep that was killed, even in the middle of a trial's parameters, chooses
# the same ones.


SAMPLERS = {
    Method.random: "optuna.samplers.RandomSampler",
    Method.tpe: "optuna.samplers.TPESampler",
    Method.gp: "optuna.samplers.GPSampler",
    Method.cmaes: "optuna.samplers.CmaEsSampler",
    Method.nsga2: "optuna.samplers.NSGAIISampler",
}


ANSWER = "hfexp:answer"
"""System attribute of a trial: parameters that were chosen together, stored before the first of them is set."""


class ReproducibleSampler(BaseSampler):
    """Builds its sampler anew for each call, with a seed of the call's own."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """Sample with samplers that `make` builds from a seed."""
        self._make, self._seed = make, seed

    def _sampler(self, trial: FrozenTrial, param_name: str) -> BaseSampler:
        text = f"{self._seed}/{trial.number}/{param_name}"
        return self._make(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(trial, "").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        storage = study._storage
        chosen = storage.get_trial_system_attrs(trial._trial_id).get(ANSWER)
        if chosen is not None:  # GP looks at running trials too: it would see the parameters that this one has
            return chosen
        sampler = self._sampler(trial, "")
        sampler.infer_relative_search_space(study, trial)  # some samplers keep its result for the next call
        params = sampler.sample_relative(study, trial, search_space)
        if params:
            params = {name: value.item() if hasattr(value, "item") else value for name, value in params.items()}
            storage.set_trial_system_attr(trial._trial_id, ANSWER, params)
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._sampler(trial, param_name)
        sampler.infer_relative_search_space(study, trial)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler(trial, "").after_trial(study, trial, state, values)


class GridSampler(BaseSampler):
    """Chooses the grid's point with the number of the trial."""

    def __init__(self, params: Callable[[int], Mapping[str, Any]]) -> None:
        self._params = params

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._params(trial.number)[param_name]


def sampler_for(method: Method, seed: int, args: Mapping[str, Any]) -> BaseSampler:
    """Build the sampler of a method.

    Args:
        args: `search.sampler`.

    Raises:
        ConfigError: the sampler does not accept these arguments.
    """

    def make(own_seed: int) -> BaseSampler:
        return _build(SAMPLERS[method], {"seed": own_seed, **args}, "search.sampler")

    if "seed" in args:
        raise ConfigError("search.sampler.seed is set by hfexp; use search.seed")
    make(0)  # wrong arguments raise here, not with the first trial
    return ReproducibleSampler(make, seed)


def _build(target: str, args: Mapping[str, Any], key: str) -> Any:
    targets.check({"_target_": target, **args}, key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return targets.locate(target, key)(**args)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{key}: {error}") from error
        except ImportError as error:
            raise ConfigError(f"{key}: {error}") from error
