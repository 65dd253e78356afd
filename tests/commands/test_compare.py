"""Comparing recorded runs: choosing, ranking, showing; the stores are written by MLflow's client, without training."""

import csv
import io
import json
import math
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorded import Store

from hfexp.commands.compare import main
from hfexp.commands.ranking import rank
from hfexp.core.errors import ConfigError, RunError
from hfexp.tracking import runs as chosen
from hfexp.tracking import runs as records
from hfexp.tracking.runs import RunRecord, metric_history, newest_run, read_runs

NO_FILTER = "attributes.status LIKE '%'"
"""True for all runs: makes the client read them."""


TAGS = {"hfexp.metric": "test_accuracy", "hfexp.metric_direction": "max"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three experiments; `digits` is the newest. One database for all tests: they only read."""
    store = Store(tmp_path_factory.mktemp("store") / "mlflow.db")
    other = store.experiment("other")
    store.run(other, "plain-a", {"x": 1}, {"score": 0.5, "eval_runtime": 3.0})
    store.run(other, "plain-b", {"x": 2}, {"score": 0.7, "eval_runtime": 2.0})
    store.run(other, "twice")
    store.run(other, "twice", status="KILLED")
    gone = store.experiment("gone")
    store.run(gone, "in-gone")
    store.client.delete_experiment(gone)
    digits = store.experiment("digits")
    parent = store.run(digits, "sweep", {}, {"best_test_accuracy": 0.9})
    common = {"model.path": "vit", "dataset.source.path": "digits", "tracking.tags.n": 0}
    for seed, (rate, accuracy) in enumerate([(1e-5, 0.8), (1e-4, 0.9), (1e-3, 0.9), (1e-2, math.nan)]):
        params = {**common, "trainer.args.learning_rate": rate, "name": f"run-{seed}", "output_dir": f"o{seed}"}
        params |= {"tracking.tags.n": seed, "seed": seed % 2, "trainer.args.optim": ["sgd", "adamw"][seed % 2]}
        metrics = {"test_accuracy": accuracy, "test_loss": 1 - rate, "test_runtime": 0.1 * seed}
        metrics |= {"eval_accuracy": [0.1, 0.5, accuracy], "final_eval_accuracy": 0.8 + seed / 100}
        run_id = store.run(digits, f"run-{seed}", params, metrics, {**TAGS, "mlflow.parentRunId": parent})
        store.dataset(run_id, f"d{seed // 2}", "train", '{"num_rows": 96}')
        store.dataset(run_id, "t", "test", "no json")
    deleted = store.run(digits, "run-deleted", {"deleted": 1}, {"test_accuracy": 1.0})
    store.client.delete_run(deleted)
    odd = {"inf": math.inf, "minus_inf": -math.inf, "loss": 1.0}
    store.run(digits, "run-odd", {"text": "a|b\nc"}, odd, {"mlflow.parentRunId": parent}, status=None)
    return store


@pytest.fixture
def compare(store: Store, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command on the store; what it prints."""

    def run(*words: str, err: bool = False) -> str:
        assert main([*words, "--uri", store.uri]) == 0
        printed = capsys.readouterr()
        return printed.err if err else printed.out

    return run


def as_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def names(runs: list[RunRecord]) -> list[str]:
    return [run.name for run in runs]


def run_id(store: Store, name: str) -> str:
    [found] = [run.run_id for run in read_runs(store.uri) if run.name == name]
    return found


# --- names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("last", "run-3"),  # run-odd, the newest, has not finished
        ("best", "run-2"),  # as good as run-1, and newer
        ("best:digits", "run-2"),
        ("run-o", "run-odd"),
        ("plain-a", "plain-a"),
    ],
)
def test_short_names_of_runs(store: Store, name: str, meant: str) -> None:
    assert chosen.find_one(store.uri, name).name == meant


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain", "'plain' matches 2 runs"),
        ("best:other", "best:other: no finished run of this experiment has recorded how good its model is"),
        ("best:digts", "there is no such experiment. Did you mean 'digits'?"),
        ("nothing", "last is the newest finished run"),
    ],
)
def test_short_names_that_mean_nothing(store: Store, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        chosen.find_one(store.uri, name)


def test_the_best_run_by_a_metric_to_minimise_and_none_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "mlflow.db")
    experiment = store.experiment("texts")
    with pytest.raises(ConfigError, match="no run has finished yet"):
        chosen.find_one(store.uri, "last")
    tags = {"hfexp.metric": "final_eval_perplexity", "hfexp.metric_direction": "min"}
    for name, value in (("a", 5.0), ("b", 4.0), ("c", math.nan)):
        store.run(experiment, name, metrics={"final_eval_perplexity": value}, tags=tags)
    store.run(experiment, "sweep", metrics={"final_eval_perplexity": 1.0}, tags={**tags, "hfexp.kind": "sweep"})
    store.run(experiment, "pruned", metrics={"final_eval_perplexity": 2.0}, tags={**tags, "hfexp.pruned": "4"})
    store.run(experiment, "somebody's own")
    assert chosen.find_one(store.uri, "best").name == "b"
    assert chosen.find_one(store.uri, "last").name == "somebody's own"
    store.run(experiment, "last", status=None)
    assert chosen.find_one(store.uri, "last").name == "last", "an exact name comes first"


