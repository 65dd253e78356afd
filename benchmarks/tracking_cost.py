"""What tracking costs: the same training recorded by hfexp, not recorded, and recorded by Transformers' own callback.

    python -m benchmarks.tracking_cost [--only toy|digits] [--rounds N] [--own]

The variants take turns in one process, so that a slow minute of the machine hits all of them. Compared is the time of
the training loop; the whole run is shown beside it: there tracking includes opening the run and the model that is
saved, loaded again, compared and uploaded. (The report is drawn without tracking too.)
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.harness import Ratio, Report, interleave, parser, publish, scratch, silence, spread, table, turns

LIMIT = 0.02

SMALL = [
    "experiment=digits_vit", "metrics=accuracy", "model.config.hidden_size=32", "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=64",
]  # fmt: skip
JOBS = {
    "toy, 500 steps": [
        *SMALL, "trainer.args.max_steps=500","trainer.args.eval_strategy=no",
        "trainer.args.save_strategy=no", "trainer.args.load_best_model_at_end=false",
    ],
    "digits, as it is": ["experiment=digits_vit"],
}  # fmt: skip
ROUNDS = {"toy, 500 steps": 5, "digits, as it is": 2}
QUICK = {"toy, 10 steps": [*JOBS["toy, 500 steps"], "trainer.args.max_steps=10"]}
VARIANTS = {
    "off": ["tracking=none"],
    "hfexp": [],
    "HF callback": [
        "tracking=none",
        "trainer.callbacks.hf={_target_: transformers.integrations.MLflowCallback}",
        "security.allowed_targets=[transformers.integrations]",
    ],
}


class OwnTime:
    """Seconds of the training loop that tracking takes for itself: an upper bound of its cost, free of other noise.

    In the training thread all time in the callback that records; in the thread that delivers, and in the one that
    measures the load, the time on the processor, as if the training could have used all of it.
    """

    def __init__(self) -> None:
        from hfexp.progress import RecordTraining
        from hfexp.tracking.system import SystemMonitor
        from hfexp.tracking.writer import Writer

        self.seconds = 0.0
        self.training = False
        self._replaced: list[tuple[type, str, Callable[..., Any]]] = []
        for owner, name, clock in (
            (RecordTraining, "on_log", time.perf_counter),
            (RecordTraining, "on_save", time.perf_counter),
            (Writer, "_deliver", time.thread_time),
            (SystemMonitor, "sample", time.thread_time),
        ):
            self._replace(owner, name, self._counted(getattr(owner, name), clock))
        self._replace(RecordTraining, "on_train_begin", self._switch(True))
        self._replace(RecordTraining, "on_train_end", self._switch(False))

    @classmethod
    @contextmanager
    def counting(cls) -> Iterator["OwnTime"]:
        """Count meanwhile."""
        own = cls()
        try:
            yield own
        finally:
            for owner, name, function in own._replaced:
                setattr(owner, name, function)

    def _replace(self, owner: type, name: str, function: Callable[..., Any]) -> None:
        self._replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, function)

    def _switch(self, training: bool) -> Callable[..., None]:
        def switch(*args: Any, **kwargs: Any) -> None:
            self.training = training

        return switch

    def _counted(self, function: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += (clock() - began) if self.training else 0.0

        return counted


def own_shares(words: list[str], rounds: int) -> list[float]:
    """Share of the training time that tracking takes for itself, by round."""
    shares = []
    with OwnTime.counting() as own:
        for _ in range(rounds):
            own.seconds = 0.0
            train_seconds, _ = measure(words)
            shares.append(own.seconds / train_seconds)
    return shares


def measure(words: list[str]) -> tuple[float, float]:
    """Seconds of the training loop and of the whole run."""
    import mlflow

    from hfexp import api

    with silence():
        result = api.train(*words)
        mlflow.end_run()  # which Transformers' callback leaves open
    return result.train_seconds, result.seconds


def compare(words: list[str], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of training and of the whole run, by variant and round."""
    for more in VARIANTS.values():
        measure([*words, *more, "trainer.args.max_steps=5"])  # imports, a store, warm caches

    def way(more: list[str]) -> Callable[[], tuple[float, float]]:
        return lambda: measure([*words, *more])

    return interleave({name: way(more) for name, more in VARIANTS.items()}, rounds)


def rows(job: str, times: Mapping[str, list[tuple[float, float]]], costs: Mapping[str, Ratio]) -> list[list[str]]:
    """Of the table, for one job."""
    found = []
    for name in VARIANTS:
        train, whole = (statistics.median(column) for column in zip(*times[name], strict=True))
        cost = ""
        if name in costs:
            changes = [value - 1 for value in costs[name].values]
            cost = f"{costs[name].median - 1:+.1%} ({spread(changes, '+.1%')})"
        found.append([job, name, f"{train:.2f}", cost, f"{whole:.2f}"])
    return found


def run(rounds: int | None = None, quick: bool = False, only: str = "", own: bool = False) -> Report:
    """Compare the variants of each job (unless only their own time is wanted), then measure tracking's own time."""
    report = Report("tracking_cost", (__doc__ or "").splitlines()[0].rstrip("."))
    jobs = QUICK if quick else {job: words for job, words in JOBS.items() if job.startswith(only)}
    counts = {job: 1 if quick else rounds or ROUNDS[job] for job in jobs}
    cells: list[list[str]] = []
    with scratch() as place:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
        for job in {} if own else jobs:
            times = compare(jobs[job], counts[job])
            costs = {name: _cost(job, name, times) for name in VARIANTS if name != "off"}
            cells += rows(job, times, costs)
            report.ratios += costs.values()
            report.data[job] = {
                "train_and_whole_seconds": times,
                "ratios": {r.label: r.facts() for r in costs.values()},
            }
        shares = {job: own_shares(jobs[job], 1 if quick else 3) for job in jobs}
    report.data["own_share"] = shares
    report.blocks = [] if own else [_method(list(counts.values())), table(HEAD, cells)]
    report.blocks += [OWN_SHARE, "\n".join(_share(job, found) for job, found in shares.items())]
    return report


HEAD = ["job", "tracking", "training, s", "cost", "whole run, s"]
OWN_SHARE = """\
The time that tracking takes for itself while training goes on, as a share of it (an upper bound of the
cost that is free of the machine's noise: callbacks in the training thread, processor time elsewhere):"""


def _cost(job: str, name: str, times: Mapping[str, list[tuple[float, float]]]) -> Ratio:
    pairs = zip(times[name], times["off"], strict=True)
    limit = 1 + LIMIT if name == "hfexp" else None
    return Ratio(f"{job}: {name} / off", tuple(own[0] / off[0] for own, off in pairs), limit)


def _method(counts: list[int]) -> str:
    return (
        f"Medians of {' and '.join(map(turns, counts))}, interleaved in one process; cost: median and range of "
        f"the ratios\nto the run without tracking in the same round. The limit for hfexp is {LIMIT:.0%}."
    )


def _share(job: str, shares: list[float]) -> str:
    median, least, most = statistics.median(shares), min(shares), max(shares)
    return f"* {job}: {median:.2%} (from {least:.2%} to {most:.2%}, {turns(len(shares))})"


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    options = parser(__doc__)
    options.add_argument("--only", default="", choices=[name.partition(",")[0] for name in JOBS])
    options.add_argument("--own", action="store_true", help="measure only the time that tracking takes for itself")
    args = options.parse_args(argv)
    whole = not (args.quick or args.rounds or args.only or args.own)
    publish(run(args.rounds, args.quick, args.only, args.own), keep=whole)


if __name__ == "__main__":
    main()
