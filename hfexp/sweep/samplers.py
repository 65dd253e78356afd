"""Optuna's samplers by the names of `search.method`, made reproducible after a kill.

Optuna 5 stores what its samplers learn in the study (NSGA-II and CMA-ES in attributes of trials; TPE and GP read the
trials themselves), but the state of their random generators only lives in the process. Here each call gets a sampler
with a seed of its own, derived from the sweep's seed, the trial's number and the parameter's name. So the parameters
depend on the study alone: a sweep that was killed, even in the middle of a trial's parameters, chooses the same ones.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hfexp.core import targets
from hfexp.core.errors import ConfigError
from hfexp.core.search_config import Method

SAMPLERS = {
    Method.random: "optuna.samplers.RandomSampler",
    Method.tpe: "optuna.samplers.TPESampler",
    Method.gp: "optuna.samplers.GPSampler",
    Method.cmaes: "optuna.samplers.CmaEsSampler",
    Method.nsga2: "optuna.samplers.NSGAIISampler",
}


ANSWER = "hfexp:answer"
"""System attribute of a trial: parameters that were chosen together, stored before the first of them is set."""


class Reproducible(BaseSampler):
    """Builds its sampler anew for each call, with a seed of the call's own."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """Sample with samplers that `make` builds from a seed."""
        self._make, self._seed = make, seed

    def _sampler(self, trial: FrozenTrial, question: str) -> BaseSampler:
        text = f"{self._seed}/{trial.number}/{question}"
        return self._make(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(trial, "").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        storage = study._storage
        answered = storage.get_trial_system_attrs(trial._trial_id).get(ANSWER)
        if answered is not None:  # GP looks at running trials too: it would see the parameters that this one has
            return answered
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


class Given(BaseSampler):
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
    return Reproducible(make, seed)


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
