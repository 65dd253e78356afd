"""What a small job costs besides its training: `debug=fast` alone, and one more job of a warm sweep.

Alone, whole processes are timed in turns with a script that imports the same libraries, trains the same two steps,
evaluates as often and saves the model (`benchmarks.bare_start --whole`). In a sweep, what one more job adds is the
difference between a sweep of many jobs and one of few, less what its jobs train; the store of runs exists already.
"""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import ROOT, Ratio, Report, interleave, parser, publish, ratio, scratch, spread, table, turns
from benchmarks.startup import bare, command, seconds

ROUNDS = 7
SWEEP_ROUNDS = 3
FEW, MANY = 2, 12
"""Jobs of the two sweeps."""
OWN, UNRECORDED, BARE = "hfexp debug=fast", "hfexp debug=fast tracking=none", "script"
LIMIT = 1.25
MEMORY_LIMIT = 1.05
LIMIT_IN_SWEEP = 1.0
"""Seconds that one more job may cost besides its training."""
RUN = ("experiment=digits_vit", "debug=fast", "on_existing=rerun")


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure both."""
    report = Report("small_jobs", (__doc__ or "").splitlines()[0].rstrip("."))
    with scratch():
        os.environ["PYTHONPATH"] = str(ROOT)
        measure_alone(report, 1 if quick else rounds or ROUNDS)
        measure_in_sweep(report, 1 if quick else rounds or SWEEP_ROUNDS, 3 if quick else MANY)
    return report


def measure_alone(report: Report, rounds: int) -> None:
    """From the start of the process to its end."""
    ways = {OWN: lambda: seconds(command(*RUN)), BARE: lambda: seconds([*bare(), "--whole"])}
    for way in ways.values():
        way()
    found = interleave(ways, rounds)
    report.section(f"Alone, {turns(rounds)}", "s", found, [ratio(found, OWN, BARE, limit=LIMIT)])
    measure_memory(report, min(rounds, 3))


def measure_memory(report: Report, rounds: int) -> None:
    """Without a record the libraries are the script's; a record needs more, for the store and the pictures."""
    words = {OWN: command(*RUN), UNRECORDED: command(*RUN, "tracking=none"), BARE: [*bare(), "--whole"]}
    found = interleave({way: functools.partial(most_memory, own) for way, own in words.items()}, rounds)
    ratios = [ratio(found, UNRECORDED, BARE, limit=MEMORY_LIMIT), ratio(found, OWN, BARE)]
    report.section(f"Most memory, alone, {turns(rounds)}", "MB", found, ratios, form=".0f")


def most_memory(words: list[str]) -> float:
    """The most resident memory of a process and of those that it waits for, in MB."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 2**10


def measure_in_sweep(report: Report, rounds: int, many: int) -> None:
    """What one more job adds, with and without what it trains."""
    added, trained = [], []
    for number in range(rounds):
        short, _ = sweep(1000 * number, FEW)
        long, training = sweep(1000 * number + 500, many)
        added.append((long - short) / (many - FEW))
        trained.append(training / many)
        print(f"  round {number + 1} of {rounds}: sweeps", file=sys.stderr, flush=True)
    besides = tuple(whole - training for whole, training in zip(added, trained, strict=True))
    cost = Ratio("one more job besides its training, s", besides, LIMIT_IN_SWEEP)
    rows = [["one more job", spread(added, ".2f")], ["of which training", spread(trained, ".2f")]]
    report.blocks += [
        f"## In a sweep of {many} jobs, {turns(rounds)}",
        table(["", "s, from, to"], rows),
        table(["", "median", "from, to", "bound"], [cost.row()]),
    ]
    report.data["sweep"] = {"added": added, "trained": trained, "besides": cost.facts()}
    report.ratios.append(cost)


def sweep(first_seed: int, jobs: int) -> tuple[float, float]:
    """Run a sweep over new seeds; return its seconds, and those of all its trainings together."""
    seeds = f"seed={','.join(str(first_seed + number) for number in range(jobs))}"
    whole = seconds(command("-m", *RUN[:2], seeds))
    names = [path for path in Path("outputs/debug").glob("*/result.json") if _seed_of(path) >= first_seed]
    return whole, sum(json.loads(path.read_text())["train_seconds"] for path in names)


def _seed_of(path: Path) -> int:
    found = re.search(r"-s(\d+)-", path.parent.name)
    return int(found[1]) if found else -1


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
