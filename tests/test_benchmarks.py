"""The benchmarks work: all are listed, and in tiny sizes they run to the end. No test looks at a time."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks import demos, harness
from benchmarks.__main__ import NAMES, main
from benchmarks.startup import MARK, import_times

FAST = ("loading",)
KEPT = harness.RESULTS
SLOW = tuple(name for name in NAMES if name not in FAST)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is written to the real results."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(listed) == {p.stem for p in Path(benchmarks.__path__[0]).glob("*.py") if "\ndef run(" in p.read_text()}
    assert all(listed.values())


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["traning"])
    assert "no benchmark 'traning'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_it_runs(name: str) -> None:
    report = importlib.import_module(f"benchmarks.{name}").run(quick=True)
    assert report.name == name
    assert report.data
    assert report.ratios or name in ("digits_accuracy", "demos", "adapters", "adapting", "minilm")
    assert all(math.isfinite(value) and value > 0 for ratio in report.ratios for value in ratio.values)


def test_turns_rotate() -> None:
    calls: list[str] = []
    harness.interleave({name: lambda name=name: calls.append(name) for name in "abc"}, 3)
    assert "".join(calls) == "abcbcacab"


def test_ratios_are_taken_round_by_round() -> None:
    ratio = harness.ratio({"new": [2.0, 8.0, 3.0], "old": [1.0, 2.0, 2.0]}, "new", "old", limit=1.9)
    assert ratio.values == (2.0, 4.0, 1.5)
    assert ratio.median == 2.0
    assert ratio.verdict() == "at most 1.9: not met"


def test_a_report_is_written_only_to_be_kept(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = harness.Report("name", "Title")
    values = {"new": [1.0, 2.0], "old": [2.0, 2.0]}
    report.section("Part", "s", values, [harness.ratio(values, "old", "new", target=1.2)])
    harness.publish(report, keep=False)
    assert not results.exists()
    harness.publish(report, keep=True)
    text = (results / "name.md").read_text()
    assert "| old / new | 1.500 | 1.000, 2.000 | at least 1.2: met |" in text
    assert text in capsys.readouterr().out + "\n"
    assert (results / "name.json").is_file()


def test_imports_are_added_up_by_package() -> None:
    lines = [
        "import time: self [us] | cumulative | imported package",
        "import time:       100 |        100 |     b.inner",
        "import time:       200 |        300 |   b",
        "import time:        50 |        350 | a",
        "import time:        10 |         10 | b.late",
        MARK,
        "import time:       999 |        999 | c",
    ]
    own, whole = import_times("\n".join(lines))
    assert own == pytest.approx({"a": 50e-6, "b": 310e-6})
    assert whole == pytest.approx({"a": 350e-6, "b": 310e-6})


def kept_demos() -> dict[str, Any]:
    return json.loads((KEPT / "demos.json").read_text())


def test_the_readme_has_the_kept_results_of_every_demo() -> None:
    text = demos.README.read_text()
    assert demos.put(text, demos.shown(kept_demos())) == text
    experiments = {path.stem for path in (harness.ROOT / "conf/experiment").glob("*_demo.yaml")}
    assert experiments == {demo.name for demo in demos.DEMOS} == {name for name in kept_demos() if name in experiments}


@pytest.mark.parametrize("demo", demos.DEMOS, ids=lambda demo: demo.name)
def test_every_demo_beats_its_baselines(demo: demos.Demo) -> None:
    assert demo.beats(kept_demos()[demo.name])


def test_the_table_of_the_readme_is_replaced() -> None:
    old = f"before\n{demos.BEGIN}\n\nold\n\n{demos.END}\nbehind\n"
    assert demos.put(old, "new") == f"before\n{demos.BEGIN}\n\nnew\n\n{demos.END}\nbehind\n"


@pytest.mark.slow
def test_n_grams_are_probabilities() -> None:
    import numpy as np

    from benchmarks.baselines import VOCABULARY, interpolated

    learnt = np.random.default_rng(0).integers(0, 5, 400)
    starts = np.array([[1, 2], [3, 3], [4, 200]])
    total = np.zeros(len(starts))
    for byte in range(VOCABULARY):
        asked = np.column_stack([starts, np.full(len(starts), byte)])
        found = np.full((len(starts), 2), 1 / VOCABULARY)
        for length in range(3):
            found = interpolated(learnt, asked, length, found)
        total += found[:, 1]
    assert np.allclose(total, 1)
