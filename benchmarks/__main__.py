"""Runs benchmarks by name: `python -m benchmarks [NAME...] [--quick] [--rounds N]`; without a name, all of them.

Results are written to benchmarks/results/, unless --quick.
"""

import importlib
import subprocess
import sys

from benchmarks.harness import ROOT, parser

NAMES = (
    "training",
    "loading",
    "large",
    "predicting",
    "startup",
    "small_jobs",
    "memory",
    "memory_evaluation",
    "memory_reuse",
    "side_by_side",
    "ddp",
    "tracking_cost",
    "compare_runs",
    "digits_accuracy",
    "demos",
    "adapters",
    "adapting",
    "minilm",
    "launchers",
    "sweeps",
    "search",
)


def main(argv: list[str] | None = None) -> int:
    """List benchmarks, or run them; the exit code tells whether all ran."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    options.add_argument("--list", action="store_true", help="list the benchmarks")
    args = options.parse_args(argv)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        options.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    if args.list:
        for name in NAMES:
            print(f"{name:16} {summary(name)}")
        return 0
    words = ["--quick"] if args.quick else []
    words += ["--rounds", str(args.rounds)] if args.rounds else []
    return max(start(name, words) for name in args.names or NAMES)


def summary(name: str) -> str:
    """The first line of a benchmark's description."""
    return (importlib.import_module(f"benchmarks.{name}").__doc__ or "").splitlines()[0].rstrip(".:")


def start(name: str, words: list[str]) -> int:
    """Run one in a process of its own, which no other has warmed up; returns its exit code."""
    print(f"{name}: {summary(name)}", file=sys.stderr, flush=True)
    return subprocess.run([sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *words], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
