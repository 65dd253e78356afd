"""The measurement of a shortened job, and the time of a whole one that follows from it."""

import contextlib
import io
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from transformers import TrainerCallback

from hfexp.core import console
from hfexp.core.compose import choices_of
from hfexp.core.config import Config, OnExisting, to_config, to_dict
from hfexp.core.errors import ConfigError, RunError
from hfexp.core.files import sqlite_address
from hfexp.core.provenance import Origin
from hfexp.data.dataset import num_rows
from hfexp.experiment import run
from hfexp.experiment.fit import build_splits
from hfexp.experiment.preflight import load_inputs
from hfexp.launch import world
from hfexp.tracking.store import open_store

UNTIMED_STEPS = 3
"""First steps that are not timed: they allocate memory and select kernels."""
LEAST_STEPS = 8
MOST_STEPS = 100
SECONDS = 3.0
"""Seconds after which training ends, once it has made `LEAST_STEPS` steps."""
BATCHES = 32
"""Batches that are evaluated of each split; the time of the whole split is extrapolated from them."""
SPLITS = {"validation": ("max_validation_samples", ("eval", "final_eval")), "test": ("max_test_samples", ("test",))}
"""For each evaluated split: the key that shortens it, and the metric prefixes of its evaluations."""
TIMES = "times.json"


