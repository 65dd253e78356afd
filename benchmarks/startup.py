"""Time from the shell's command to help, configuration and first step, and what was imported on the way.

Whole processes in turns. The first step of a run on the digits is held against a script that imports the same
libraries (torch, Transformers' Trainer, datasets, Hydra, MLflow's client), builds the same model and data, and does
nothing else. The store of runs exists already, as it does for all runs but the very first.
"""

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import ROOT, Report, interleave, parser, publish, ratio, scratch, table, turns

ROUNDS, FIRST_STEP_ROUNDS = 9, 7
OWN, BARE, RECORDED = "hfexp, one step", "script, one step", "script with an MLflow run, one step"
HYDRA = "python -c 'import hydra'"
SHOWN = 15
WATCHED = (
    "sklearn", "pandas", "matplotlib", "scipy", "evaluate", "tensorflow", "flask", "sqlalchemy", "alembic", "timm",
    "peft", "optuna", "IPython",
)  # fmt: skip
"""Packages that a first step on images should hardly need."""
MARK = "first step ended:"
"""As `benchmarks.steps.FirstStep` prints it; importing that module here would import Transformers."""
APP = """
import hydra

@hydra.main(version_base=None, config_path=None)
def main(cfg):
    pass

main()
"""
RUN = (
    "experiment=digits_vit", "debug=fast", "trainer.args.max_steps=1", "on_existing=rerun",
    "trainer.callbacks.first_step={_target_: benchmarks.steps.FirstStep}", "security.allowed_targets=[benchmarks]",
)  # fmt: skip


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure commands, the first step and the imports."""
    report = Report("startup", (__doc__ or "").splitlines()[0].rstrip("."))
    with scratch() as place:
        (place / "empty.py").write_text(APP)
        measure_commands(report, 1 if quick else rounds or ROUNDS)
        measure_first_step(report, 1 if quick else rounds or FIRST_STEP_ROUNDS, warm=not quick)
        if not quick:
            show_imports(report)
    return report


def command(*words: str) -> list[str]:
    """hfexp as the shell finds it."""
    return [str(Path(sys.executable).parent / "hfexp"), *words]


def measure_commands(report: Report, rounds: int) -> None:
    """What a person waits for before anything is trained."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        HYDRA: [sys.executable, "-c", "import hydra"],
        "empty Hydra app --cfg job": [sys.executable, "empty.py", "--cfg", "job"],
        "hfexp --help": command("--help"),
        "hfexp --cfg job": command("--cfg", "job"),
    }
    for words in commands.values():
        seconds(words)
    found = interleave({name: _timed(words) for name, words in commands.items()}, rounds)
    report.section(
        f"Commands, {turns(rounds)}",
        "s",
        found,
        [
            ratio(found, "hfexp --cfg job", HYDRA, limit=2),
            ratio(found, "hfexp --help", HYDRA),
            ratio(found, "empty Hydra app --cfg job", HYDRA),
        ],
        ".3f",
    )


def _timed(words: list[str]) -> Callable[[], float]:
    return lambda: seconds(words)


def seconds(words: list[str]) -> float:
    """A process from start to end."""
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure_first_step(report: Report, rounds: int, warm: bool) -> None:
    """From the start of the process to the end of the first optimizer step."""
    store = f"sqlite:///{Path('outputs/mlflow.db').absolute()}"
    ways = {
        OWN: lambda: first_step(command(*RUN))[0],
        BARE: lambda: first_step(bare())[0],
        RECORDED: lambda: first_step([*bare(), store])[0],
    }
    for way in ways.values() if warm else ():
        way()
    found = interleave(ways, rounds)
    title = f"Start to the end of the first step, {turns(rounds)}"
    report.section(title, "s", found, [ratio(found, OWN, BARE, limit=1.15), ratio(found, OWN, RECORDED)])


def bare(*flags: str) -> list[str]:
    """The script."""
    return [sys.executable, *flags, "-m", "benchmarks.bare_start"]


def first_step(words: list[str]) -> tuple[float, str]:
    """Seconds from the start of a process to the end of its first step, and its error stream.

    Raises:
        RuntimeError: it took no step.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.time()
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return float(line.removeprefix(MARK)) - start, done.stderr
    raise RuntimeError(f"{' '.join(words)} took no step:\n{done.stderr[-3000:]}")


def show_imports(report: Report) -> None:
    """What each takes to import until its first step."""
    variants = {OWN: [sys.executable, "-X", "importtime", "-m", "hfexp", *RUN], BARE: bare("-X", "importtime")}
    report.blocks += [
        "## Imports before the first step",
        "By `python -X importtime`, which makes imports slower: for comparison among themselves. Own: the modules of "
        "the package; with all: what its outermost import took, with everything that it imports for the first time.",
    ]
    report.data["imports"] = {}
    for name, words in variants.items():
        own, whole = import_times(first_step(words)[1])
        total = sum(own.values())
        most = sorted(own, key=lambda package: -own[package])[:SHOWN]
        rows = [[package, f"{own[package]:.2f}", f"{whole[package]:.2f}"] for package in most]
        report.blocks.append(table([f"{name}: {total:.1f} s in all", "own, s", "with all, s"], rows))
        watched = {package: round(whole[package], 3) for package in WATCHED if package in own}
        listed = ", ".join(f"{package} {own[package]:.2f} ({whole[package]:.2f})" for package in watched)
        report.blocks.append(f"Imported before the first step though of little use to it, own (with all), s: {listed}")
        report.data["imports"][name] = {"total": total, "own": {p: own[p] for p in most}, "watched": watched}


def import_times(text: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by top-level package until the mark: of its own modules, and of its outermost imports with all below.

    `-X importtime` writes a line when an import is done, so that a module comes after all that it imported; two
    spaces more stand for one level deeper.
    """
    own: dict[str, float] = defaultdict(float)
    whole: dict[str, float] = defaultdict(float)
    above: list[str] = []
    for line in reversed(text.partition(MARK)[0].splitlines()):
        parts = line.removeprefix("import time:").split("|")
        if not line.startswith("import time:") or not parts[0].strip().isdigit():
            continue
        depth = (len(parts[2]) - len(parts[2].lstrip()) - 1) // 2
        package = parts[2].strip().partition(".")[0]
        own[package] += int(parts[0]) / 1e6
        del above[depth:]
        if package not in above:
            whole[package] += int(parts[1]) / 1e6
        above.append(package)
    return own, whole


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
