"""Time of training: hfexp beside a bare loop, the notebook it grew out of and Transformers' example script.

All train the same ViT on the same JPEG files with batches of 16; the bare loop gets batches that are ready in memory.
Compared is the time per step after the first epoch (from the second step of the second epoch on, waiting for data
included), and the time from the call to the end of the last step, which for hfexp includes the building of its
prepared data: every round starts without any. Each training has a process of its own, with its imports and a small
training beforehand that are not counted, as hfexp sets how its process uses memory and threads.
The processes of a round compute in turns of some steps (`benchmarks.in_turns`), for the machine may change its pace.
The first step of a turn does not count, for it takes longer than any of a process that runs alone, and what hfexp does
by the clock (its record) it does as much less often.
Two ways to train faster, which the others could use as well, are measured beside it: where there is a C++ compiler,
hfexp with `trainer.args.torch_compile=true` (nothing is compiled beforehand, so that the whole training includes it),
and where the processor computes in bfloat16, with `trainer=fast`.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, parser, publish, ratio, scratch, silence, turns
from benchmarks.in_turns import Turns, in_turns
from benchmarks.pictures import NUM_CLASSES, write_pictures
from benchmarks.variants import Job, Shape, hfexp_words, notebook, script
from hfexp.core.machine import computes_in_bf16, let_idle_threads_sleep

LOGGING_STEPS = 10
EPOCHS = 3
BARE, OWN, NOTEBOOK, SCRIPT = "bare loop", "hfexp", "notebook", "run_image_classification"
COMPILED, FAST = "hfexp, torch_compile", "hfexp, trainer=fast"
OWN_WORDS: dict[str, tuple[str, ...]] = {
    OWN: (),
    COMPILED: ("trainer.args.torch_compile=true",),
    FAST: ("trainer=fast",),
}
"""What hfexp is told, by name."""


@dataclass(frozen=True)
class Case:
    """One size of image."""

    shape: Shape
    images: int
    rounds: int
    turn: int
    """Steps of a turn."""
    target: float
    """How many times faster than the notebook hfexp is to be."""

    @property
    def title(self) -> str:
        return f"{self.shape.size} px, {self.images:,} images"


CASES = (
    Case(Shape(64), 960, 5, 15, 1.4),
    Case(Shape(224), 128, 5, 4, 1.15),
)
QUICK = (Case(Shape(32, width=16, layers=1, heads=2, intermediate=16), 64, 1, 3, 1.4),)


@dataclass(frozen=True)
class Times:
    """Of one training, in seconds."""

    step: float
    """Per step, after the first epoch."""
    total: float
    """From the call to the end of the last step."""
    epoch: float
    """`step` times the steps of an epoch."""

    def after(self, epochs: int) -> float:
        """Total time had there been more epochs, all as long as the last ones."""
        return self.total + (epochs - EPOCHS) * self.epoch


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure every case."""
    report = Report("training", (__doc__ or "").splitlines()[0].rstrip("."))
    for case in QUICK if quick else CASES:
        with scratch() as place:
            measure(report, case, place, 1 if quick else rounds or case.rounds)
    report.blocks.append(
        "The time of ten epochs is computed: the measured time of three and seven times the steady time of one. "
        "The bare loop's has no loading and no preparation in it. `datasets` has listed the files beforehand."
    )
    return report


