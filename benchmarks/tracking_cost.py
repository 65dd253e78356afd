"""What tracking costs: the same training recorded by hfexp, not recorded, and recorded by Transformers' own callback.

    python -m benchmarks.tracking_cost [--only toy|digits] [--rounds N] [--own]

Each variant trains in a process of its own, after a small training that is not counted; the three of a round take
turns at computing (`benchmarks.in_turns`), for the machine may change its pace. Compared is the time of the training
loop; the whole run is shown beside it: there tracking includes opening the run and the model that is saved, loaded
again, compared and uploaded. (The report is drawn without tracking too.)
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.harness import Ratio, Report, parser, publish, scratch, silence, spread, table, turns
from benchmarks.in_turns import Turns, in_turns
from benchmarks.variants import ALLOWED
from hfexp.core.machine import let_idle_threads_sleep

LIMIT = 0.02
TURN = 100
"""Steps of a turn."""
OFF, OWN, PEER = "off", "hfexp", "HF callback"

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
ROUNDS = {"toy, 500 steps": 7, "digits, as it is": 5}
ROUNDS_OF_SHARE = 5
QUICK = {"toy, 10 steps": [*JOBS["toy, 500 steps"], "trainer.args.max_steps=10"]}
VARIANTS = {
    OFF: ["tracking=none", ALLOWED],
    OWN: [ALLOWED],
    PEER: [
        "tracking=none",
        "trainer.callbacks.hf={_target_: transformers.integrations.MLflowCallback}",
        "security.allowed_targets=[benchmarks,transformers.integrations]",
    ],
}
STEPS = "trainer.callbacks.steps={_target_: benchmarks.steps.StepTimes}"


class Lost:
    """Seconds that a training loses to tracking: free of noise, as only steps of one training are compared.

    In the training thread all time in the callback that records; and as long as a thread delivers, or measures the
    load, what steps take longer than those of the same kind around them. All other steps are as without tracking.
    """

    NEAR = 40
    """Steps on each side that a step is compared with."""

    def __init__(self) -> None:
        from hfexp.experiment.callbacks import TrackingCallback
        from hfexp.tracking.delivery import Writer
        from hfexp.tracking.tracker import SystemMonitor

        self.told: list[tuple[float, float]] = []
        """From when to when the callback recorded."""
        self.busy: list[tuple[float, float]] = []
        """From when to when another thread worked."""
        self._replaced: list[tuple[type, str, Callable[..., Any]]] = []
        for owner, name, times in (
            (TrackingCallback, "on_log", self.told),
            (TrackingCallback, "on_save", self.told),
            (Writer, "_deliver", self.busy),
            (SystemMonitor, "sample", self.busy),
        ):
            self._replaced.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._noted(getattr(owner, name), times))

    @classmethod
    @contextmanager
    def counting(cls) -> Iterator["Lost"]:
        """Count meanwhile."""
        lost = cls()
        try:
            yield lost
        finally:
            for owner, name, function in lost._replaced:
                setattr(owner, name, function)

    def _noted(self, function: Callable[..., Any], times: list[tuple[float, float]]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                times.append((began, time.perf_counter()))

        return noted

    def share(self, steps: Any) -> float:
        """Of the time of a training, from the end of its first step to that of its last one (`StepTimes`)."""
        ends = steps.ends
        lost = sum(end - began for began, end in self.told if ends[0] < began < ends[-1])
        for evaluated in (True, False):
            numbers = [number for number in range(1, len(ends)) if (number in steps.epoch_ends) == evaluated]
            seconds = {number: ends[number] - ends[number - 1] for number in numbers}
            touched = [n for n in numbers if any(b < ends[n] and e > ends[n - 1] for b, e in self.busy)]
            free = [n for n in numbers if n not in touched]
            for number in touched:
                near = sorted(free, key=lambda n: abs(n - number))[: 2 * self.NEAR]
                lost += seconds[number] - statistics.median(seconds[n] for n in near) if near else 0.0
        return lost / (ends[-1] - ends[0])


def lost_shares(words: list[str], rounds: int) -> list[float]:
    """Share of the training time that tracking costs, by round."""
    from benchmarks.steps import StepTimes

    shares = []
    for _ in range(rounds):
        with Lost.counting() as lost:
            measure(words)
            shares.append(lost.share(StepTimes.current))
    return shares


class Times(NamedTuple):
    """Of a run, in seconds."""

    train: float
    """The training loop."""
    whole: float
    step: float
    """Median of the steps."""


def measure(words: list[str]) -> Times:
    """One run."""
    import mlflow

    from benchmarks.steps import StepTimes
    from hfexp.commands import api

    with silence():
        result = api.train(*words, STEPS)
        mlflow.end_run()  # which Transformers' callback leaves open
    steps = StepTimes.current
    seconds = (end - start for start, end in pairwise(steps.ends))
    return Times(result.train_seconds - steps.waited, result.seconds - steps.waited, statistics.median(seconds))


def measure_in_turns(words: list[str]) -> Times:
    """In a process of its own: first a small training, for imports, a store and the first calls of everything."""
    let_idle_threads_sleep(decoding=False)  # as hfexp's command does, before torch is loaded
    from benchmarks.steps import StepTimes

    with tempfile.TemporaryDirectory(dir=".") as place, chdir(place):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{os.getcwd()}/mlflow.db"
        measure([*words, "trainer.args.max_steps=5"])
        StepTimes.turns = Turns()
        slowed = StepTimes.turns.slow_clock()
        return measure([*words, *([] if "tracking=none" in words else [slowed])])


def compare(job: str, words: list[str], rounds: int) -> dict[str, list[Times]]:
    """Times by variant and round."""
    times: dict[str, list[Times]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        start = number % len(VARIANTS)
        names = [*VARIANTS][start:] + [*VARIANTS][:start]
        program = ["-W", "ignore", "-m", "benchmarks.tracking_cost", "--words"]
        commands = {name: [*program, json.dumps([*words, *VARIANTS[name]])] for name in names}
        for name, found in in_turns(commands, TURN).items():
            times[name].append(Times(*found))
        print(f"  {job}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return times


def costs(times: Mapping[str, list[Times]], name: str) -> tuple[Ratio, Ratio]:
    """Over the run without tracking of the same round: the time of training, and how many median steps that is."""
    pairs = [*zip(times[name], times[OFF], strict=True)]
    seconds = tuple(one.train / off.train for one, off in pairs)
    steps = tuple((one.train / one.step) / (off.train / off.step) for one, off in pairs)
    label = f"{name} / {OFF}"
    limit = 1 + LIMIT if name == OWN else None
    return Ratio(label, seconds, limit), Ratio(f"{label}, in steps", steps, limit)


def rows(job: str, times: Mapping[str, list[Times]]) -> list[list[str]]:
    """Of the table, for one job."""
    found = []
    for name in VARIANTS:
        train, whole, step = (statistics.median(column) for column in zip(*times[name], strict=True))
        cells = ["", ""] if name == OFF else [_cost(ratio) for ratio in costs(times, name)]
        found.append([job, name, f"{train:.2f}", cells[0], f"{step * 1e3:.2f}", cells[1], f"{whole:.2f}"])
    return found


def run(rounds: int | None = None, quick: bool = False, only: str = "", own: bool = False) -> Report:
    """Compare the variants of each job (unless only their own time is wanted), then measure tracking's own time."""
    report = Report("tracking_cost", (__doc__ or "").splitlines()[0].rstrip("."))
    jobs = QUICK if quick else {job: words for job, words in JOBS.items() if job.startswith(only)}
    counts = {job: 1 if quick else rounds or ROUNDS[job] for job in jobs}
    cells: list[list[str]] = []
    with scratch() as place:
        for job in {} if own else jobs:
            times = compare(job, jobs[job], counts[job])
            cells += rows(job, times)
            ratios = [ratio for name in VARIANTS if name != OFF for ratio in costs(times, name)]
            report.ratios += ratios
            report.data[job] = {"train_whole_step_seconds": times, "ratios": {r.label: r.facts() for r in ratios}}
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
        measure([*SMALL, ALLOWED, "trainer.args.max_steps=5"])  # imports, a store
        shares = {job: lost_shares([*words, ALLOWED], 1 if quick else ROUNDS_OF_SHARE) for job, words in jobs.items()}
    report.data["share"] = shares
    report.blocks = [] if own else [_method(list(counts.values())), table(HEAD, cells)]
    report.blocks += [SHARE, "\n".join(_share(job, found) for job, found in shares.items())]
    return report