# --- reading


@pytest.mark.parametrize("experiment", [None, "digits", "other", "gone", "nowhere"])
def test_database_and_client_give_the_same_records(store: Store, experiment: str | None) -> None:
    direct, client = read_runs(store.uri, experiment), records._client_runs(store.uri, experiment)
    # As text, since NaN is not equal to itself; params and so on come in no particular order.
    for run in direct + client:
        run.params, run.metrics, run.tags = (dict(sorted(d.items())) for d in (run.params, run.metrics, run.tags))
    assert repr(direct) == repr(client)
    assert len(direct) == {None: 10, "digits": 6, "other": 4}.get(experiment, 0)


def test_records_hold_what_was_logged(store: Store) -> None:
    runs = {run.name: run for run in read_runs(store.uri)}
    run = runs["run-3"]
    assert math.isnan(run.metrics["test_accuracy"])
    assert run.params["trainer.args.learning_rate"] == "0.01"
    assert run.inputs[1] == {"name": "digits", "digest": "d1", "context": "train", "rows": 96}
    assert run.inputs[0]["rows"] is None
    assert run.seconds == 30.5
    assert (run.experiment, run.status) == ("digits", "FINISHED")
    odd = runs["run-odd"]
    assert (odd.metrics["inf"], odd.metrics["minus_inf"]) == (math.inf, -math.inf)
    assert (odd.status, odd.end_time, odd.seconds) == ("RUNNING", None, None)


def test_newest_run_and_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(read_runs(store.uri, "digits"))[:2] == ["run-odd", "run-3"]
    newest = newest_run(store.uri)
    assert newest is not None
    assert newest.params == {"text": "a|b\nc"}
    monkeypatch.setattr(records, "_in_database", lambda uri, read: None)  # as for a server
    assert newest_run(store.uri) == newest


def test_runs_by_id(store: Store) -> None:
    chosen = [run_id(store, "run-1"), run_id(store, "plain-a"), "0" * 32, "it's"]
    assert names(read_runs(store.uri, run_ids=chosen)) == ["run-1", "plain-a"]
    assert names(read_runs(store.uri, run_ids=chosen, where="params.seed = '1'")) == ["run-1"]
    assert read_runs(store.uri, run_ids=[]) == []
    assert read_runs(store.uri, run_ids=[], where=NO_FILTER) == []


