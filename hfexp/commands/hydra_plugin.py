"""The plugins that hfexp offers to Hydra, which looks for them in the namespace `hydra_plugins` only.

This file is installed as `hydra_plugins/hfexp.py`, so that any Hydra application can use `hydra/launcher=local`. The
classes are subclasses because Hydra identifies a plugin by the module of its class.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hfexp.launch import forkserver, local, ray_launcher, slurm
from hfexp.sweep import sweeper

forkserver.modules = (
    "hfexp.commands.cli",
    "hfexp.experiment.run",
    "hfexp.launch.job",
    "hfexp.tasks.images",
    "hfexp.experiment.rehearsal",
)


class LocalLauncher(local.LocalLauncher):
    """The launcher behind `hydra/launcher=local`."""


class SlurmLauncher(slurm.SlurmLauncher):
    """The launcher behind `hydra/launcher=slurm`."""


class RayLauncher(ray_launcher.RayLauncher):
    """The launcher behind `hydra/launcher=ray`."""


class ExperimentSweeper(sweeper.ExperimentSweeper):
    """The sweeper behind `hydra/sweeper=hfexp`."""


class Planner(sweeper.ExperimentSweeper):
    """The sweeper that `hfexp plan` puts in place of the experiment's own: it passes itself on and runs no jobs."""

    function: Any = None
    """The function that is called with this object and all overrides."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hfexp.commands.plan import measure

        self.function = task_function
        super().setup(hydra_context=hydra_context, task_function=measure, config=config)

    def sweep(self, arguments: list[str]) -> None:
        self.function(self, [*self._parse_config(), *arguments])


store = ConfigStore.instance().store
store(group="hydra/launcher", name="local", node=local.LocalLauncherConf, provider="hfexp")
store(group="hydra/launcher", name="slurm", node=slurm.SlurmLauncherConf, provider="hfexp")
store(group="hydra/launcher", name="ray", node=ray_launcher.RayLauncherConf, provider="hfexp")
store(group="hydra/sweeper", name="hfexp", node=sweeper.ExperimentSweeperConf, provider="hfexp")
