"""Measurement of a shortened job, in the process in which the launcher would run the job."""

import contextlib
import io
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfexp.commands.plan_measurement import Measurement
from hfexp.core.config import Config, OnExisting, to_config
from hfexp.core.errors import ConfigError, RunError
from hfexp.core.provenance import Origin
from hfexp.core.sqlite_address import sqlite_address

BATCHES = 32
"""Batches that are evaluated of each split; the time of the whole split is extrapolated from them."""
SPLITS = {"validation": ("max_validation_samples", ("eval", "final_eval")), "test": ("max_test_samples", ("test",))}
"""For each evaluated split: the key that shortens it, and the metric prefixes of its evaluations."""


def measure(cfg: Any) -> Measurement:
    """Run a few steps, an evaluation and a checkpoint of the job in a temporary directory; Hydra's task function.

    The job's prepared data are cached as in a real run.

    Raises:
        ConfigError: the job's config is wrong.
        RunError: training ended before a step could be measured.
    """
    from hydra.core.hydra_config import HydraConfig

    choices = {k: v for k, v in HydraConfig.get().runtime.choices.items() if "/" not in k}
    origin = Origin(choices, [], "hfexp plan")
    with tempfile.TemporaryDirectory(prefix="hfexp-plan-") as place, _silence():
        return _measure(to_config(cfg), origin, Path(place))


def _measure(config: Config, origin: Origin, place: Path) -> Measurement:
    from hfexp.core.quiet import quiet_libraries
    from hfexp.experiment import run
    from hfexp.tracking.store import open_store

    quiet_libraries()
    config, shares = _shortened(config, place)
    if config.tracking.uri:
        open_store(config.tracking.uri, place, "plan")  # before the clock starts: later jobs find a store too
    began = time.time()
    run.run(config, origin)
    ended = time.time()
    try:
        found = json.loads((place / "times.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError("the training ended before a step could be measured") from error
    taken = found["evaluations"]
    full = {name: seconds / shares.get(name, 1.0) for name, seconds in taken.items()}
    final = sum(full[name] - taken[name] for name in taken if name != "eval")
    checkpoints = [path for path in (place / "runs").rglob("checkpoint-*") if path.is_dir()]
    return Measurement(
        step=found["step"],
        steps_per_epoch=found["steps_per_epoch"],
        evaluation=full.get("eval", 0.0),
        checkpoint=found["checkpoint"],
        start=found["begun"] - began,
        end=ended - found["ended"] + final,
        checkpoint_bytes=max(map(_bytes_below, checkpoints), default=0),
        other_bytes=_bytes_below(place) - sum(map(_bytes_below, checkpoints)),
        memory_bytes=_memory(found["memory"], int(config.launch.num_processes)),
        device_bytes=found["device_memory"],
    )


def _shortened(config: Config, place: Path) -> tuple[Config, dict[str, float]]:
    """Return the job with output and tracking moved to `place`, and the share of its split each evaluation sees."""
    from hfexp.data.streams import num_rows
    from hfexp.experiment.fit import build_splits
    from hfexp.experiment.preflight import prepare
    from hfexp.launch import world

    world.settle(config.launch, bool(config.trainer.args.get("use_cpu")))
    inputs = prepare(config)
    build_splits(config, inputs)  # fills the cache of prepared data, also for the jobs themselves
    most = BATCHES * int(config.trainer.args.get("per_device_eval_batch_size") or 8) * int(config.launch.num_processes)
    dataset, shares = config.dataset, {}
    for split, (key, names) in SPLITS.items():
        rows = num_rows(inputs.dataset[split]) if split in inputs.dataset else None
        if rows is not None and rows > most:
            dataset = replace(dataset, **{key: most})
            shares |= dict.fromkeys(names, most / rows)
    stopwatch = {"_target_": "hfexp.commands.plan_stopwatch.Stopwatch", "path": str(place / "times.json")}
    allowed = [*config.security.allowed_targets, "hfexp.planning"]
    tracks = config.tracking.backend == "mlflow"
    uri = sqlite_address(place / "mlflow.db") if tracks else None
    shortened = replace(
        config,
        dataset=dataset,
        trainer=replace(config.trainer, callbacks={**config.trainer.callbacks, "stopwatch": stopwatch}),
        tracking=replace(config.tracking, uri=uri, register=None),
        security=replace(config.security, allowed_targets=allowed),
        output_dir=str(place / "runs"),
        on_existing=OnExisting.rerun,
        point=None,
    )
    return shortened, shares


@contextlib.contextmanager
def _silence() -> Any:
    """Discard everything that a run prints inside the block."""
    from hfexp.core import console

    console.speak_through(lambda *arguments: None)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        console.speak_through(None)


def _bytes_below(directory: Path) -> int:
    """Return the size of all files below a directory; hard links to one file count once."""
    found = [path.lstat() for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum({stat.st_ino: stat.st_size for stat in found}.values())


def _memory(trained: int, processes: int) -> int:
    """Return the peak memory in bytes of this process and its training processes together."""
    from hfexp.commands.plan_stopwatch import peak_memory

    return peak_memory() + processes * trained if processes > 1 else max(peak_memory(), trained)


def find_problem(config: Config) -> str | None:
    """Return the error that a run would raise before it loads any weights; None if there is none."""
    from hfexp.core.quiet import quiet_libraries
    from hfexp.experiment.preflight import prepare

    quiet_libraries()
    with _silence():
        try:
            prepare(config)
        except ConfigError as error:
            return str(error)
        except Exception as error:  # raised by the user's code: reported for this job, the plan goes on
            return f"{type(error).__name__}: {error}"
    return None
