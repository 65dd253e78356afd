"""The demonstrations that need no download, through the real command, beside simple baselines on the same rows.

    python -m benchmarks.demos [NAME ...]

With names, only those are trained, and the other results are kept. The table in README.md is written, too.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import baselines
from benchmarks.harness import RESULTS, ROOT, Report, parser, publish, scratch, table, train

README = ROOT / "README.md"
BEGIN, END = "<!-- demos: `make demos` writes this table -->", "<!-- end of demos -->"
QUICK = [
    "trainer.args.max_steps=2",
    *(f"dataset.max_{split}_samples=100" for split in ("train", "validation", "test")),
]
SMALL = "model.config.hidden_size=16"
"""For quick runs of models that are built from sizes."""


@dataclass(frozen=True)
class Demo:
    """An experiment, the metric that it is judged by, and what it is held against."""

    name: str
    score: str
    label: str
    """Name of the metric in README.md."""
    baselines: Callable[[list[str]], dict[str, float]]
    pretrained: bool = False

    @property
    def is_loss(self) -> bool:
        """True if a lower score is better."""
        return self.score == "perplexity"

    def beats(self, facts: dict[str, Any]) -> bool:
        """Return True if the score is better than those of all baselines."""
        score, others = facts["metrics"][f"test_{self.score}"], facts["baselines"].values()
        return score < min(others) if self.is_loss else score > max(others)


DEMOS = (
    Demo("text_classification_demo", "accuracy", "accuracy", baselines.classes),
    Demo("token_classification_demo", "f1", "F1 of tagged names", baselines.tags),
    Demo("question_answering_demo", "f1", "F1 of answers", baselines.answers),
    Demo("multiple_choice_demo", "accuracy", "accuracy", baselines.endings),
    Demo("fill_mask_demo", "perplexity", "perplexity of masked tokens", baselines.shares),
    Demo("translation_demo", "chrf", "chrF", baselines.translations),
    Demo("summarization_demo", "rougeL", "ROUGE-L", baselines.summaries),
    Demo("embedding_demo", "ndcg_at_10", "NDCG@10 of a search", baselines.searches, pretrained=True),
    Demo("reward_demo", "accuracy", "accuracy of choices", baselines.choices),
    Demo("text_generation_demo", "perplexity", "perplexity per byte", baselines.n_grams),
)


def run(rounds: int | None = None, quick: bool = False, names: Sequence[str] = ()) -> Report:
    """Train each once; with names, only those, beside the kept results of the others."""
    report = Report("demos", (__doc__ or "").splitlines()[0].rstrip("."))
    if names:
        kept = json.loads((RESULTS / "demos.json").read_text())
        report.data |= {demo.name: kept[demo.name] for demo in DEMOS if demo.name in kept and demo.name not in names}
    with scratch() as place:
        for demo in DEMOS:
            if demo.name in names or not names:
                report.data[demo.name] = measure(demo, place, quick)
    report.blocks.append(shown(report.data))
    report.blocks.append("Each was trained once, with the seed of the configuration; choices were made on validation.")
    return report


def measure(demo: Demo, place: Path, quick: bool) -> dict[str, Any]:
    """Train one, and score its baselines."""
    words = [*QUICK, *([] if demo.pretrained else [SMALL])] if quick else []
    seconds, found = train([f"experiment={demo.name}", *words], place / demo.name)
    compared = demo.baselines([f"experiment={demo.name}", *words])
    return {"seconds": seconds, "metrics": found, "baselines": compared}


def shown(found: dict[str, Any]) -> str:
    """The table of README.md."""
    rows = []
    for demo in DEMOS:
        if demo.name in found:
            facts = found[demo.name]
            score = f"{demo.label} {figure(facts['metrics'][f'test_{demo.score}'])}"
            compared = ", ".join(f"{what} {figure(value)}" for what, value in facts["baselines"].items())
            rows.append([f"`hfexp experiment={demo.name}`", score, compared, f"{facts['seconds']:.0f} s"])
    lines = table(["command", "test split", "baselines", "total time, 2 CPU cores"], rows).splitlines()
    return "\n".join([lines[0], "|---|---|---|--:|", *lines[2:]])


def figure(value: float) -> str:
    """Three digits: 0.970, 4.73, 279."""
    return f"{value:#.3g}".rstrip(".")


def put(text: str, content: str) -> str:
    """Put the table between the two comments of README.md."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(demo.name for demo in DEMOS))
    args = options.parse_args(argv)
    unknown = set(args.names) - {demo.name for demo in DEMOS}
    if unknown:
        options.error(f"no demo {min(unknown)!r}; there are: {', '.join(demo.name for demo in DEMOS)}")
    report = run(args.rounds, args.quick, args.names)
    publish(report, keep=not args.quick)
    if not args.quick:
        README.write_text(put(README.read_text(), shown(report.data)))


if __name__ == "__main__":
    main()
