"""Trainings beside others on the same processors: two at once, and one beside a busy process.

Each is a process of its own, as from two terminals, that trains the ViT of `benchmarks.training` on 64 px with as many
threads as there are processors. After the first epoch they wait for each other; compared are the steps per second of
both together from then until one has done its last, with those of one process alone: as many is what two would do in
turns. The busy process counts in Python, on one processor.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, Report, interleave, parser, publish, ratio, scratch, silence, turns
from benchmarks.in_turns import Turns
from benchmarks.pictures import write_pictures
from benchmarks.training import NOTEBOOK, OWN, once
from benchmarks.variants import Job, Shape

EPOCHS = 4
LONGEST_WAIT = 300.0
"""Seconds for which a training waits for another, which may have failed."""
BOTH = (OWN, NOTEBOOK)
SHAPE, IMAGES = Shape(64), 480
QUICK_SHAPE, QUICK_IMAGES = Shape(32, width=16, layers=1, heads=2, intermediate=16), 32


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure one and two of each, in turns."""
    report = Report("side_by_side", (__doc__ or "").splitlines()[0].rstrip("."))
    rounds = 1 if quick else rounds or 3
    images = QUICK_IMAGES if quick else IMAGES
    with scratch() as place:
        write_pictures(place / "data", {"train": images, "validation": 40}, (250, 250))
        rate([NOTEBOOK], place, quick)  # `datasets` lists the files, for all variants
        rate([OWN], place, quick)  # which makes the store of runs
        ways = {
            f"{word} {name}": lambda name=name, count=count: rate([name] * count, place, quick)
            for name in BOTH
            for count, word in enumerate(("one", "two"), 1)
        }
        ways |= {f"{name} beside a busy process": lambda name=name: rate([name], place, quick, 1) for name in BOTH}
        found = interleave(ways, rounds)
    ratios = [
        ratio(found, f"two {OWN}", f"one {OWN}", target=1),
        ratio(found, f"two {NOTEBOOK}", f"one {NOTEBOOK}"),
        ratio(found, f"two {OWN}", f"two {NOTEBOOK}"),
        ratio(found, f"one {OWN}", f"{OWN} beside a busy process", limit=1.5),
        ratio(found, f"one {NOTEBOOK}", f"{NOTEBOOK} beside a busy process"),
        ratio(found, f"{OWN} beside a busy process", f"{NOTEBOOK} beside a busy process", target=1),
    ]
    report.section(f"Steps per second of all together, {turns(rounds)}", "1/s", found, ratios, ".1f")
    return report


class Meeting(Turns):
    """After its first epoch a process waits for all others."""

    def __init__(self, place: Path, processes: int, steps: int) -> None:
        self.place, self.processes, self.steps = place, processes, steps
        self._done = 0

    def step_ended(self) -> float:
        """Returns 0: the time is that of the clock, the same for all processes of a machine."""
        self._done += 1
        if self._done == self.steps:
            (self.place / str(os.getpid())).touch()
            deadline = time.monotonic() + LONGEST_WAIT
            while len(list(self.place.iterdir())) < self.processes:
                if time.monotonic() > deadline:
                    raise TimeoutError("another training has not come so far")
                time.sleep(0.01)
        return 0.0


def rate(names: list[str], place: Path, quick: bool, busy: int = 0) -> float:
    """Steps per second of all together, while all are beyond their first epoch; started at once, after busy ones."""
    with contextlib.ExitStack() as stack:
        for _ in range(busy):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(other.kill)
        return _rate(names, place, quick)


def _rate(names: list[str], place: Path, quick: bool) -> float:
    words = ["-W", "ignore", "-m", "benchmarks.side_by_side", *(["--quick"] if quick else []), "--place", str(place)]
    words += ["--meeting", tempfile.mkdtemp(dir=place), "--processes", str(len(names))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, *words, "--way", name, "--seed", str(seed)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed, name in enumerate(names)
    ]  # fmt: skip
    ended: list[list[float]] = []
    """By process: when its steps ended."""
    for process in processes:
        out, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"a training failed:\n{errors[-3000:]}")
        ended.append(json.loads(out.splitlines()[-1]))
    begin, end = max(times[0] for times in ended), min(times[-1] for times in ended)
    return sum(begin < moment <= end for times in ended for moment in times) / (end - begin)


def train(name: str, seed: int, place: Path, quick: bool, meeting: Path, processes: int) -> list[float]:
    """When the first epoch ended, and each step after it."""
    from benchmarks.steps import StepTimes

    words = (f"seed={seed}", f"output_dir={place / 'outputs'}")
    StepTimes.turns = Meeting(meeting, processes, (QUICK_IMAGES if quick else IMAGES) // Job.batch)
    with silence():
        once(name, Job(QUICK_SHAPE if quick else SHAPE, place / "data", EPOCHS, words=words))
    times = StepTimes.current
    return times.ends[times.epoch_ends[0] - 1 :]


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    options = parser(__doc__)
    options.add_argument("--way", choices=(OWN, NOTEBOOK), help="only print when one training's steps were")
    options.add_argument("--seed", type=int, help="of one training")
    options.add_argument("--place", type=Path, help="of one training: where its data are")
    options.add_argument("--meeting", type=Path, help="of one training: a directory that it shares with the others")
    options.add_argument("--processes", type=int, help="of one training: how many there are")
    args = options.parse_args(argv)
    if args.way:
        if args.way == OWN:
            from hfexp.core.machine import let_idle_threads_sleep

            let_idle_threads_sleep(decoding=False)  # as hfexp's command does, before torch is loaded
        print(json.dumps(train(args.way, args.seed, args.place, args.quick, args.meeting, args.processes)))
    else:
        publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
