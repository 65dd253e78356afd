"""`hfexp evaluate`: trained models on other data and splits, with intervals and slices, recorded with their run."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from conftest import encoded_digits

from hfexp import evaluate
from hfexp.commands import cli
from hfexp.commands.evaluate import parse
from hfexp.core.errors import ConfigError
from hfexp.data.sources import digits
from hfexp.inference import evaluation
from hfexp.inference.evaluation import bootstrap, class_names, score_slices
from hfexp.tasks.metrics import Accuracy, FunctionMetric, MetricSet


@pytest.fixture
def home(trained: tuple[Path, Any]) -> Path:
    """The directory in which a small model was trained."""
    return trained[0]


@pytest.fixture
def run(home: Path, place: Path) -> str:
    """The name of its run; what is recorded goes to a copy."""
    shutil.copytree(home / "outputs", place / "outputs", symlinks=True)
    (directory,) = home.glob("outputs/digits/*-s42-*")
    return directory.name.rpartition("-")[0]


def results(home: Path) -> dict[str, float]:
    return json.loads(next(home.glob("outputs/digits/*/artifacts/results.json")).read_text())


@pytest.mark.parametrize(
    ("split", "prefix"), [("test", "test"), pytest.param("validation", "final_eval", marks=pytest.mark.slow)]
)
def test_the_splits_of_a_run_give_what_the_run_has_recorded(run: str, home: Path, split: str, prefix: str) -> None:
    table = evaluate(run=run, split=split, resamples=0, record=False)
    known = {
        name.removeprefix(f"{prefix}_"): value for name, value in results(home).items() if name.startswith(prefix)
    }
    found = dict(zip(table["metric"], table["value"], strict=True))
    assert len(found) > 5
    assert {name: known[name] for name in found} == pytest.approx(found, abs=1e-6)
    assert set(table["rows"]) == {40}


def test_scores_are_recorded_with_the_run_and_its_data(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # as after a kill
        assert cli.main(["evaluate", f"run={run}", "by=label", "resamples=50", "output=all.json"]) == 0
    shown = capsys.readouterr().out
    assert f"{run} on digits-test, 40 rows" in shown
    assert "accuracy by slice" in shown
    assert "label=3" in shown
    client = mlflow.MlflowClient(f"sqlite:///{Path('outputs/mlflow.db').absolute()}")
    (recorded,) = client.search_runs(["1"], f"attributes.run_name = '{run}'")
    assert recorded.info.status == "FINISHED"
    assert recorded.data.metrics["evaluations/digits-test/accuracy"] == recorded.data.metrics["test_accuracy"]
    assert len(client.get_metric_history(recorded.info.run_id, "evaluations/digits-test/accuracy")) == 1
    kept = [item.path for item in client.list_artifacts(recorded.info.run_id, "evaluations")]
    assert kept == ["evaluations/digits-test.json"]
    content = json.loads(Path("all.json").read_text())
    assert content["split"] == "test"
    assert {row["slice"] for row in content["slices"]} >= {"all", "label=0", "label=9"}
    accuracy = next(row for row in content["slices"] if row["metric"] == "accuracy")
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def test_another_dataset_is_scored_by_the_classes_of_the_model(run: str) -> None:
    import datasets

    for split, label in (("one", "1"), ("two", "2")):
        (Path("new") / label).mkdir(parents=True)
        rows = (
            digits()
            .cast_column("image", datasets.Image(decode=False))
            .filter(lambda row, n=int(label): row["label"] == n)
        )
        for number, row in enumerate(map(dict, rows.select(range(4)))):
            (Path("new") / label / f"{split}{number}.png").write_bytes(row["image"]["bytes"])
    words = ("dataset=imagefolder", "dataset.source.data_dir=new")
    table = evaluate(*words, run=run, resamples=0)
    assert set(table["rows"]) == {8}
    client = mlflow.MlflowClient(f"sqlite:///{Path('outputs/mlflow.db').absolute()}")
    (recorded,) = client.search_runs(["1"], f"attributes.run_name = '{run}'")
    named = {entry.dataset.name: [tag.value for tag in entry.tags] for entry in recorded.inputs.dataset_inputs}
    assert named.get("imagefolder-new-all") == ["evaluation"], named
    # Other rows of the same name get another one; a source with nothing but a test split is scored as it is.
    next(Path("new").glob("2/*.png")).unlink()
    for label in ("1", "2"):
        shutil.move(Path("new") / label, Path("new/test") / label)
    with pytest.raises(ConfigError, match="no training split"):
        evaluate(*words, run=run, split="validation", resamples=0)
    evaluate(*words, "split=test", name="imagefolder-new-all", run=run, resamples=0)
    (recorded,) = client.search_runs(["1"], f"attributes.run_name = '{run}'")
    names = [entry.dataset.name for entry in recorded.inputs.dataset_inputs if "imagefolder" in entry.dataset.name]
    assert len(names) == 2
    assert {"imagefolder-new-all"} < set(names)
    shutil.move("new/test/1", "new/1")
    shutil.move("new/test/2", "new/2")
    Path("new/test").rmdir()
    (Path("new") / "eleven").mkdir()
    shutil.copy(next(Path("new/1").glob("*.png")), "new/eleven/a.png")
    with pytest.raises(ConfigError, match="unknown label 'eleven'"):
        evaluate(*words, run=run, resamples=0)


def test_slices_are_named_as_the_columns_of_the_source(run: str) -> None:
    Path("new").mkdir()
    lines = ["file,digit,writer"]
    for number, content in enumerate(encoded_digits(12)):
        Path(f"new/{number}.png").write_bytes(content)
        lines.append(f"new/{number}.png,{number % 10},{'ab'[number % 2]}")
    Path("rows.csv").write_text("\n".join(lines))
    source = ("dataset=csv", "dataset.source.data_files=rows.csv", "dataset.source.image_column=file")
    table = evaluate(*source, "dataset.columns.label=digit", run=run, by="digit,writer", resamples=0, record=False)
    counts = {name: int(rows.iloc[0]) for name, rows in table.groupby("slice")["rows"]}
    digits_of = {f"digit={digit}": 2 if digit < 2 else 1 for digit in range(10)}
    assert counts == {"all": 12, "writer=a": 6, "writer=b": 6, **digits_of}


def copied_directory() -> Path:
    """A run's directory with a configuration of somebody else's."""
    shutil.copytree(next(path.parent for path in Path().glob("outputs/digits/*/run.json")), "copied", symlinks=True)
    shutil.copy("config.yaml", "copied/config.yaml")
    return Path("copied")


def test_a_run_whose_directory_is_gone_is_scored_by_its_record(run: str, home: Path) -> None:
    expected = {row["metric"]: row["value"] for row in evaluate(run=run, resamples=0).to_dict("records")}
    client = mlflow.MlflowClient(f"sqlite:///{Path('outputs/mlflow.db').absolute()}")
    (recorded,) = client.search_runs(["1"], f"attributes.run_name = '{run}'")
    client.set_tag(recorded.info.run_id, "hfexp.run_dir", str(Path("gone").absolute()))
    table = evaluate(run=run, resamples=0, record=False)
    assert {row["metric"]: row["value"] for row in table.to_dict("records")} == expected
    # It is data from outside by now: what it would build must be hfexp's own.
    original = next(Path().glob("outputs/digits/*/config.yaml"))
    config = yaml.safe_load(original.read_text())
    config["dataset"]["source"] = {"_target_": "tempfile.mkdtemp"}
    config["security"]["allowed_targets"] = ["tempfile"]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    client.log_artifact(recorded.info.run_id, "config.yaml")
    for named in (run, copied_directory()):
        with pytest.raises(ConfigError, match=r"not known to be yours, and its dataset .* built by tempfile\.mkdtemp"):
            evaluate("dataset.max_test_samples=5", run=named, resamples=0, record=False)
    client.log_artifact(recorded.info.run_id, str(original))  # the store keeps files where the other tests find them


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["split=tset"], "expected one of all, test, train, validation"),
        (["by=colour"], "has no column 'colour'"),
        (["resample=3"], "Did you mean 'resamples'"),
        (["resamples=many"], "a whole number"),
        (["sweep=x"], "give one of them"),
        (["dataset.streaming=true"], "streams can't be scored"),
    ],
)
def test_wrong_words_are_refused(run: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert cli.main(["evaluate", f"run={run}", "record=false", *words]) == 2
    assert message in capsys.readouterr().err


def test_settings_are_told_apart_from_words_of_the_configuration() -> None:
    settings, composed = parse(["run=x", "dataset=csv", "dataset.columns.a=b", "record=false", "batch_size=7"])
    assert (settings.run, settings.record, settings.batch_size) == ("x", False, 7)
    assert composed == ["dataset=csv", "dataset.columns.a=b"]


def test_classes_are_told_by_their_numbers() -> None:
    assert class_names({0: "a", 2: "c", 1: "b"}, "x") == ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"x has several classes of the same name \(crane\)"):
        class_names({0: "crane", 1: "b", 2: "crane"}, "x")
    with pytest.raises(ConfigError, match="class ids must be 0, 1, 2"):
        class_names({1: "a", 2: "b"}, "x")


def test_intervals_hold_what_they_promise() -> None:
    """Of a share of 0.7 in 200 rows, by the normal approximation: 0.7 +- 1.96 sqrt(0.7 x 0.3 / 200)."""
    right = np.array([1.0] * 140 + [0.0] * 60)
    share = MetricSet({"share": FunctionMetric("share", lambda right: right.mean())})
    score = bootstrap({"right": right}, np.arange(200), share, 2000, 0)["share"]
    half = 1.96 * math.sqrt(0.7 * 0.3 / 200)
    assert score.value == 0.7
    assert score.low == pytest.approx(0.7 - half, abs=0.012)
    assert score.high == pytest.approx(0.7 + half, abs=0.012)
    again = bootstrap({"right": right}, np.arange(200), share, 2000, 0)["share"]
    assert again == score
    parts = score_slices({"right": right}, share, {"half": ["a"] * 140 + ["b"] * 60}, 0, 0)
    assert [(part.name, part.rows, part.scores["share"].value) for part in parts] == [
        ("all", 200, 0.7), ("half=a", 140, 1.0), ("half=b", 60, 0.0),
    ]  # fmt: skip
    assert math.isnan(parts[0].scores["share"].low)
    with pytest.raises(ConfigError, match="200 different values"):
        score_slices({"right": right}, share, {"id": list(range(200))}, 0, 0)


def test_predictions_of_batches_are_those_of_all_rows_in_their_order() -> None:
    def collected(*batches: Any) -> Any:
        predictions = evaluation._Predictions(4)
        for batch in batches:
            predictions.add(batch)
        return predictions.all()

    first, wide = np.array([[1, 2], [3, 4]], np.int32), np.array([[5, 6, 7]], np.int32)
    assert collected(first, first).tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert collected(first, wide, wide[:, :2]).tolist() == [[1, 2, -100], [3, 4, -100], [5, 6, 7], [5, 6, -100]]
    scores, texts = collected((first, wide), (first, wide[:, :1]))
    assert scores.tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert texts.tolist() == [[5, 6, 7], [5, -100, -100]]
    assert collected(np.array([0.5, 1.5]), np.array([2.5])).tolist() == [0.5, 1.5, 2.5]


def test_resamples_are_the_same_however_many_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.arange(50) % 3 == 0
    arrays = {"predictions": right.astype(np.int64), "references": np.ones(50, np.int64)}
    found = []
    for size in (50, 175, 2**20):
        monkeypatch.setattr(evaluation, "AT_ONCE", size)
        found.append(bootstrap(arrays, np.arange(50), MetricSet({"accuracy": Accuracy()}), 40, 3))
    assert found[0] == found[1] == found[2]
