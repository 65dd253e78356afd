"""The Python API: compose a config, train, predict, evaluate and load runs."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.core import compose as composition
from hfexp.core import console
from hfexp.core.config import Config, to_config
from hfexp.core.foreign_settings import drop_unused_mlflow_variables
from hfexp.core.machine import let_idle_threads_sleep, let_idle_threads_sleep_if_unloaded
from hfexp.experiment.choices import check_choices
from hfexp.tracking.runs import resolve_models

let_idle_threads_sleep()
# In a notebook without ipywidgets, tqdm warns when a library imports it; hfexp prints its progress as lines.
warnings.filterwarnings("ignore", message="IProgress not found")

if TYPE_CHECKING:
    import pandas

    from hfexp.commands.runs import LoadedRun
    from hfexp.experiment.result import Result


def compose(*overrides: str, config_dir: str | Path | None = None) -> Config:
    """Compose a typed config from overrides, which are written as on the command line.

    Raises:
        ConfigError: the config has no such option or key, or does not accept a value.
    """
    cfg, _ = composition.compose(*overrides, config_dir=config_dir)
    return to_config(cfg)


def predict(*args: str, **settings: Any) -> "pandas.DataFrame":
    """Predict with a trained model; see `hfexp.commands.predict.predict`."""
    from hfexp.commands import predict as command

    return command.predict(*args, **settings)


def evaluate(*args: str, **settings: Any) -> "pandas.DataFrame":
    """Score a trained model; see `hfexp.commands.evaluate.evaluate_table`."""
    from hfexp.commands import evaluate as evaluation

    return evaluation.evaluate_table(*args, **settings)


def load_run(run: str | Path | None = None, **settings: Any) -> "LoadedRun":
    """Load a recorded run: its metrics, figures and model; see `hfexp.commands.runs.load_run`."""
    from hfexp.commands import runs

    return runs.load_run(run, **settings)


def train(*overrides: str, config_dir: str | Path | None = None) -> "Result":
    """Run one experiment and return its metrics, run id, model and processor.

    Raises:
        ConfigError: the experiment can't run as configured; nothing was created.
    """
    overrides = tuple(resolve_models(overrides))
    cfg, choices = composition.compose(*overrides, config_dir=config_dir)
    config = to_config(cfg)
    check_choices(config, choices)
    drop_unused_mlflow_variables(console.note)
    let_idle_threads_sleep_if_unloaded(config.decodes_while_training)
    from hfexp.core.provenance import Origin
    from hfexp.experiment import run as experiment

    command = f"hfexp.train({', '.join(map(repr, overrides))})"
    return experiment.run(config, Origin(choices, list(overrides), command, sys.argv[0]))
