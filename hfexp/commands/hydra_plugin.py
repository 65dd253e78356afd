"""The plugins that hfexp offers to Hydra, which looks for them in the namespace `hydra_plugins` only.

This file is installed as `hydra_plugins/hfexp.py`, so that any Hydra application can use `hydra/launcher=local`. The
classes are subclasses because Hydra identifies a plugin by the module of its class.
"""

from hydra.core.config_store import ConfigStore

from hfexp.commands import plan_planner
from hfexp.launch import forkserver, local
from hfexp.sweep import sweeper

forkserver.modules = ("hfexp.commands.cli", "hfexp.experiment.run", "hfexp.launch.job", "hfexp.tasks.images")


class LocalLauncher(local.LocalLauncher):
    """The launcher behind `hydra/launcher=local`."""


class ExperimentSweeper(sweeper.ExperimentSweeper):
    """The sweeper behind `hydra/sweeper=hfexp`."""


class Planner(plan_planner.Planner):
    """The sweeper that `hfexp plan` puts in place of the experiment's own."""


store = ConfigStore.instance().store
store(group="hydra/launcher", name="local", node=local.LocalLauncherConf, provider="hfexp")
store(group="hydra/sweeper", name="hfexp", node=sweeper.ExperimentSweeperConf, provider="hfexp")
