"""Recorded runs in the order of a metric, with the params and metrics that tell them apart."""

import bisect
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hfexp.core.console import one_line
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.training_args import lower_is_better
from hfexp.sweep.trials import Estimate, estimate
from hfexp.tracking.runs import RunRecord

MAX_CELL = 36
"""Characters of a text in a table."""
BOOKKEEPING = re.compile(r"tracking\.|(output_dir|name|on_existing)$")
"""Matches params that say where a run is recorded rather than what it does."""
SEED = re.compile(r"(.*\.)?(data_)?seed$")
"""Matches params in which replicates of one configuration differ."""
DERIVED = re.compile(r"(dataset|model)\.num_")
"""Matches params that follow from other ones."""
MINOR = re.compile(r"_(runtime|per_second|samples|steps|time)$|^(epoch$|system/)")
FINAL = ("test_", "final_eval_")
"""Beginnings of the metrics of the saved model."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass
class Ranking:
    """Runs ordered by a metric, best first, and the columns worth showing."""

    runs: list[RunRecord]
    ranks: list[int]
    """The rank of each run; runs with equal values share one, and so do runs without a value."""
    metric: str | None
    direction: str
    params: list[str]
    """Keys of the params whose values differ between the runs."""
    metrics: list[str]
    """Names of metrics; the ranking metric comes first."""
    of_sweep: bool = False
    """The runs are ordered as their sweep ranks its points, by what its search optimises."""
    groups: dict[str, "Group"] = field(default_factory=dict)
    """For runs that stand for several ones with other seeds: the runs, by the id of the one that stands for them."""


@dataclass(frozen=True)
class Group:
    """Finished runs that differ only in their seeds, or a single run."""

    runs: list[RunRecord]
    estimates: dict[str, Estimate]
    """Mean and 95 % interval of each metric that all of the runs have."""
    repeats: int = 0
    """Number of earlier runs with the same seeds, which are left out."""


def average(runs: list[RunRecord]) -> dict[str, Group]:
    """Group finished runs that differ only in their seeds, by the id of the first run of each group.

    An unfinished run is a group of its own: its metrics are not those of a whole training. Of several runs with one
    seed only the newest counts: repeating a seed tells nothing about the spread over seeds.
    """
    result = {}
    for members, repeats in replicates(runs):
        shared = set.intersection(*(set(run.metrics) for run in members))
        estimates = {name: estimate([run.metrics[name] for run in members]) for name in sorted(shared)}
        result[members[0].run_id] = Group(members, estimates, repeats)
    return result


def replicates(runs: list[RunRecord]) -> list[tuple[list[RunRecord], int]]:
    """Return the groups of `average`: their runs, and the number of earlier runs with the same seeds."""
    varied = _varied(runs)
    keys = [key for key in varied if not (SEED.match(key) or BOOKKEEPING.match(key))]
    seeds = [key for key in varied if SEED.match(key)]
    groups: dict[tuple[Any, ...], list[RunRecord]] = {}
    for run in runs:
        unfinished = None if run.status == "FINISHED" else run.run_id
        groups.setdefault((run.experiment, unfinished, *map(run.params.get, keys)), []).append(run)
    result = []
    for repeated in groups.values():
        newest = {
            tuple(map(run.params.get, seeds)): run for run in sorted(repeated, key=lambda run: run.start_time or 0)
        }
        kept = {id(run) for run in newest.values()}
        members = [run for run in repeated if id(run) in kept]
        result.append((members, len(repeated) - len(members)))
    return result


def represent(groups: Mapping[str, Group]) -> list[RunRecord]:
    """Return one record per group, with its mean values and without its seeds."""
    records = []
    for group in groups.values():
        first, count = group.runs[0], len(group.runs)
        titles = {re.sub(r"-s\d+$", "", run.name) for run in group.runs}
        name = titles.pop() if len(titles) == 1 else f"{first.name} and {count - 1} more"
        times = [run.seconds for run in group.runs if run.seconds is not None]
        start = first.start_time or 0
        records.append(
            replace(
                first,
                name=name if count > 1 else first.name,
                params={k: v for k, v in first.params.items() if not SEED.match(k)},
                metrics={name: value.mean for name, value in group.estimates.items()},
                start_time=start,
                end_time=start + round(1000 * sum(times) / len(times)) if times else None,
            )
        )
    return records


def rank(
    runs: list[RunRecord],
    metric: str | None = None,
    order: str | None = None,
    full: bool = False,
    places: Mapping[str, int] | None = None,
) -> Ranking:
    """Order runs by a metric; runs with NaN or without a value come last.

    Args:
        metric: default: the one that most tags name, else final accuracy, a `best_eval_*` metric or one of all runs.
        order: `min` or `max`; default: as tagged, else by the metric's name.
        full: include bookkeeping params and minor metrics.
        places: ranks by run id, which take precedence over the metric; runs may share a rank.
    """
    counts = Counter(name for run in runs for name in run.metrics)
    if metric is not None and metric not in counts and runs:
        raise ConfigError(
            f"--metric {metric}: no run has this metric.{did_you_mean(metric, counts)} Available: {one_of(counts, 20)}"
        )
    metric = metric or _default_metric(runs, counts)
    direction = order or _direction(runs, metric or "")
    sign = 1 if direction == "min" else -1
    scores = {run.run_id: sign * run.metrics.get(metric or "", math.nan) for run in runs}
    by_score = {run_id: (1, 0.0) if math.isnan(score) else (0, score) for run_id, score in scores.items()}
    keys = {run_id: (places[run_id], 0.0) for run_id in by_score} if places else by_score
    ordered = sorted(runs, key=lambda run: (keys[run.run_id], by_score[run.run_id]))
    in_order = sorted(keys.values())
    ranks = [bisect.bisect_left(in_order, keys[run.run_id]) + 1 for run in ordered]
    params = sorted(key for key in _varied(runs) if full or not BOOKKEEPING.match(key))
    return Ranking(ordered, ranks, metric, direction, params, _metric_names(counts, metric, full), bool(places))


def _varied(runs: list[RunRecord]) -> list[str]:
    """Return the params whose values differ between the runs, or that only some of them have."""
    first = set(runs[0].params.items()) if runs else set()
    return sorted({key for run in runs for key, _ in first ^ run.params.items()})


def _default_metric(runs: list[RunRecord], counts: Counter[str]) -> str | None:
    tagged = Counter(run.tags["hfexp.metric"] for run in runs if run.tags.get("hfexp.metric") in counts)
    names = sorted(name for name in counts if not MINOR.search(name))
    best = [*({"final_eval_accuracy"} & set(names)), *(name for name in names if name.startswith("best_eval_"))]
    shared = [name for name in names if counts[name] == len(runs)]
    return next(iter([name for name, _ in tagged.most_common(1)] + best + shared + names), None)


def base_of(metric: str) -> str:
    """Strip the prefix that says when a metric was taken: `final_eval_accuracy` becomes `accuracy`."""
    return re.sub(r"^((final_|best_)?eval_|test_)", "", metric)


def _direction(runs: list[RunRecord], metric: str) -> str:
    tags = [run.tags for run in runs if base_of(run.tags.get("hfexp.metric", "")) == base_of(metric)]
    tagged = [t["hfexp.metric_direction"] for t in tags if t.get("hfexp.metric_direction") in ("min", "max")]
    return next(iter(tagged), "min" if lower_is_better(metric) else "max")


def _metric_names(counts: Counter[str], metric: str | None, everything: bool) -> list[str]:
    names = sorted(name for name in counts if everything or not MINOR.search(name))
    main = [name for prefix in FINAL for name in names if name.startswith(prefix)]
    # First the same measure on other data, then the losses.
    main.sort(key=lambda name: (base_of(name) != base_of(metric or ""), base_of(name) != "loss"))
    return list(dict.fromkeys([*([metric] if metric else []), *main, *(names if everything or not main else [])]))


def telling(params: Iterable[str], runs: list[RunRecord]) -> list[str]:
    """Order params by how much they tell apart: first those of many values, last those that follow from others."""
    seen: set[tuple[int, ...]] = set()

    def follows(key: str) -> bool:
        numbers: dict[str | None, int] = {}  # of the values, in the order in which they appear
        parts = tuple(numbers.setdefault(run.params.get(key), len(numbers)) for run in runs)
        is_known = parts in seen
        seen.add(parts)
        return is_known

    def share(key: str) -> int:
        return Counter(run.params.get(key) for run in runs).most_common(1)[0][1]

    ordered = sorted(params, key=lambda key: (bool(DERIVED.match(key)), share(key)))
    return sorted(ordered, key=lambda key: (bool(DERIVED.match(key)), follows(key)))


def shorten_keys(keys: list[str], runs: list[RunRecord]) -> list[str]:
    """Shorten each key to its shortest ending that no other param of the runs has."""

    def endings(key: str) -> list[str]:
        parts = key.split(".")
        return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]

    counts = Counter(ending for key in set().union(*(run.params for run in runs)) for ending in endings(key))
    return [next((ending for ending in endings(key) if counts[ending] == 1), key) for key in keys]


def cell_text(value: Any) -> str:
    """Return a value as a table shows it: four decimal places, one line, at most `MAX_CELL` characters of a text."""
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
    text = "-" if value is None else one_line(" ".join(str(value).split()))
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."
