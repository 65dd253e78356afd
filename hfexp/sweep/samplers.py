"""Optuna's samplers and pruners, by the names that `search` has for them.

Optuna 5 keeps what its samplers learn in the study (NSGA-II and CMA-ES as attributes of trials, TPE and GP read the
trials themselves), but their random numbers run on in the process. Here each question has numbers of its own, drawn
from the sampler's seed, the number of the trial and the name of the parameter. So what is asked depends on the study
alone, and a sweep that was killed, in the middle of a question even, asks what it would have asked undisturbed.
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

from hfexp import targets
from hfexp.errors import ConfigError
from hfexp.sweep.settings import Method

SAMPLERS = {
    Method.random: "optuna.samplers.RandomSampler",
    Method.tpe: "optuna.samplers.TPESampler",
    Method.gp: "optuna.samplers.GPSampler",
    Method.cmaes: "optuna.samplers.CmaEsSampler",
    Method.nsga2: "optuna.samplers.NSGAIISampler",
}


ANSWER = "hfexp:answer"
"""Attribute of a trial: the parameters that were chosen together, before the first of them is set."""


class Reproducible(BaseSampler):
    """Makes a sampler anew for each question."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """`make`: a sampler with a seed."""
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
        if answered is not None:  # GP looks at running trials too, and so at what this one has been given
            return answered
        sampler = self._sampler(trial, "")
        sampler.infer_relative_search_space(study, trial)  # which some keep for the next call
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
    """Answers with the point of a grid that has the number of the trial."""

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
    """The sampler of a method.

    Args:
        args: `search.sampler`.

    Raises:
        ConfigError: it does not take these arguments.
    """

    def make(own_seed: int) -> BaseSampler:
        return _build(SAMPLERS[method], {"seed": own_seed, **args}, "search.sampler")

    if "seed" in args:
        raise ConfigError("search.sampler.seed is set by hfexp; use search.seed")
    make(0)
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
