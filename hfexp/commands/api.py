"""The Python API: compose a config, train, predict, evaluate and load runs."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp import composition, screen
from hfexp.choices import check_choices
from hfexp.config import Config, to_config
from hfexp.foreign_settings import drop_unused_mlflow_variables
from hfexp.idle_threads import let_idle_threads_sleep, let_idle_threads_sleep_in

let_idle_threads_sleep()
# In a notebook without ipywidgets, tqdm warns when a library imports it; hfexp prints its progress as lines.
warnings.filterwarnings("ignore", message="IProgress not found")

if TYPE_CHECKING:
    import pandas

    from hfexp.experiment import Result
    from hfexp.loaded_run import LoadedRun


def compose(*overrides: str, config_dir: str | Path | None = None) -> Config:
    """Compose a typed config from overrides, which are written as on the command line.

    Raises:
        ConfigError: the config has no such option or key, or does not accept a value.
    """
    cfg, _ = composition.compose(*overrides, config_dir=config_dir)
    return to_config(cfg)


def predict(*words: str, **settings: Any) -> "pandas.DataFrame":
    """Predict with a trained model; see `hfexp.predicting.command.predict`."""
    from hfexp.predicting import command

    return command.predict(*words, **settings)


def evaluate(*words: str, **settings: Any) -> "pandas.DataFrame":
    """Score a trained model; see `hfexp.predicting.evaluation.evaluate_table`."""
    from hfexp.predicting import evaluation

    return evaluation.evaluate_table(*words, **settings)


def load_run(run: str | Path | None = None, **settings: Any) -> "LoadedRun":
    """Load a recorded run: its metrics, figures and model; see `hfexp.loaded_run.load_run`."""
    from hfexp import loaded_run

    return loaded_run.load_run(run, **settings)


def train(*overrides: str, config_dir: str | Path | None = None) -> "Result":
    """Run one experiment and return its metrics, run id, model and processor.

    Raises:
        ConfigError: the experiment can't run as configured; nothing was created.
    """
    cfg, choices = composition.compose(*overrides, config_dir=config_dir)
    config = to_config(cfg)
    check_choices(config, choices)
    drop_unused_mlflow_variables(screen.note)
    let_idle_threads_sleep_in(config)
    from hfexp import experiment
    from hfexp.origin import Origin

    command = f"hfexp.train({', '.join(map(repr, overrides))})"
    return experiment.run(config, Origin(choices, list(overrides), command, sys.argv[0]))
