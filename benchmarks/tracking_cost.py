"""What tracking costs: the same training recorded by hfexp, not recorded, and recorded by Transformers' own callback.

    python -m benchmarks.tracking_cost [--only toy|digits] [--rounds N]

The variants take turns in one process, so that a slow minute of the machine hits all of them. Compared is the time of
the training loop; the whole run is shown beside it: there tracking includes opening the run and the model that is
saved, loaded again, compared and uploaded. (The report is drawn without tracking too.)
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "tracking_cost.md"
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
        for owner, name, clock in (
            (RecordTraining, "on_log", time.perf_counter),
            (RecordTraining, "on_save", time.perf_counter),
            (Writer, "_deliver", time.thread_time),
            (SystemMonitor, "sample", time.thread_time),
        ):
            setattr(owner, name, self._counted(getattr(owner, name), clock))
        RecordTraining.on_train_begin = self._switch(True)
        RecordTraining.on_train_end = self._switch(False)

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


def own_share(job: str, rounds: int) -> str:
    """Median share of the training time that tracking takes for itself."""
    own, shares = OwnTime(), []
    for _ in range(rounds):
        own.seconds = 0.0
        train_seconds, _ = measure(JOBS[job])
        shares.append(own.seconds / train_seconds)
        print(f"hfexp's own time: {own.seconds:.3f} of {train_seconds:.2f} s of training", flush=True)
    return f"* {job}: {statistics.median(shares):.2%} (from {min(shares):.2%} to {max(shares):.2%}, {rounds} rounds)"


def measure(words: list[str]) -> tuple[float, float]:
    """Seconds of the training loop and of the whole run."""
    import mlflow

    from hfexp import api

    with contextlib.redirect_stdout(io.StringIO()):
        result = api.train(*words)
    mlflow.end_run()  # which Transformers' callback leaves open
    return result.train_seconds, result.seconds


def compare(job: str, rounds: int) -> list[str]:
    """Rows of the table for one job."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    order = list(VARIANTS.items())
    for _, more in order:
        measure([*JOBS[job], *more, "trainer.args.max_steps=20"])  # imports, a store, warm caches
    for number in range(rounds):
        for name, more in order[number % 3 :] + order[: number % 3]:
            times[name].append(measure([*JOBS[job], *more]))
            print(f"{name}: {times[name][-1][0]:.2f} s of training, {times[name][-1][1]:.2f} s in all", flush=True)
    rows = []
    for name in VARIANTS:
        train, whole = (statistics.median(column) for column in zip(*times[name], strict=True))
        ratios = [own[0] / off[0] - 1 for own, off in zip(times[name], times["off"], strict=True)]
        cost = "" if name == "off" else f"{statistics.median(ratios):+.1%} ({min(ratios):+.1%} to {max(ratios):+.1%})"
        rows.append(f"| {job} | {name} | {train:.2f} | {cost} | {whole:.2f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", choices=[name.partition(",")[0] for name in JOBS])
    parser.add_argument("--own", action="store_true", help="measure only the time that tracking takes for itself")
    args = parser.parse_args()
    jobs = [job for job in JOBS if args.only is None or job.startswith(args.only)]
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
        rows = [] if args.own else [row for job in jobs for row in compare(job, args.rounds or ROUNDS[job])]
        shares = [own_share(job, 3) for job in jobs]
    counts = " and ".join(str(args.rounds or ROUNDS[job]) for job in jobs)
    text = "\n".join(
        [
            f"Medians of {counts} rounds, interleaved in one process on {os.cpu_count()} cores; cost: median and",
            f"range of the ratios to the run without tracking in the same round. The limit for hfexp is {LIMIT:.0%}.",
            "",
            "| job | tracking | training, s | cost | whole run, s |",
            "|---|---|--:|--:|--:|",
            *rows,
            "",
            "The time that tracking takes for itself while training goes on, as a share of it (an upper bound of the",
            "cost that is free of the machine's noise: callbacks in the training thread, processor time elsewhere):",
            "",
            *shares,
        ]
    )
    print(text)
    if args.only is None and args.rounds is None and not args.own:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