HEAD = ["job", "tracking", "training, s", "cost", "median step, ms", "cost in steps", "whole run, s"]
SHARE = """\
The same within one training, free of the machine's noise: what steps take longer than those around them while a thread
delivers or measures the load, and the time in the callback that records, as a share of the training:"""


def _cost(ratio: Ratio) -> str:
    return f"{ratio.median - 1:+.1%} ({spread((value - 1 for value in ratio.values), '+.1%')})"


def _method(rounds: list[int]) -> str:
    counts = " and ".join(map(turns, rounds))
    return (
        f"Medians of {counts}, in processes that take turns of {TURN} steps on {os.cpu_count()} cores; cost: median\n"
        "and range of the ratios to the run without tracking in the same round. Processes that do the same differ by\n"
        "several percent in every step. Cost in steps leaves that out: it compares how many of its own median steps\n"
        f"a training takes. The limit for hfexp is {LIMIT:.0%}."
    )


def _share(job: str, shares: list[float]) -> str:
    median, least, most = statistics.median(shares), min(shares), max(shares)
    return f"* {job}: {median:.2%} (from {least:.2%} to {most:.2%}, {turns(len(shares))})"


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    options = parser(__doc__)
    options.add_argument("--only", default="", choices=[name.partition(",")[0] for name in JOBS])
    options.add_argument("--own", action="store_true", help="only what tracking costs within one training")
    options.add_argument("--words", help="of one training, whose times are printed")
    args = options.parse_args(argv)
    if args.words:
        print(json.dumps(measure_in_turns(json.loads(args.words))))
        return
    whole = not (args.quick or args.rounds or args.only or args.own)
    publish(run(args.rounds, args.quick, args.only, args.own), keep=whole)


if __name__ == "__main__":
    main()
