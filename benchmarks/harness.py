"""What the benchmarks share: turns, ratios with their spread, tables, facts about the machine, and writing."""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "torchvision", "transformers", "datasets", "mlflow", "hydra-core")
T = TypeVar("T")


@dataclass(frozen=True)
class Ratio:
    """One variant's values over another's, round by round, and what they are held against."""

    label: str
    values: tuple[float, ...]
    limit: float | None = None
    """At most this."""
    target: float | None = None
    """At least this."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def verdict(self) -> str:
        """The bound and whether the median keeps it."""
        if self.limit is not None:
            return f"at most {self.limit:g}: {'met' if self.median <= self.limit else 'not met'}"
        if self.target is not None:
            return f"at least {self.target:g}: {'met' if self.median >= self.target else 'not met'}"
        return ""

    def row(self) -> list[str]:
        form = ".3f" if self.median < 10 else ".1f"
        return [self.label, f"{self.median:{form}}", spread(self.values, form), self.verdict()]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        bounds = {"limit": self.limit, "target": self.target}
        facts = {"median": self.median, "min": min(self.values), "max": max(self.values), "rounds": list(self.values)}
        return facts | {name: bound for name, bound in bounds.items() if bound is not None}


def ratio(
    values: Mapping[str, list[float]],
    above: str,
    below: str,
    limit: float | None = None,
    target: float | None = None,
) -> Ratio:
    """`above` over `below`: values of the same round stood under the same load of the machine."""
    pairs = zip(values[above], values[below], strict=True)
    return Ratio(f"{above} / {below}", tuple(a / b for a, b in pairs), limit, target)


@dataclass
class Report:
    """The result of a benchmark: blocks of Markdown, and the same as data."""

    name: str
    title: str
    blocks: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)

    def section(
        self, title: str, unit: str, values: Mapping[str, list[float]], ratios: Iterable[Ratio] = (), form: str = ".2f"
    ) -> None:
        """A table of the variants' medians, and one of their ratios."""
        rows = [[name, f"{statistics.median(v):{form}}", spread(v, form)] for name, v in values.items()]
        self.blocks += [f"## {title}", table(["", f"{unit} (median)", "from, to"], rows)]
        self.data[title] = {"unit": unit, "values": {name: list(v) for name, v in values.items()}}
        found = list(ratios)
        if found:
            self.blocks.append(table(["ratio", "median", "from, to", "bound"], [r.row() for r in found]))
            self.data[title]["ratios"] = {r.label: r.facts() for r in found}
        self.ratios += found

    def text(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in versions().items())
        return "\n\n".join([f"# {self.title}", *self.blocks, f"{machine_line()}.\n{facts}."])


def publish(report: Report, keep: bool) -> None:
    """Print the report and, if it is to be kept, write it to benchmarks/results/."""
    text = report.text()
    print(f"\n{text}", flush=True)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        content = {"name": report.name, "machine": machine(), "versions": versions(), **report.data}
        (RESULTS / f"{report.name}.md").write_text(text + "\n")
        (RESULTS / f"{report.name}.json").write_text(json.dumps(content, indent=1) + "\n")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="tiny sizes, one round, nothing written: does it work?")
    options.add_argument("--rounds", type=int, help="turns of each variant (default: the benchmark's own number)")
    return options


def interleave(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every way once per round; the order rotates, so that none always follows the same one."""
    results: dict[str, list[T]] = {name: [] for name in ways}
    order = list(ways.items())
    for number in range(rounds):
        start = number % len(order)
        for name, way in order[start:] + order[:start]:
            results[name].append(way())
            print(f"  round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
    return results


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary current directory with caches of its own; libraries do not reach for the network meanwhile."""
    own = ("HF_DATASETS_CACHE", "HFEXP_CACHE", "MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE", "MLFLOW_DISABLE_TELEMETRY")
    before = {name: os.environ.pop(name, None) for name in own}
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        place = Path(directory).resolve()
        values = (place / "datasets", place / "cache", None, "1", "true")
        os.environ.update({name: str(value) for name, value in zip(own, values, strict=True) if value})
        try:
            yield place
        finally:
            for name in own:
                os.environ.pop(name, None)
            os.environ.update({name: value for name, value in before.items() if value is not None})


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without the output and the warnings of what is measured."""
    out, error = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with out, error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def child(words: list[str], **environment: str) -> str:
    """What a Python process of this environment prints; it can import `benchmarks`.

    Raises:
        RuntimeError: it failed; the message is the end of its error stream.
    """
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def train(words: list[str], place: Path) -> tuple[float, dict[str, float]]:
    """Train by the command with outputs and caches at a new place; return its seconds and what it has measured."""
    place.mkdir()
    start = time.perf_counter()
    child(["-m", "hfexp", *words, f"output_dir={place / 'outputs'}"], HFEXP_CACHE=str(place))
    seconds = time.perf_counter() - start
    (results,) = place.glob("outputs/*/*/artifacts/results.json")
    return seconds, json.loads(results.read_text())


def with_interval(values: list[float], places: int = 3) -> str:
    """Mean and half of its 95 % interval (Student's t)."""
    from hfexp.sweep.trials import estimate

    found = estimate(values)
    if found.interval is None:
        return f"{found.mean:.{places}f}"
    return f"{found.mean:.{places}f} ± {found.interval[1] - found.mean:.{places}f}"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Markdown; all columns but the first to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(values: Iterable[float], form: str) -> str:
    """Least and greatest."""
    found = list(values)
    return f"{min(found):{form}}, {max(found):{form}}"


def turns(rounds: int) -> str:
    """`1 round`, `5 rounds`."""
    return f"{rounds} round{'s' if rounds != 1 else ''}"


def machine() -> dict[str, Any]:
    """Where it was measured; nothing that names the machine itself."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = {"cores": os.cpu_count(), "cpu": _cpu(), "memory_gb": round(memory, 1), "platform": platform.machine()}
    return facts | {"system": platform.system()}


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def machine_line() -> str:
    facts = machine()
    return f"{facts['cores']} CPU cores ({facts['cpu']}, {facts['platform']}), {facts['memory_gb']} GB of memory"


def versions() -> dict[str, str]:
    """Of Python and the libraries that decide the numbers."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
