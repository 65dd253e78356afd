"""In place of Hydra's sweeper: hands what it knows to a function, instead of running jobs.

Imported by Hydra with every start of the command line: nothing heavy here.
"""

from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from hfexp.errors import ConfigError
from hfexp.sweep.sweeper import ExperimentSweeper

OWN = "hfexp"


class Planner(ExperimentSweeper):
    """`hydra.sweeper._target_` of `hfexp plan`."""

    function: Any = None
    """Called with this object and the words of the command line."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives; the launcher gets the function that measures a job, and a place of its own."""
        chosen = config.hydra.runtime.choices["hydra/sweeper"]
        if chosen != OWN:
            raise ConfigError(f"hydra/sweeper={chosen} can't be planned: only hfexp's own can (hydra/sweeper={OWN})")
        self.function = task_function
        super().setup(hydra_context=hydra_context, task_function=_measure, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Call the function."""
        self.function(self, [*self._parse_config(), *arguments])

    def measure(self, jobs: list[list[str]], directory: str) -> Any:
        """Measure jobs, given as overrides, in the slots that the launcher would give them.

        Args:
            directory: for what a launcher leaves.
        """
        from hfexp.sweep.dimension import spelling

        assert self.config is not None
        assert self.launcher is not None
        with read_write(self.config), open_dict(self.config):
            self.config.hydra.sweep.dir = directory
        own = f"hydra.sweep.dir={spelling(directory)}"
        return self.launcher.launch([[*job, own] for job in jobs], initial_job_idx=0)


def _measure(cfg: Any) -> Any:
    from hfexp.planning.measure import measure

    return measure(cfg)