def measure(report: Report, case: Case, place: Path, rounds: int) -> None:
    """One size of image: all variants in turns."""
    from hfexp.experiment.checks import check_compiler  # not before torch may be loaded, which `train` decides

    place = place.absolute()
    write_pictures(place / "data", {"train": case.images, "validation": 40}, (250, 250))
    write_pictures(place / "few", {"train": 32, "validation": 40}, (250, 250))
    with silence():
        script(Job(case.shape, place / "data"))  # `datasets` lists the files, for all variants
    compiles = not check_compiler({"torch_compile": True, "use_cpu": True})
    faster = [*([COMPILED] if compiles else []), *([FAST] if computes_in_bf16() else [])]
    names = [BARE, OWN, NOTEBOOK, SCRIPT, *faster]
    times: dict[str, list[Times]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        found = one_round(case, place, names[start:] + names[:start])
        for name in names:
            times[name].append(found[name])
        print(f"  {case.title}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    title = f"{case.title}, {turns(rounds)}"
    steps = {name: [t.step * 1e3 for t in found] for name, found in times.items()}
    ratios = [
        ratio(steps, OWN, BARE, limit=1.05),
        ratio(steps, NOTEBOOK, OWN, target=case.target),
        ratio(steps, SCRIPT, OWN),
        ratio(steps, NOTEBOOK, BARE),
        *(ratio(steps, NOTEBOOK, name) for name in faster),
    ]
    report.section(f"Time per step, {title}", "ms", steps, ratios, ".1f")
    for epochs in (EPOCHS, 10):
        totals = {name: [t.after(epochs) for t in found] for name, found in times.items()}
        word = "measured" if epochs == EPOCHS else "computed"
        ratios = [ratio(totals, peer, OWN) for peer in (NOTEBOOK, SCRIPT)]
        ratios += [ratio(totals, NOTEBOOK, name) for name in faster]
        report.section(f"Whole training of {epochs} epochs ({word}), {title}", "s", totals, ratios)


def one_round(case: Case, place: Path, names: list[str]) -> dict[str, Times]:
    """One training of each, in processes that take turns."""
    given = ["--shape", json.dumps(asdict(case.shape)), "--place", str(place)]
    commands = {name: ["-W", "ignore", "-m", "benchmarks.training", "--way", name, *given] for name in names}
    return {name: Times(**found) for name, found in in_turns(commands, case.turn).items()}


def train(name: str, shape: Shape, place: Path) -> Times:
    """A small training, for imports, a store of runs and the first calls of everything; then the one that counts."""
    if name in OWN_WORDS:
        let_idle_threads_sleep(decoding=False)  # as hfexp's command does, before torch is loaded
    from benchmarks.steps import StepTimes

    small = replace(shape, width=16, layers=1, heads=2, intermediate=16)
    once(name, Job(small, place / "few", EPOCHS))
    StepTimes.turns = Turns()
    words = (StepTimes.turns.slow_clock(),) if name in OWN_WORDS else ()
    return once(name, Job(shape, place / "data", EPOCHS, words=words))


def once(name: str, job: Job) -> Times:
    """One training."""
    if name in OWN_WORDS:
        return own(replace(job, words=(*job.words, *OWN_WORDS[name])))
    return bare(job) if name == BARE else peer(job, notebook if name == NOTEBOOK else script)


def ready_batches(job: Job) -> list[Any]:
    """All batches of an epoch as the example script makes them."""
    with silence():
        trainer = script(job)
        return [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]


def own(job: Job) -> Times:
    """hfexp, without prepared data and compiled code."""
    from benchmarks.steps import StepTimes
    from hfexp.commands import api

    with tempfile.TemporaryDirectory(dir=".") as cache, silence():
        os.environ["HFEXP_CACHE"] = str(Path(cache).absolute())
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(cache).absolute() / "compiled")
        start = time.perf_counter()
        api.train(*hfexp_words(job, "trainer.callbacks.steps={_target_: benchmarks.steps.StepTimes}"))
    return summary(StepTimes.current, start)


def peer(job: Job, build: Callable[..., Any]) -> Times:
    """A Trainer of somebody else's."""
    from benchmarks.steps import StepTimes

    with silence():
        start = time.perf_counter()
        build(job, StepTimes()).train()
    return summary(StepTimes.current, start)


def bare(job: Job) -> Times:
    """The least that training takes; loading is not counted."""
    import torch
    from transformers import get_scheduler

    from benchmarks.steps import StepTimes

    batches = ready_batches(job)
    times = StepTimes()
    start = time.perf_counter()
    torch.manual_seed(0)
    model = job.shape.build(NUM_CLASSES).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    steps = job.epochs * len(batches)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
    for _ in range(job.epochs):
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            times.step_ended()
            if len(times.ends) % LOGGING_STEPS == 0:
                loss.item()
        times.epoch_ends.append(len(times.ends))
    return summary(times, start)


def summary(times: Any, start: float) -> Times:
    """What a training took that was called at `start`."""
    return Times(times.steady, times.ends[-1] - start, times.steady * times.epoch_ends[0])


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    options = parser(__doc__)
    for name in ("way", "shape", "place"):
        options.add_argument(f"--{name}", help="of one training, whose times are printed")
    args = options.parse_args(argv)
    if args.way:
        print(json.dumps(asdict(train(args.way, Shape(**json.loads(args.shape)), Path(args.place)))))
        return
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
