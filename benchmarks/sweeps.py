"""Sweeps: what a job costs beside itself, beside Hydra's own sweeper.

    python -m benchmarks.sweeps [--rounds N]

The job is a function that writes down when it ran, with hfexp's whole configuration to compose. The time between the
first and the last job, divided by their number less one, leaves out what is done once.
"""

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Ratio, Report, child, interleave, parser, publish, scratch, turns

JOBS, QUICK_JOBS, ROUNDS = 20, 3, 3
LARGEST_OVERHEAD = 0.3
APP = """
import sys
import time

from hfexp.commands import cli


def make():
    class Job:
        error = None

        def __init__(self, words):
            pass

        def run(self, cfg):
            import time

            with open(cfg.name, "a") as file:
                file.write(f"{time.time()}\\n")
            return float(cfg.trainer.args.weight_decay)

    return Job


cli._Job = make()
sys.exit(cli.main(sys.argv[1:]))
"""
GRID = "trainer.args.weight_decay=range({jobs})"
DRAWN = ["search.trials={jobs}", "trainer.args.weight_decay=interval(0,1)"]
HYDRAS, GRID_HERE, TPE_HERE = "Hydra's sweeper, basic", "grid, basic", "tpe, basic"
IN_PROCESS = (GRID_HERE, TPE_HERE)
WAYS = {
    HYDRAS: ["hydra/sweeper=basic", "hydra/launcher=basic", GRID],
    GRID_HERE: ["hydra/launcher=basic", GRID],
    "grid, local": ["hydra/launcher=local", "hydra.launcher.n_jobs=1", GRID],
    TPE_HERE: ["hydra/launcher=basic", "search=tpe", *DRAWN],
    "tpe, local": ["hydra/launcher=local", "hydra.launcher.n_jobs=1", "search=tpe", *DRAWN],
}


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure trivial jobs."""
    report = Report("sweeps", (__doc__ or "").splitlines()[0].rstrip("."))
    jobs, rounds = QUICK_JOBS if quick else JOBS, 1 if quick else rounds or ROUNDS
    with scratch() as place:
        (place / "app.py").write_text(APP)
        found = interleave({name: _sweep(place, words, jobs) for name, words in WAYS.items()}, rounds)
    title = f"{jobs} trivial jobs, seconds per job after the first, {turns(rounds)}"
    own = [Ratio(f"{name}, s", tuple(found[name]), limit=LARGEST_OVERHEAD) for name in WAYS if name in IN_PROCESS]
    report.section(title, "s", found, own, ".3f")
    return report


def _sweep(place: Path, words: list[str], jobs: int) -> Callable[[], float]:
    def way() -> float:
        stamp = time.monotonic_ns()
        times = place / f"times-{stamp}"
        own = [word.format(jobs=jobs) for word in words]
        child(["app.py", "-m", f"name={times}", f"output_dir={place / f'out-{stamp}'}", "tracking=none", *own])
        moments = sorted(float(line) for line in times.read_text().split())
        if len(moments) != jobs:
            raise RuntimeError(f"{len(moments)} of {jobs} jobs ran: {' '.join(words)}")
        return (moments[-1] - moments[0]) / (jobs - 1)

    return way


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