class Stopwatch(TrainerCallback):
    """Ends training after a few steps, an evaluation and a checkpoint if its strategies ask for them; times these."""

    def __init__(self, path: str) -> None:
        """Start without measurements; they are written to the JSON file `path`."""
        self.path = Path(path)
        self.facts: dict[str, Any] = {"evaluations": {}, "checkpoint": 0.0}
        self.steps: list[float] = []
        self._since = self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loader = kwargs.get("train_dataloader")
        batches = len(loader) if hasattr(loader, "__len__") else None  # pyright: ignore
        # The Trainer counts the last, incomplete accumulation of an epoch as a step too.
        per_epoch = math.ceil(batches / args.gradient_accumulation_steps) if batches else None
        self.facts["steps_per_epoch"] = per_epoch or state.max_steps / float(args.num_train_epochs)
        self.facts["begun"] = time.time()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.steps:
            self._since = self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(self._lap())
        # Several processes make a fixed number of steps, so that all end at the same one.
        is_slow = args.world_size > 1 or self._since - self._began >= SECONDS
        if len(self.steps) >= (LEAST_STEPS if is_slow else MOST_STEPS):
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy == "steps"
            control.should_save = args.save_strategy in ("steps", "best")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, value in (kwargs.get("metrics") or {}).items():
            if name.endswith("_runtime"):
                self.facts["evaluations"][name.removesuffix("_runtime")] = value
        self._lap()
        self._write(state)

    def on_predict(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_evaluate(args, state, control, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.facts["checkpoint"] = self._lap()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.facts["ended"] = time.time()
        self._write(state)

    def _lap(self) -> float:
        before, self._since = self._since, time.monotonic()
        return self._since - before

    def _write(self, state: Any) -> None:
        if state.is_world_process_zero and self.steps:
            step = statistics.median(self.steps[UNTIMED_STEPS:] or self.steps[-1:])
            self.path.write_text(json.dumps({**self.facts, "step": step}))


@dataclass(frozen=True)
class Measurement:
    """Times of a job in seconds, extrapolated to whole splits."""

    step: float
    steps_per_epoch: float
    evaluation: float
    """Time of one evaluation during training."""
    checkpoint: float
    besides: float
    """Time before training, with imports done and data prepared, and after it: final evaluations, saving, tracking."""

    def __str__(self) -> str:
        return f"{self.step:.3g} s per step"


def find_problem(config: Config) -> str | None:
    """Return the error that a run would raise before it loads any weights; None if there is none."""
    console.quiet_libraries()
    with _silence():
        try:
            load_inputs(config)
        except ConfigError as error:
            return str(error)
        except Exception as error:  # raised by the user's code: reported for this job, the plan goes on
            return f"{type(error).__name__}: {error}"
    return None


def measure(cfg: Any) -> Measurement:
    """Run a few steps, an evaluation and a checkpoint of the job in a temporary directory.

    The job's prepared data are cached as in a real run.

    Raises:
        ConfigError: the job's config is wrong.
        RunError: training ended before a step could be measured.
    """
    origin = Origin(choices_of(HydraConfig.instance().cfg), [], "hfexp plan")
    with tempfile.TemporaryDirectory(prefix="hfexp-plan-") as directory, _silence():
        console.quiet_libraries()
        place = Path(directory)
        config, shares = _shortened(to_config(cfg), place)
        if config.tracking.uri:
            open_store(config.tracking.uri, place, "plan")  # before the clock starts: later jobs find a store too
        began = time.time()
        run.run(config, origin)
        ended = time.time()
        try:
            facts = json.loads((place / TIMES).read_text())
        except (OSError, ValueError) as error:
            raise RunError("the training ended before a step could be measured") from error
    seen = facts.pop("evaluations")
    whole = {name: seconds / shares.get(name, 1.0) for name, seconds in seen.items()}
    unseen = sum(whole[name] - seen[name] for name in seen if name != "eval")
    besides = facts.pop("begun") - began + ended - facts.pop("ended") + unseen
    return Measurement(**facts, evaluation=whole.get("eval", 0.0), besides=besides)


def _shortened(config: Config, place: Path) -> tuple[Config, dict[str, float]]:
    """Return the job with output and tracking moved to `place`, and the share of its split each evaluation sees."""
    world.resolve(config.launch, bool(config.trainer.args.get("use_cpu")))
    inputs = load_inputs(config)
    build_splits(config, inputs)  # fills the cache of prepared data, also for the jobs themselves
    most = BATCHES * int(config.trainer.args.get("per_device_eval_batch_size") or 8) * int(config.launch.num_processes)
    dataset, shares = config.dataset, {}
    for split, (key, names) in SPLITS.items():
        rows = num_rows(inputs.dataset[split]) if split in inputs.dataset else None
        if rows is not None and rows > most:
            dataset = replace(dataset, **{key: most})
            shares |= dict.fromkeys(names, most / rows)
    stopwatch = {"_target_": f"{__name__}.Stopwatch", "path": str(place / TIMES)}
    uri = sqlite_address(place / "mlflow.db") if config.tracking.backend == "mlflow" else None
    shortened = replace(
        config,
        dataset=dataset,
        trainer=replace(config.trainer, callbacks={**config.trainer.callbacks, "stopwatch": stopwatch}),
        tracking=replace(config.tracking, uri=uri, register=None),
        security=replace(config.security, allowed_targets=[*config.security.allowed_targets, __name__]),
        output_dir=str(place / "runs"),
        on_existing=OnExisting.rerun,
        point=None,
    )
    return shortened, shares


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discard everything that a run prints inside the block."""
    console.redirect(lambda *arguments: None)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        console.redirect(None)


# The time of a whole job, from the measurement of one of its kind.


FREE_ARGS = (
    "eval_delay", "eval_steps", "greater_is_better", "logging_steps", "logging_strategy", "lr_scheduler_kwargs",
    "lr_scheduler_type", "max_steps", "metric_for_best_model", "num_train_epochs", "save_steps", "save_total_limit",
    "warmup_steps",
)  # fmt: skip
"""Keys of `trainer.args` that change neither the cost of a step, evaluation or checkpoint nor whether there is one."""
COSTLY = ("task", "dataset", "transform", "metrics", "launch")
"""Sections of the config that do change it, as `model` and `trainer` do."""
DEFAULT_EVERY = 500
"""Default of `save_steps` and `logging_steps` in `TrainingArguments`, and so of `eval_steps`."""


def cost_key(config: Config) -> str:
    """Return a key that is equal for jobs whose steps cost the same.

    In the model and in `trainer.args`, floats (rates, probabilities) are ignored.
    """
    plain = to_dict(config)
    trainer, sections = plain["trainer"], [plain[name] for name in COSTLY]
    args = {key: value for key, value in trainer["args"].items() if key not in FREE_ARGS}
    rest = json.dumps([plain["model"], args, trainer["_target_"], sorted(trainer["callbacks"])], default=str)
    whole = [sections, json.loads(rest, parse_float=lambda text: "fraction")]
    return json.dumps(whole, sort_keys=True, default=str)


def cost(config: Config, measured: Measurement, steps_done: int = 0) -> tuple[int, float]:
    """Return the optimizer steps of the whole training, and the seconds that one run takes.

    Args:
        measured: the measurement of a job of the same kind.
        steps_done: steps in the run's checkpoint, which are not repeated.
    """
    args = config.trainer.args
    steps = total_steps(args, measured.steps_per_epoch)
    evaluations = times(args, "eval", steps, measured.steps_per_epoch)
    saves = times(args, "save", steps, measured.steps_per_epoch)
    training = steps * measured.step + evaluations * measured.evaluation + saves * measured.checkpoint
    left = max(0.0, 1 - steps_done / steps) if steps else 0.0
    return steps, measured.besides + left * training


def total_steps(args: Mapping[str, Any], steps_per_epoch: float) -> int:
    """Return the number of optimizer steps of the whole training."""
    if int(args.get("max_steps") or -1) > 0:
        return int(args["max_steps"])
    return math.ceil(float(args.get("num_train_epochs", 3)) * steps_per_epoch)


def times(args: Mapping[str, Any], action: str, steps: int, steps_per_epoch: float) -> int:
    """Return how many times a training evaluates (`eval`) or writes a checkpoint (`save`), at most."""
    strategy = str(args.get(f"{action}_strategy") or ("no" if action == "eval" else "steps"))
    if strategy == "best":  # saves at evaluations only, and at most at each
        return times(args, "eval", steps, steps_per_epoch)
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return math.ceil(steps / steps_per_epoch) if steps_per_epoch else 0
    every = float(args.get(f"{action}_steps") or (action == "eval" and args.get("logging_steps")) or DEFAULT_EVERY)
    return math.ceil(steps / max(1, math.ceil(every * steps) if every < 1 else every))  # ceil: also at the last step