def test_metric_history(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_id(store, "run-1")
    assert metric_history(store.uri, run, "eval_accuracy") == [(0, 0.1), (1, 0.5), (2, 0.9)]
    assert metric_history(store.uri, run, "nothing") == []
    monkeypatch.setattr(records, "_in_database", lambda uri, read: None)
    assert metric_history(store.uri, run, "eval_accuracy") == [(0, 0.1), (1, 0.5), (2, 0.9)]


@pytest.mark.parametrize(
    "where",
    [
        "metrics.test_accuracy > 0.85",
        "metrics.test_accuracy < 0.85",
        "params.seed = '1' and metrics.test_loss <= 0.9999",
        "params.`trainer.args.optim` != 'sgd'",
        "tags.hfexp.metric = 'test_accuracy'",
        "attributes.status = 'RUNNING'",
        "attributes.run_name LIKE 'run-%'",
        "attributes.run_name != 'run-1' and metrics.test_accuracy != 0.9",
        "attributes.start_time > 1700000100000",
        "attributes.end_time < 1700000300000",
        "metrics.inf > 5",
        "params.seed IS NULL",
        "tags.`hfexp.metric` IS NOT NULL and run_id != 'x'",
        "datasets.digest = 'd1'",
    ],
)
def test_filter_equals_the_clients(store: Store, where: str) -> None:
    ids = [experiment.experiment_id for experiment in store.client.search_experiments()]
    expected = [run.info.run_id for run in store.client.search_runs(ids, where)]
    assert [run.run_id for run in read_runs(store.uri, where=where)] == expected


@pytest.mark.parametrize("where", ["test_accuracy", "metrics.a > 'x'", "params.seed = 1", "x.y = 'z'", "metrics.a >"])
def test_wrong_filter_is_one_clear_error(store: Store, where: str) -> None:
    with pytest.raises(ConfigError, match="is not valid in MLflow") as error:
        main(["--where", where, "--uri", store.uri])
    assert where in str(error.value)
    assert "\n" not in str(error.value)


def test_pages_are_read_to_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PAGE", 3)
    assert len(records._client_runs(store.uri)) == 10


def test_tables_of_another_shape_go_through_the_client(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "mlflow.db"
    shutil.copy(store.path, copy)
    with sqlite3.connect(copy) as connection:
        connection.execute("ALTER TABLE input_tags RENAME TO other_tags")
    connection.close()
    with pytest.raises(RunError, match="can't be read"):  # nor can the client read this one
        read_runs(f"sqlite:///{copy}")


def test_write_ahead_log_and_a_writer_in_the_middle(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "mlflow.db"
    shutil.copy(store.path, copy)
    writer = sqlite3.connect(copy)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("UPDATE runs SET name = 'committed' WHERE name = 'plain-a'")
    writer.commit()
    writer.execute("UPDATE runs SET name = 'not yet' WHERE name = 'plain-b'")
    found = names(read_runs(f"sqlite:///{copy}", "other"))
    writer.close()
    assert set(found) == {"committed", "plain-b", "twice"}


def test_store_in_a_directory_with_an_odd_name(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "a store #1, 50%" / "mlflow.db"
    copy.parent.mkdir()
    shutil.copy(store.path, copy)
    uri = f"sqlite:///{copy}"
    assert len(read_runs(uri)) == len(read_runs(uri, where=NO_FILTER)) == 10
    assert [path.name for path in tmp_path.iterdir()] == [copy.parent.name]


def test_stores_are_never_written(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = store.path.read_bytes()
    main(["--uri", store.uri])
    main(["--uri", store.uri, "--where", "metrics.test_accuracy > 0.85"])
    assert store.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == []
    assert [path.name for path in store.path.parent.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("where", [[], ["--where", NO_FILTER]])
def test_no_store_or_an_empty_one(place: Path, where: list[str]) -> None:
    with pytest.raises(ConfigError, match="there is no store at .*outputs/mlflow.db yet: run `hfexp` first"):
        main(where)
    sqlite3.connect("other.db").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(ConfigError, match="is not an MLflow store"):
        main(["--uri", "sqlite:///other.db", *where])
    Path("text.db").write_text("no database at all")
    with pytest.raises(ConfigError, match="not a SQLite database"):
        main(["--uri", "sqlite:///text.db", *where])
    with pytest.raises(ConfigError, match="127.0.0.1:9"):
        main(["--uri", "http://127.0.0.1:9", *where])
    assert sorted(path.name for path in place.iterdir()) == ["other.db", "text.db"]


def test_store_without_runs(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "mlflow.db"
    shutil.copy(store.path, copy)
    with sqlite3.connect(copy) as connection:
        connection.execute("UPDATE runs SET lifecycle_stage = 'deleted'")
    connection.close()
    with pytest.raises(ConfigError, match="no runs are recorded"):
        main(["--uri", f"sqlite:///{copy}"])
    assert newest_run(f"sqlite:///{copy}") is None


def test_nothing_heavy_is_imported(store: Store) -> None:
    script = (
        "import sys; from hfexp.commands.compare import main; main(sys.argv[1:]);"
        "print([m for m in ('mlflow', 'torch', 'transformers', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    words = [sys.executable, "-c", script, "--uri", store.uri]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- ranking and showing


def test_ranked_by_the_tagged_metric_with_ties_and_nan_last(compare: Any) -> None:
    runs = as_json(compare("--format", "json"))
    assert [(run["rank"], run["name"]) for run in runs] == [
        (1, "run-2"),
        (1, "run-1"),
        (3, "run-0"),
        (4, "run-odd"),
        (4, "run-3"),
    ]
    assert list(runs[0]["metrics"]) == ["test_accuracy", "final_eval_accuracy", "test_loss"]
    assert runs[4]["metrics"]["test_accuracy"] is None
    assert runs[0]["duration_seconds"] == 30.5
    assert set(runs[0]) == {"rank", "run_id", "name", "status", "params", "metrics", "duration_seconds"}


def test_only_changed_params_and_no_bookkeeping(compare: Any) -> None:
    words = ("digits", "--where", "tags.hfexp.metric = 'test_accuracy'", "--format", "json")
    changed = {"trainer.args.learning_rate", "trainer.args.optim", "seed"}
    assert set(as_json(compare(*words))[0]["params"]) == changed
    everything = as_json(compare(*words, "--all"))[0]
    assert set(everything["params"]) == {*changed, "name", "output_dir", "tracking.tags.n"}
    assert "test_runtime" in everything["metrics"]


def test_table(compare: Any) -> None:
    head, _, labels, *rows = compare().splitlines()
    assert head == "digits: 5 runs, by test_accuracy (max is best)"
    assert labels.split()[:3] == ["rank", "run", "status"]
    assert {"learning_rate", "optim", "seed", "model.path", "source.path"} <= set(labels.split())
    assert rows[0].split()[:3] == ["1", "run-2", "FINISHED"]
    assert rows[-1] == "(parents of sweeps are not shown (no params of their own): 1)"
    assert "status" not in compare("plain-a", "plain-b", "run-0").splitlines()[2].split()
    assert len({len(row[: row.index("FINISHED")]) for row in rows if "FINISHED" in row}) == 1


def test_top(compare: Any) -> None:
    assert compare("--top", "2").splitlines()[-2] == "(3 more runs: --top 5 shows them)"
    assert len(as_json(compare("--top", "2", "--format", "json"))) == 2
    assert "3 more runs" in compare("--top", "2", "--format", "json", err=True)
    with pytest.raises(ConfigError, match="--top 0"):
        compare("--top", "0")


def test_csv(compare: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(compare("--format", "csv"))))
    assert [row["rank"] for row in rows] == ["1", "1", "3", "4", "4"]
    assert float(rows[0]["trainer.args.learning_rate"]) == 1e-3
    assert math.isnan(float(rows[4]["test_accuracy"]))
    assert rows[3]["test_accuracy"] == ""
    assert rows[3]["text"] == "a|b\nc"


def test_markdown(compare: Any) -> None:
    lines = [line for line in compare("--format", "md").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert any(r"a\|b c" in line for line in lines)


def test_metric_and_direction(compare: Any) -> None:
    def first(*words: str) -> str:
        return as_json(compare("digits", "--format", "json", *words))[0]["name"]

    assert first("--metric", "final_eval_accuracy") == "run-3"
    assert first("--metric", "test_loss") == "run-3"  # lower is better by its name; the tag is about accuracy
    assert first("--metric", "test_loss", "--order", "max") == "run-0"
    assert first("--order", "min") == "run-0"
    assert first("--metric", "inf") == "run-odd"
    with pytest.raises(ConfigError, match="Did you mean 'test_accuracy'"):
        first("--metric", "tst_accuracy")


def test_default_metric_without_tags() -> None:
    def by(*metrics: dict[str, float]) -> tuple[str | None, str]:
        runs = [RunRecord(str(i), "", "1", "e", "FINISHED", i, i, metrics=m) for i, m in enumerate(metrics)]
        ranking = rank(runs)
        return ranking.metric, ranking.direction

    assert by({"a": 1, "final_eval_accuracy": 1, "best_eval_f1": 1}) == ("final_eval_accuracy", "max")
    assert by({"a": 1, "best_eval_loss": 1}) == ("best_eval_loss", "min")
    assert by({"a": 1, "eval_runtime": 1, "z_rmse": 1}, {"a_runtime": 1, "eval_runtime": 1, "z_rmse": 1}) == (
        "z_rmse",
        "min",
    )
    assert by({"perplexity": 1}, {}) == ("perplexity", "min")
    assert by({}, {}) == (None, "max")


def test_long_tables_are_cut(store: Store, compare: Any) -> None:
    many = [{f"group.param_{i}": str(i * run) for i in range(20)} for run in range(1, 3)]
    scores = {f"test_score_{i}": 0.5 for i in range(9)}
    runs = [RunRecord(str(i), "r", "1", "e", "FINISHED", i, i, p, scores) for i, p in enumerate(many)]
    ranking = rank(runs)
    assert (len(ranking.params), len(ranking.metrics)) == (19, 9)
    from hfexp.commands.compare import _show_ranking

    assert _show_ranking(ranking, "table", None, False) == [
        "7 more params: --columns NAME,... or --all shows them",
        "5 more metrics: --columns NAME,... or --all shows them",
    ]
    assert _show_ranking(ranking, "csv", None, False) == []


def test_words_choose_runs(store: Store, compare: Any) -> None:
    def chosen(*words: str) -> set[str]:
        return {run["name"] for run in as_json(compare(*words, "--format", "json"))}

    assert chosen("other") == {"plain-a", "plain-b", "twice"}
    assert chosen(run_id(store, "run-1")[:6]) == {"run-1"}
    assert chosen("run-0", run_id(store, "run-1"), "run-2") == {"run-0", "run-1", "run-2"}
    assert chosen("other", "run-0") == {"plain-a", "plain-b", "twice", "run-0"}
    assert chosen("sweep") == {"sweep"}
    assert chosen("digits", "--where", "params.seed = '7'") == set()
    assert compare("digits", "--where", "params.seed = '7'") == "no run matches\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("digts", "Did you mean 'digits'.* Experiments: digits, other; runs: plain-a"),
        ("run-deleted", "no experiment, run name or run id"),
        ("gone", "no experiment"),
        ("twice", "'twice' matches 2 runs"),
        ("abc", "first 6 characters"),
    ],
)
def test_unknown_words(compare: Any, word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(word)


def test_prefix_of_several_runs(store: Store, compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "MIN_PREFIX", 0)
    with pytest.raises(ConfigError, match="'' matches 10 runs"):
        compare("")


# --- two runs


def test_two_runs_in_detail(compare: Any) -> None:
    content = as_json(compare("run-1", "run-2", "--format", "json"))
    assert [run["name"] for run in content["runs"]] == ["run-1", "run-2"]
    assert content["config"] == [
        {"param": "seed", "a": "1", "b": "0"},
        {"param": "trainer.args.learning_rate", "a": "0.0001", "b": "0.001"},
        {"param": "trainer.args.optim", "a": "adamw", "b": "sgd"},
    ]
    assert content["environment"] == [{"item": "dataset train: digest", "a": "d0", "b": "d1"}]
    by_name = {row["metric"]: row for row in content["metrics"]}
    assert set(by_name) == {"final_eval_accuracy", "test_loss"}
    assert by_name["final_eval_accuracy"]["difference"] == pytest.approx(0.01)


def test_two_runs_as_text_and_csv(compare: Any) -> None:
    text = compare("run-1", "run-0")
    assert text.startswith("A: run-1 (")
    assert "Data and environment\nidentical\n" in text
    assert ["trainer.args.learning_rate", "0.0001", "1e-05"] in [line.split() for line in text.splitlines()]
    assert "B - A" in text
    rows = list(csv.DictReader(io.StringIO(compare("run-1", "run-0", "--format", "csv"))))
    assert {row["section"] for row in rows} == {"config", "metrics"}
    assert float(next(row["difference"] for row in rows if row["name"] == "test_accuracy")) == pytest.approx(-0.1)
    assert "## Final metrics\n\n| metric | A | B | B - A |" in compare("run-1", "run-0", "--format", "md")


def test_environment_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], store: Store) -> None:
    copy = tmp_path / "mlflow.db"
    shutil.copy(store.path, copy)
    with sqlite3.connect(copy) as connection:
        for name, sha in (("run-0", "aaa"), ("run-1", "bbb")):
            for key, value in (("hfexp.git_sha", sha), ("hfexp.python", "3.11.7"), ("hfexp.command", sha)):
                query = "INSERT INTO tags (run_uuid, key, value) SELECT run_uuid, ?, ? FROM runs WHERE name = ?"
                connection.execute(query, (key, value, name))
    connection.close()
    main(["run-0", "run-1", "--format", "json", "--uri", f"sqlite:///{copy}"])
    content = as_json(capsys.readouterr().out)
    assert content["environment"] == [{"item": "hfexp.git_sha", "a": "aaa", "b": "bbb"}]


# --- replicates


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A grid of two rates and three seeds, ranked by its sweep by loss, and one run of another model."""
    store = Store(tmp_path_factory.mktemp("seeds") / "mlflow.db")
    digits = store.experiment("digits")
    sweep_tags = {"hfexp.kind": "sweep", "hfexp.ranking": "0 1 2 3 4 5"}
    parent = store.run(digits, "grid-1", {"search.metrics": "eval_loss"}, tags=sweep_tags)
    for number in range(6):
        rate, seed = (1e-3, 1e-2)[number // 3], number % 3 + 1
        params = {
            "trainer.args.learning_rate": rate,
            "seed": seed,
            "trainer.args.seed": seed,
            "model.num_parameters": 5,
        }
        accuracy = 0.5 + number // 3 * 0.1 + (seed - 2) / 100
        metrics = {"best_eval_loss": number / 10, "test_accuracy": accuracy, "eval_accuracy": [0.1, accuracy]}
        tags = {**TAGS, "mlflow.parentRunId": parent, "hfexp.trial": str(number), "hfexp.sweep": "grid-1"}
        store.run(digits, f"vit-digits-lr{rate:g}-s{seed}", params, metrics, tags)
    other = {"trainer.args.learning_rate": 1e-3, "seed": 1, "trainer.args.seed": 1, "model.num_parameters": 7}
    store.run(digits, "big-s1", other, {"test_accuracy": 0.1}, TAGS)
    return store


@pytest.fixture
def compare_seeds(seeds: Store, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> str:
        assert main([*words, "--uri", seeds.uri]) == 0
        return capsys.readouterr().out

    return run


def test_the_objective_of_a_sweep_is_that_of_the_saved_model_and_of_pruned_runs_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "mlflow.db")
    digits = store.experiment("digits")
    tags = {"hfexp.kind": "sweep", "hfexp.ranking": "1 0"}
    parent = store.run(digits, "asha", {"search.metrics": "eval_loss"}, tags=tags)
    for number, losses in enumerate(({"final_eval_loss": 0.5}, {"final_eval_loss": 0.2}, {"best_eval_loss": 0.9})):
        metrics = {**losses, "eval_loss": [0.1, 1.0 + number]}  # the last evaluation is not the best one
        own = {**TAGS, "mlflow.parentRunId": parent, "hfexp.trial": str(number), "hfexp.sweep": "asha"}
        store.run(digits, f"run-{number}", {"lr": str(number)}, metrics, own)
    assert main(["sweep=asha", "--uri", store.uri, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["metrics"]["best_eval_loss"]) for row in rows] == [
        ("run-1", 0.2), ("run-0", 0.5), ("run-2", 0.9),
    ]  # fmt: skip


def test_runs_that_differ_only_in_their_seed_are_averaged(compare_seeds: Any) -> None:
    (fast, slow, big) = as_json(compare_seeds("digits", "--mean", "--format", "json"))
    assert fast["metrics"]["test_accuracy"]["mean"] == pytest.approx(0.6)
    # Student's t with two degrees of freedom is 4.3027 at 97.5 %; the deviation of 0.59, 0.60, 0.61 is 0.01.
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert fast["metrics"]["test_accuracy"]["low"] == pytest.approx(0.6 - half)
    assert fast["metrics"]["test_accuracy"]["high"] == pytest.approx(0.6 + half)
    assert (len(fast["run_ids"]), len(slow["run_ids"]), len(big["run_ids"])) == (3, 3, 1)
    assert (fast["name"], big["name"]) == ("vit-digits-lr0.01", "big-s1")
    assert fast["params"] == {"trainer.args.learning_rate": "0.01", "model.num_parameters": "5"}
    assert big["metrics"]["test_accuracy"] == {"mean": 0.1, "low": None, "high": None}
    shown = compare_seeds("digits", "--mean")
    assert "0.6000 ± 0.0248" in shown
    assert "half of the 95 % interval" in shown
    assert "up to 3 runs differ only in their seed: --mean" in compare_seeds("digits")
    rows = list(csv.DictReader(io.StringIO(compare_seeds("digits", "--mean", "--format", "csv"))))
    assert float(rows[0]["test_accuracy_low"]) == pytest.approx(0.6 - half)
    assert len(rows[0]["run_ids"].split()) == 3


def test_a_seed_that_failed_does_not_blur_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "mlflow.db")
    experiment = store.experiment("digits")
    for seed, accuracy in ((1, 0.5), (2, 0.7)):
        store.run(experiment, f"vit-s{seed}", {"seed": seed}, {"test_accuracy": accuracy}, TAGS)
    store.run(experiment, "vit-s3", {"seed": 3}, {"eval_loss": 9.0}, TAGS, status="FAILED")
    assert main(["--mean", "--uri", store.uri, "--format", "json"]) == 0
    mean, failed = as_json(capsys.readouterr().out)
    assert (len(mean["run_ids"]), mean["status"], mean["metrics"]["test_accuracy"]["mean"]) == (2, "FINISHED", 0.6)
    assert (len(failed["run_ids"]), failed["status"]) == (1, "FAILED")


def test_a_repeated_seed_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "mlflow.db")
    experiment = store.experiment("digits")
    for number, (seed, accuracy) in enumerate(((1, 0.1), (1, 0.5), (2, 0.7))):
        store.run(experiment, f"vit{number}-s{seed}", {"seed": seed}, {"test_accuracy": accuracy}, TAGS)
    main(["--mean", "--uri", store.uri])
    shown = capsys.readouterr().out
    assert "0.6000 ± " in shown
    assert "(earlier runs with the same seed are left out: 1)" in shown


def test_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "mlflow.db")
    experiment = store.experiment("digits")
    for name in ("<script>a", "<script>b"):
        store.run(experiment, name, {"name": name}, {"test_accuracy": 0.5}, TAGS)
    for words in (["<script>a", "<script>b"], []):
        main([*words, "--uri", store.uri, "--format", "html"])
        page = capsys.readouterr().out
        assert "<script>" not in page
        assert page.count("<h2>") == page.count("</h2>")
    main(["--uri", store.uri, "--format", "csv", "--all"])
    head, first, *_ = csv.reader(io.StringIO(capsys.readouterr().out))
    assert first[head.index("name")].startswith("<script>")
    assert "params.name" in head


def test_the_size_of_the_model_makes_no_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    store = Store(tmp_path / "mlflow.db")
    experiment = store.experiment("digits")
    for width in (8, 16, 32):
        params = {"model.width": width, "model.num_parameters": width * 100, "model.head": f"of {width}"}
        store.run(experiment, f"cnn-width{width}-s1", params, {"test_accuracy": width / 100}, TAGS)
    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    main(["--uri", store.uri, "--plot", str(tmp_path / "a.pdf")])
    (line,) = figures[0].axes[0].lines
    assert list(line.get_xdata()) == [8, 16, 32]
    assert not figures[0].legends


def test_a_sweep_shows_what_it_has_optimised(compare_seeds: Any) -> None:
    title, _, head, first, *_ = compare_seeds("sweep=grid-1").splitlines()
    assert title == "digits: 6 runs, ranked as in the sweep"
    assert head.split()[:3] == ["rank", "run", "best_eval_loss"]
    assert first.split()[:3] == ["1", "vit-digits-lr0.001-s1", "0.0000"]
    # The sweep has ranked the seeds one by one, so their means are ranked anew.
    averaged = compare_seeds("sweep=grid-1", "--mean").splitlines()
    assert averaged[0] == "digits: 2 configurations, by best_eval_loss (min is best)"
    assert averaged[3].split()[1:6] == ["vit-digits-lr0.001", "3", "0.1000", "±", "0.2484"]


def test_columns_are_chosen_by_the_ends_of_their_names(compare_seeds: Any) -> None:
    words = ("digits", "--columns", "learning_rate,eval_accuracy", "--format", "json")
    first = as_json(compare_seeds(*words))[0]
    assert first["params"] == {"trainer.args.learning_rate": "0.01"}
    assert list(first["metrics"]) == ["test_accuracy", "eval_accuracy"]
    with pytest.raises(ConfigError, match="--columns rate: no run has such a param or metric"):
        compare_seeds("digits", "--columns", "rate")


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_the_table_fits_the_terminal(
    seeds: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for words in (["digits"], ["sweep=grid-1"], ["digits", "--mean"]):
        main([*words, "--uri", seeds.uri])
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("(")]
        assert max(map(len, lines)) <= columns
        assert "learning_rate" in lines[2]


def test_latex_and_html(compare_seeds: Any) -> None:
    lines = compare_seeds("digits", "--mean", "--format", "latex").splitlines()
    assert lines[0].startswith("% digits: 3 configurations")
    assert lines[1] == r"\begin{tabular}{rlrrrrr}"
    assert lines[3].startswith(r"rank & run & runs & test\_accuracy & learning\_rate & ")
    assert r"1 & vit-digits-lr0.01 & 3 & 0.6000 $\pm$ 0.0248 & 0.01 & " in lines[5]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"] or r"\end{tabular}" in lines
    page = compare_seeds("digits", "--format", "html")
    assert page.startswith("<table>\n<caption>digits: 7 runs, by test_accuracy (max is best)</caption>\n<tr><th>rank")
    assert page.count("<tr>") == 8


# --- plots


def _texts(figure: Any) -> list[tuple[str, Any]]:
    """The texts of a figure that can be seen, with the boxes that they fill."""
    figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label, *axes.texts]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    low, high = (sorted(limits) for limits in (axes.get_xlim(), axes.get_ylim()))
    ticks = {id(label): (low, 0) for label in axes.get_xticklabels()}
    ticks |= {id(label): (high, 1) for label in axes.get_yticklabels()}
    shown = []
    for text in texts:
        limits, place = ticks.get(id(text), ([-math.inf, math.inf], 0))
        if text.get_text() and limits[0] <= text.get_position()[place] <= limits[1]:
            shown.append((text.get_text(), text.get_window_extent()))
    return shown


@pytest.mark.parametrize("size", [(), ("--size", "3.5x2.5")])
@pytest.mark.parametrize(
    "words",
    [["digits"], ["digits", "--mean"], ["digits", "--curves"], ["digits", "--mean", "--curves"], ["sweep=grid-1"],
     ["digits", "--metric", "best_eval_loss"]],
    ids=" ".join,
)  # fmt: skip
def test_no_text_of_a_plot_overlaps_another(
    compare_seeds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], size: tuple[str, ...]
) -> None:
    from matplotlib.figure import Figure

    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    compare_seeds(*words, *size, "--plot", str(tmp_path / "plot.pdf"))
    (figure,) = figures
    shown, page = _texts(figure), figure.bbox
    for number, (text, box) in enumerate(shown):
        assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1, text
        for other, another in shown[number + 1 :]:
            assert not box.shrunk(0.9, 0.9).overlaps(another.shrunk(0.9, 0.9)), (text, other)


@pytest.mark.parametrize(
    "words",
    [["digits"], ["run-1", "run-2"], ["digits", "--where", "params.seed = '1'"], ["other", "--metric", "score"]],
    ids=["numeric", "pair", "one point", "bars"],
)
def test_plot_is_a_picture(compare: Any, tmp_path: Path, words: list[str]) -> None:
    import PIL.Image

    path = tmp_path / "new" / "plot.png"
    compare(*words, "--plot", str(path))
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 400
        assert len(picture.convert("L").getcolors(256) or []) > 20


def test_plot_that_cannot_be_drawn(compare: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must end in .png"):
        compare("--plot", str(tmp_path / "mlflow.db"))
    with pytest.raises(ConfigError, match="--curves and --size describe a plot"):
        compare("--curves")
    with pytest.raises(ConfigError, match="no run has recorded eval_loss over the steps"):
        compare("digits", "--metric", "test_loss", "--curves", "--plot", str(tmp_path / "x.png"))
    with pytest.raises(ConfigError, match="no run has a value for any metric"):
        compare("sweep", "--where", "params.seed = '1'", "--plot", str(tmp_path / "x.png"))
