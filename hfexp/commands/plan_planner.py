"""Hydra sweeper of `hfexp plan`: it passes itself and the overrides to a function instead of running jobs.

Hydra imports this module at every start of the command line, so nothing heavy is imported at the top.
"""

from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from hfexp.core.errors import ConfigError
from hfexp.sweep.sweeper import ExperimentSweeper

OWN = "hfexp"


class Planner(ExperimentSweeper):
    """The sweeper that `hfexp plan` sets as `hydra.sweeper._target_`."""

    function: Any = None
    """Called with this object and the overrides of the command line."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes in; give the launcher the function that measures a job.

        Raises:
            ConfigError: another sweeper than hfexp's is chosen.
        """
        chosen = config.hydra.runtime.choices["hydra/sweeper"]
        if chosen != OWN:
            raise ConfigError(f"hydra/sweeper={chosen} can't be planned; use hydra/sweeper={OWN}")
        self.function = task_function
        super().setup(hydra_context=hydra_context, task_function=_measure, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Call `function` with this object and all overrides."""
        self.function(self, [*self._parse_config(), *arguments])

    def measure(self, jobs: list[list[str]], directory: str) -> Any:
        """Measure jobs in the slots that the launcher would give them.

        Args:
            jobs: the overrides of each job.
            directory: used as `hydra.sweep.dir`, so that the launcher's files go there.
        """
        from hfexp.core.overrides import spelling

        assert self.config is not None
        assert self.launcher is not None
        with read_write(self.config), open_dict(self.config):
            self.config.hydra.sweep.dir = directory
        own = f"hydra.sweep.dir={spelling(directory)}"
        return self.launcher.launch([[*job, own] for job in jobs], initial_job_idx=0)


def _measure(cfg: Any) -> Any:
    from hfexp.commands.plan_measure import measure

    return measure(cfg)
