"""What Hydra finds of hfexp: it takes plugins from the namespace `hydra_plugins` alone.

Installed as `hydra_plugins/hfexp.py`, so that any Hydra application can say `hydra/launcher=local`. The classes are
subclasses because Hydra knows a plugin by the module of its class.
"""

from hydra.core.config_store import ConfigStore

from hfexp.launch import local
from hfexp.planning import planner
from hfexp.sweep import sweeper


class LocalLauncher(local.LocalLauncher):
    """`hydra/launcher=local`."""


class ExperimentSweeper(sweeper.ExperimentSweeper):
    """`hydra/sweeper=hfexp`."""


class Planner(planner.Planner):
    """`hfexp plan`."""


store = ConfigStore.instance().store
store(group="hydra/launcher", name="local", node=local.LocalLauncherConf, provider="hfexp")
store(group="hydra/sweeper", name="hfexp", node=sweeper.ExperimentSweeperConf, provider="hfexp")
