"""Cost estimates: from the measurements of a few jobs to the time, memory and disk of all of them."""

import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hfexp.commands.plan_measurement import Measurement
from hfexp.core.config import Config, to_dict

FREE_ARGS = frozenset(
    {
        "eval_delay", "eval_steps", "greater_is_better", "logging_steps", "logging_strategy", "lr_scheduler_kwargs",
        "lr_scheduler_type", "max_steps", "metric_for_best_model", "num_train_epochs", "save_steps",
        "save_total_limit", "warmup_steps",
    }
)  # fmt: skip
"""Keys of `trainer.args` that change neither the cost of a step, evaluation or checkpoint nor whether there is one."""
COSTLY = ("task", "model", "dataset", "transform", "metrics", "launch")
"""Sections of the config that do change it."""
DEFAULT_EVERY = 500
"""Default of `save_steps` and `logging_steps` in `TrainingArguments`, and so of `eval_steps`."""


@dataclass(frozen=True)
class JobCost:
    """The estimated cost of one run."""

    steps: int
    """Optimizer steps of the whole training, those already done included."""
    seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class Total:
    """The estimated cost of all runs that are left."""

    runs: int
    seconds: float
    """Wall-clock time until the last run ends."""
    computing_seconds: float
    """Sum over all runs."""
    memory_bytes: int
    """Peak of all concurrent runs together."""
    device_bytes: int
    disk_bytes: int


def shape_of(config: Config) -> str:
    """Return a key that is equal for jobs whose steps cost the same.

    In the model and in `trainer.args`, floats (rates, probabilities) are ignored.
    """
    plain = to_dict(config)
    args = {key: value for key, value in plain["trainer"]["args"].items() if key not in FREE_ARGS}
    kept = {name: plain[name] for name in COSTLY}
    kept["model"] = _without_fractions(kept["model"])
    kept["trainer"] = [plain["trainer"]["_target_"], _without_fractions(args), sorted(plain["trainer"]["callbacks"])]
    return json.dumps(kept, sort_keys=True, default=str)


def cost_of(config: Config, measured: Measurement, steps_done: int = 0) -> JobCost:
    """Estimate the cost of one run from the measurement of a job with the same shape.

    Args:
        steps_done: steps in the run's checkpoint, which are not repeated.
    """
    args = config.trainer.args
    steps = total_steps(args, measured.steps_per_epoch)
    done = min(steps_done, steps)
    share = (steps - done) / steps if steps else 0.0
    evaluations = times(args, "eval", steps, measured.steps_per_epoch)
    saves = times(args, "save", steps, measured.steps_per_epoch)
    seconds = (
        measured.start + (steps - done) * measured.step
        + share * (evaluations * measured.evaluation + saves * measured.checkpoint) + measured.end
    )  # fmt: skip
    kept = min(saves, _most_kept(args) or saves)
    return JobCost(steps, seconds, kept * measured.checkpoint_bytes + measured.other_bytes)


def total_steps(args: Mapping[str, Any], steps_per_epoch: float) -> int:
    """Return the number of optimizer steps of the whole training."""
    if int(args.get("max_steps") or -1) > 0:
        return int(args["max_steps"])
    return math.ceil(float(args.get("num_train_epochs", 3)) * steps_per_epoch)


def times(args: Mapping[str, Any], what: str, steps: int, steps_per_epoch: float) -> int:
    """Return how many times a training evaluates (`eval`) or writes a checkpoint (`save`), at most."""
    strategy = str(args.get(f"{what}_strategy") or ("no" if what == "eval" else "steps"))
    if strategy == "best":  # saves at evaluations only, and at most at each
        return times(args, "eval", steps, steps_per_epoch)
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return math.ceil(steps / steps_per_epoch) if steps_per_epoch else 0
    every = float(args.get(f"{what}_steps") or (what == "eval" and args.get("logging_steps")) or DEFAULT_EVERY)
    return math.ceil(steps / max(1, math.ceil(every * steps) if every < 1 else every))  # ceil: also at the last step


def add_up(costs: Sequence[JobCost], measured: Sequence[Measurement], slots: int, jobs_per_device: int = 1) -> Total:
    """Simulate all runs in order, each in the slot that becomes free first, and return the totals."""
    free = [0.0] * slots
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost.seconds)
    at_once = min(slots, len(costs))
    return Total(
        runs=len(costs),
        seconds=max(free),
        computing_seconds=sum(cost.seconds for cost in costs),
        memory_bytes=at_once * max((one.memory_bytes for one in measured), default=0),
        device_bytes=jobs_per_device * max((one.device_bytes for one in measured), default=0),
        disk_bytes=sum(cost.disk_bytes for cost in costs),
    )


def worst(measurements: Sequence[Measurement]) -> Measurement:
    """Return the field-wise maximum of several measurements of one shape."""
    facts = [asdict(one) for one in measurements]
    return Measurement(**{name: max(one[name] for one in facts) for name in facts[0]})


def _most_kept(args: Mapping[str, Any]) -> int | None:
    """Return the maximum number of checkpoints on disk, None if unlimited; the best stays beside the last."""
    limit = args.get("save_total_limit")
    if not limit:
        return None
    return max(2, limit) if args.get("load_best_model_at_end") else limit


def _without_fractions(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_fractions(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_fractions(item) for item in node]
    return "fraction" if isinstance(node, float) else node
