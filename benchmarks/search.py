"""Searching: a TPE search with ASHA pruning beside the same search without, and what they find beside the defaults.

    python -m benchmarks.search [--rounds N]

A grid of 12 points, 25 trials searched to their end, and 25 with pruning, through the command `hfexp`. What each found
best is then run with seeds that no search has seen, and measured on the test split, which no search has looked at; so
are the settings of the experiment, which were chosen for it by hand, and those of `trainer=default`, which were not.
"""

import re
import time
from pathlib import Path
from typing import Any

from benchmarks.digits_accuracy import interval
from benchmarks.harness import Ratio, Report, child, parser, publish, scratch, silence, table

TRIALS, REPLICATES, FRESH_SEED = 25, 5, 1000
LARGEST_SHARE = 0.6
RATE, DECAY = "trainer.args.learning_rate", "trainer.args.weight_decay"
TASK = ["experiment=digits_vit", "trainer.args.num_train_epochs=10", "launch.num_threads=2"]
QUICK = ["trainer.args.num_train_epochs=1", "trainer.args.max_steps=4", "model.config.hidden_size=16"]
SEARCH = [
    "search=tpe", f"{RATE}=tag(log,interval(1e-5,1e-1))", f"{DECAY}=tag(log,interval(1e-4,1))",
    "trainer.args.warmup_steps=interval(0,0.3)",
]  # fmt: skip
GRID, WHOLE, PRUNED = "grid of 12", "TPE", "TPE, pruned by ASHA"
CHOSEN, DEFAULT = "the experiment's own", "trainer=default"
DEFAULTS = [f"{RATE}=5e-5", f"{DECAY}=0.0", "trainer.args.warmup_steps=0.1", "trainer.args.lr_scheduler_type=linear"]
"""What `conf/trainer/default.yaml` and `TrainingArguments` say of what is searched."""
WAYS = {
    GRID: [f"{RATE}=1e-4,3e-4,1e-3,3e-3", f"{DECAY}=0.01,0.05,0.2"],
    WHOLE: [*SEARCH, f"search.trials={TRIALS}"],
    PRUNED: [*SEARCH, f"search.trials={TRIALS}", "search.pruner=asha"],
}
QUICK_WAYS = {
    GRID: [f"{RATE}=1e-4,1e-3"],
    WHOLE: [*SEARCH[:-1], "search.trials=2"],
    PRUNED: [*SEARCH[:-1], "search.trials=2", "search.pruner=asha"],
}


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """One search of each kind per round; the sampler's seed is the number of the round."""
    report = Report("search", (__doc__ or "").splitlines()[0].rstrip("."))
    task, ways = (TASK + QUICK, QUICK_WAYS) if quick else (TASK, WAYS)
    shares = []
    for number in range(rounds or 1):
        with scratch() as place:
            shares.append(measure(report, number, place, task, ways, 2 if quick else REPLICATES))
    ratio = Ratio(f"{PRUNED} / {WHOLE}, time", tuple(shares), limit=LARGEST_SHARE)
    report.blocks.append(table(["ratio", "median", "from, to", "bound"], [ratio.row()]))
    report.data["ratio"] = ratio.facts()
    report.ratios.append(ratio)
    return report


def measure(
    report: Report, number: int, place: Path, task: list[str], ways: dict[str, list[str]], replicates: int
) -> float:
    """One round; the share of the time that pruning leaves."""
    seconds: dict[str, float] = {}
    found: dict[str, dict[str, Any]] = {}
    best: dict[str, list[str]] = {CHOSEN: [], DEFAULT: DEFAULTS}
    for name, words in ways.items():
        start = time.monotonic()
        trials = sweep(place, name, [*task, *words, f"search.seed={number}"])
        seconds[name] = time.monotonic() - start
        done = [trial for trial in trials if trial.values]
        chosen = min(done, key=lambda trial: trial.values[0])
        states = [trial.state.name for trial in trials]
        found[name] = {"trials": len(trials), "pruned": states.count("PRUNED"), "best": chosen.values[0]}
        found[name]["params"] = chosen.params
        best[name] = list(chosen.user_attrs["hfexp.words"])
        print(f"  round {number + 1}: {name} in {seconds[name]:.0f} s", flush=True)
    tested = {name: test(place, name, [*task, *words], replicates) for name, words in best.items()}
    rows = [_row(name, seconds.get(name), found.get(name), values) for name, values in tested.items()]
    head = ["", "trials (pruned)", "s", "best validation loss", "test loss", "test accuracy", "point"]
    report.blocks += [f"## Search with seed {number}; tested with {replicates} fresh seeds", table(head, rows)]
    margins = [_margin(tested, name, other) for name in (WHOLE, PRUNED) for other in (CHOSEN, DEFAULT)]
    report.blocks += ["Test loss, seed by seed:", table(["", "difference, mean and 95 % interval"], margins)]
    report.data[f"seed {number}"] = {"seconds": seconds, "found": found, "test": tested}
    return seconds[PRUNED] / seconds[WHOLE]


def _row(name: str, seconds: float | None, found: dict[str, Any] | None, tested: list[list[float]]) -> list[str]:
    measured = [f"{sum(values) / len(values):.4f} ± {interval(values):.4f}" for values in tested]
    if found is None:
        return [name, "-", "-", "-", *measured, "-"]
    point = ", ".join(f"{key.rpartition('.')[2]} {value:.3g}" for key, value in found["params"].items())
    return [name, f"{found['trials']} ({found['pruned']})", f"{seconds:.0f}", f"{found['best']:.4f}", *measured, point]


def _margin(tested: dict[str, list[list[float]]], name: str, other: str) -> list[str]:
    """How much lower the test loss of one is than that of another, with the same seeds."""
    differences = [ours - theirs for ours, theirs in zip(tested[name][0], tested[other][0], strict=True)]
    return [f"{name} - {other}", f"{sum(differences) / len(differences):+.4f} ± {interval(differences):.4f}"]


def sweep(place: Path, name: str, words: list[str]) -> list[Any]:
    """The trials of a sweep through the command line."""
    import optuna

    directory = re.sub(r"\W+", "_", name)
    child(["-m", "hfexp", "-m", *words, f"search.name={directory}", f"output_dir={place / 'outputs'}"])
    with silence():
        url = f"sqlite:///{place / 'outputs' / 'sweeps' / directory / 'study.db'}"
        return optuna.load_study(study_name=directory, storage=url).get_trials()


def test(place: Path, name: str, words: list[str], replicates: int) -> list[list[float]]:
    """Test loss and accuracy of a point with each of some fresh seeds."""
    from hfexp.sweep.study import runs_of

    fresh = [f"seed={FRESH_SEED}", f"search.replicates={replicates}", "search.metrics=[test_loss,test_accuracy]"]
    (trial,) = sweep(place, f"test of {name}", [*words, *fresh, "search.directions=[minimize,maximize]"])
    return [
        list(values) for values in zip(*(run.values or () for run in runs_of(trial.user_attrs).values()), strict=True)
    ]


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
