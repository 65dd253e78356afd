"""Time per step with two processes: hfexp's `launch=ddp` beside the same loop written by hand with Accelerate.

Both train the digits model on the CPU, one thread per process, batches of 16 per process; the loop by hand has all
images ready in memory. Compared is the time per step after the first epoch, seen by the first process.
"""

import json
import tempfile
from pathlib import Path

from benchmarks.harness import Report, interleave, parser, publish, ratio, scratch, silence, turns

PROCESSES, BATCH, EPOCHS, LOGGING_STEPS = 2, 16, 6, 10
OWN, BY_HAND = "hfexp launch=ddp", "Accelerate by hand"


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure both in turns."""
    report = Report("ddp", (__doc__ or "").splitlines()[0].rstrip("."))
    rounds = 1 if quick else rounds or 5
    epochs = 2 if quick else EPOCHS
    ways = {OWN: lambda: own(epochs), BY_HAND: lambda: by_hand(epochs)}
    with scratch():
        steps = {name: [1e3 * t for t in found] for name, found in interleave(ways, rounds).items()}
    title = f"Time per step, {PROCESSES} processes, {turns(rounds)}"
    report.section(title, "ms", steps, [ratio(steps, OWN, BY_HAND, limit=1.05)])
    return report


def own(epochs: int) -> float:
    """Seconds per step of hfexp."""
    from hfexp.commands import api

    path = Path("steps.json").absolute()
    with silence():
        api.train(
            "experiment=digits_vit", "transform=eval", "metrics=accuracy", "on_existing=rerun", "launch=ddp",
            f"launch.num_processes={PROCESSES}", "launch.num_threads=1", "security.allowed_targets=[benchmarks]",
            f"trainer.args.num_train_epochs={epochs}", f"trainer.args.per_device_train_batch_size={BATCH}",
            "trainer.args.eval_strategy=no", "trainer.args.save_strategy=no", "trainer.args.learning_rate=5e-4",
            "trainer.args.load_best_model_at_end=false", f"trainer.args.logging_steps={LOGGING_STEPS}",
            f"trainer.callbacks.steps={{_target_: benchmarks.steps.SavedStepTimes, path: {path}}}",
        )  # fmt: skip
    return json.loads(path.read_text())


def by_hand(epochs: int) -> float:
    """Seconds per step of the loop in `benchmarks.by_hand`, in processes that are started in the same way."""
    from benchmarks.by_hand import train
    from hfexp.commands import api
    from hfexp.core.config import LaunchConfig, Strategy
    from hfexp.experiment.preflight import load_inputs
    from hfexp.launch import workers

    rows = len(load_inputs(api.compose("experiment=digits_vit", "metrics=accuracy")).dataset["train"])
    launch = LaunchConfig(Strategy.ddp, PROCESSES, num_threads=1)
    with tempfile.TemporaryDirectory(dir=".") as place:
        return workers.start(launch, Path(place).absolute(), train, rows, BATCH, epochs, LOGGING_STEPS)


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
