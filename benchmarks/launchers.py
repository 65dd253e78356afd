"""Launchers of sweeps: what a job costs beside itself, and how much sooner a sweep is done with two jobs at once.

    python -m benchmarks.launchers [--only empty|digits] [--rounds N]

The empty job is a Hydra application that writes down when it ran; the time between the first and the last of its jobs,
divided by their number less one, leaves out what is done once (imports, the first worker). The digits are a small
training with everything that belongs to a run: data, checkpoints, evaluation, record, report.
"""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.harness import ROOT, Ratio, Report, child, interleave, parser, publish, ratio, scratch, turns

JOBS, QUICK_JOBS = 20, 2
ROUNDS = {"empty": 3, "digits": 1}
LARGEST_OVERHEAD, LARGEST_SHARE = 0.2, 0.8
APP = """
import time

import hydra

from hfexp.core import compose

compose.register_schema()


@hydra.main(version_base=None, config_path=None)
def main(cfg):
    with open(cfg.times, "a") as file:
        file.write(f"{time.time()}\\n")


main()
"""
EMPTY = {
    "basic": ["hydra/launcher=basic"],
    "local, 1 slot": ["hydra/launcher=local", "hydra.launcher.n_jobs=1"],
    "local, 2 slots": ["hydra/launcher=local", "hydra.launcher.n_jobs=2"],
    "joblib, 2 workers": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}
RAY = [
    "hydra/launcher=ray", "hydra.launcher.address=local", "++hydra.launcher.init.num_cpus=2",
    "++hydra.launcher.init.include_dashboard=false",
]  # fmt: skip
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=2", "hydra.launcher.array_parallelism=2"]
"""Each job fills one of the two nodes of the tests' cluster, which share this machine's processors."""
QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null", "hydra.sweep.dir=sweep"]
SERIAL, TWO = "one after the other (basic)", "two at once (local)"
DIGITS = [
    "experiment=digits_vit", "model.config.hidden_size=32", "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=64", "trainer.args.num_train_epochs=10",
]  # fmt: skip
SWEEPS = {
    SERIAL: ["hydra/launcher=basic"],
    "one after the other (local)": ["hydra/launcher=local", "hydra.launcher.n_jobs=1"],
    TWO: ["hydra/launcher=local", "hydra.launcher.n_jobs=2"],
}


def run(rounds: int | None = None, quick: bool = False, only: str | None = None) -> Report:
    """Measure empty jobs and small trainings."""
    report = Report("launchers", (__doc__ or "").splitlines()[0].rstrip("."))
    jobs = QUICK_JOBS if quick else JOBS
    with scratch() as place:
        if only in (None, "empty"):
            (place / "app.py").write_text(APP)
            measure_empty(report, place, jobs, 1 if quick else rounds or ROUNDS["empty"])
        if only in (None, "digits"):
            more = ["debug=fast"] if quick else []
            measure_digits(report, place, jobs, 1 if quick else rounds or ROUNDS["digits"], more)
    return report


def measure_empty(report: Report, place: Path, jobs: int, rounds: int) -> None:
    """Seconds per job after the first, with each launcher whose engine is installed."""
    with engines(place) as (launchers, left_out):
        found = interleave({name: _empty(place, words, jobs) for name, words in launchers.items()}, rounds)
    bounded = [name for name in found if name.startswith("local")]
    title = f"{jobs} empty jobs, seconds per job after the first, {turns(rounds)}"
    limits = [Ratio(f"{name}, s", tuple(found[name]), limit=LARGEST_OVERHEAD) for name in bounded]
    report.section(title, "s", found, limits, ".3f")
    report.blocks += [f"Skipped: {name}: {reason}." for name, reason in left_out.items()]


@contextlib.contextmanager
def engines(place: Path) -> Iterator[tuple[dict[str, list[str]], dict[str, str]]]:
    """Start a SLURM cluster as the tests do; yield the words of each launcher, and why others are left out."""
    launchers, left_out = dict(EMPTY), {}
    if importlib.util.find_spec("ray") is None:
        left_out["ray"] = "the package ray is not installed"
    else:
        launchers["ray, 2 CPUs"] = RAY
    sys.path.append(str(ROOT / "tests"))
    import clusters

    reason = clusters.why_not()
    if reason:
        yield launchers, left_out | {"slurm": reason}
        return
    (place / "slurm").mkdir()
    with clusters.cluster(place / "slurm"):
        yield {**launchers, "slurm, 2 nodes": SLURM}, left_out


def _empty(place: Path, words: list[str], jobs: int) -> Callable[[], float]:
    def way() -> float:
        times = place / f"times-{time.monotonic_ns()}"
        child(["app.py", f"+times={times}", f"+job=range({jobs})", *words, *QUIET, "-m"])
        moments = sorted(float(line) for line in times.read_text().split())
        if len(moments) != jobs:
            raise RuntimeError(f"{len(moments)} of {jobs} jobs ran: {' '.join(words)}")
        return (moments[-1] - moments[0]) / (jobs - 1)

    return way


def measure_digits(report: Report, place: Path, jobs: int, rounds: int, more: list[str]) -> None:
    """Whole sweeps, from start to end of the command."""
    warm_up = ["-m", "hfexp", *DIGITS, "debug=fast", "output_dir=warm"]
    child(warm_up)  # prepared data and a store are there from here on
    ways = {name: _sweep(place, [*words, *more], jobs) for name, words in SWEEPS.items()}
    found: Mapping[str, list[float]] = interleave(ways, rounds)
    title = f"{jobs} small trainings on the digits, {turns(rounds)}"
    report.section(title, "s", found, [ratio(found, TWO, SERIAL, limit=LARGEST_SHARE)], ".1f")


def _sweep(place: Path, words: list[str], jobs: int) -> Callable[[], float]:
    def way() -> float:
        where = f"output_dir={place / f'sweep-{time.monotonic_ns()}'}"
        start = time.perf_counter()
        child(["-m", "hfexp", *DIGITS, *words, where, "-m", f"seed=range({jobs})"])
        return time.perf_counter() - start

    return way


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    options = parser(__doc__)
    options.add_argument("--only", choices=("empty", "digits"), help="one part (nothing is written)")
    args = options.parse_args(argv)
    publish(run(args.rounds, args.quick, args.only), keep=not args.quick and args.only is None)


if __name__ == "__main__":
    main()
